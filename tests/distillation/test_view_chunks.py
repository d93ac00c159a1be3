"""A step over chunks of views is the step over all of them."""

import jax
import numpy as np
import pytest

from lods_jax.core.types import Reference
from lods_jax.distillation.objectives import lods_embedding
from lods_jax.distillation.parallel import compile_train_step
from lods_jax.distillation.view_chunks import chunk_size, in_chunks
from tests.distillation.test_train_step import BATCH, TEXTS, WEIGHTS, parts


def test_a_few_views_at_a_time_make_the_same_step():
    build, start = parts(lods_embedding(100.0), lambda render, step: {"bright": render.rgb.mean((1, 2, 3))})
    run = lambda step: compile_train_step(step, "jit", BATCH)(start(), WEIGHTS, TEXTS, None, jax.random.key(3))  # noqa: E731
    (state, metrics), (chunked, of_chunks) = run(build), run(in_chunks(build, 2))
    assert set(metrics) == set(of_chunks)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), (state, metrics), (chunked, of_chunks))


@pytest.mark.parametrize(("views", "group"), [(8, 1), (12, 4), (6, 1), (7, 1)])
def test_chunks_are_equal_whole_groups_and_the_largest_that_are_allowed(views, group):
    for most in range(1, views + 2):
        size = chunk_size(most, views, group)
        assert views % size == size % group == 0
        allowed = [n for n in range(group, views + 1, group) if views % n == 0 and n <= most]
        assert size == max(allowed, default=group)


def test_reference_latents_cannot_be_parted():
    build, start = parts(lods_embedding(100.0))
    step = compile_train_step(in_chunks(build, 2), "jit", BATCH)
    with pytest.raises(ValueError, match="in chunks of views takes no reference latents"):
        step(start(), WEIGHTS, TEXTS, Reference(latents=np.zeros((BATCH, 1, 1, 3), np.float32)), jax.random.key(3))
