"""Settings that change in a run: pairs of values, the first before the run's milestone, or milestones with a value each."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from lods_jax.config import Config, Schedule, TimestepConfig, Zero123Config, has_milestones, milestone_step
from lods_jax.core.noise_schedule import T


def phase(config: Config, schedule: Schedule | tuple[int, int], step: Array | int) -> Array:
    """The value of a pair or of milestones at a step."""
    if not has_milestones(schedule):
        return jnp.where(step < config.milestone * config.steps, *schedule)
    value = jnp.asarray(schedule[0][1])
    for at, later in schedule[1:]:
        value = jnp.where(step < milestone_step(at, config.steps), value, later)
    return value


def window(config: Config, limits: TimestepConfig | Zero123Config) -> Callable[[Array], tuple[Array, Array]]:
    """step -> lowest and highest timestep, of fractions of all timesteps."""
    low, high = (tuple(int(T * x) for x in pair) for pair in (limits.min, limits.max))
    return lambda step: (phase(config, low, step), phase(config, high, step))
