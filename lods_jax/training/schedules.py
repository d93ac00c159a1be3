"""Settings that change in a run: pairs of values, the first before the run's milestone, or milestones with a value each."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from lods_jax.config import Schedule, has_milestones, milestone_step
from lods_jax.core.noise_schedule import T


class Timeline(NamedTuple):
    """What schedules of a run are fractions of."""

    steps: int  # of the run
    milestone: float  # share of the run at which pairs go from their first to their second value

    @property
    def switch(self) -> float:
        """The step of the milestone."""
        return self.milestone * self.steps


def phase(timeline: Timeline, schedule: Schedule | tuple[int, int], step: Array | int) -> Array:
    """The value of a pair or of milestones at a step."""
    if not has_milestones(schedule):
        return jnp.where(step < timeline.switch, *schedule)
    value = jnp.asarray(schedule[0][1])
    for at, later in schedule[1:]:
        value = jnp.where(step < milestone_step(at, timeline.steps), value, later)
    return value


def window(
    timeline: Timeline, low: tuple[float, float], high: tuple[float, float]
) -> Callable[[Array | int], tuple[Array, Array]]:
    """step -> lowest and highest timestep, of pairs of fractions of all timesteps."""
    low, high = (tuple(int(T * x) for x in pair) for pair in (low, high))
    return lambda step: (phase(timeline, low, step), phase(timeline, high, step))
