"""The scene of a run, from its checkpoints."""

from typing import Any

import jax
import numpy as np

from lods_jax.runs.run_directory import Run
from lods_jax.training import checkpoint
from lods_jax.training.build import scene_setup
from lods_jax.training.scene_setups import state_of_scene


def restore_scene(run: Run, newest: int | None = None) -> dict[str, Any]:
    """The scene of a run's newest whole checkpoint.

    Args:
        run: the run.
        newest: the last step to look at; None for any.

    Returns:
        {"step", "theta", "aux"}.

    Raises:
        ValueError: there is no whole checkpoint.
    """
    setup = scene_setup(run.config)
    theta, aux = state_of_scene(setup, run.config.resolution)
    like = {"step": jax.ShapeDtypeStruct((), np.int32), "theta": theta, "aux": aux}
    state, _ = checkpoint.restore(run.path / "checkpoints", like, print, newest)
    return state
