"""What holds for every test of the tabletop world."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def _ranks_may_differ():
    """Cameras and objects broadcast images against batches."""
    with jax.numpy_rank_promotion("allow"):
        yield
