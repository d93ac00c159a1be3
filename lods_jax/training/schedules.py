"""Settings that change in a run: pairs of values, the first before the run's milestone, or milestones with a value each."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from lods_jax.config import Schedule, has_milestones, milestone_step
from lods_jax.core.noise_schedule import T


class Timeline(NamedTuple):
    """What the schedules of a run are fractions of.

    Attributes:
        steps: number of steps of the run.
        milestone: share of the run at which pairs change from their first to their second value.
    """

    steps: int
    milestone: float

    @property
    def switch(self) -> float:
        """The step of the milestone."""
        return self.milestone * self.steps


def phase(timeline: Timeline, schedule: Schedule | tuple[int, int], step: Array | int) -> Array:
    """The value of a schedule at a step.

    Args:
        timeline: of the run.
        schedule: a pair, or milestones ((step, value), ...).
        step: index of the step.

    Returns:
        The value.

    Examples:
        >>> float(phase(Timeline(steps=400, milestone=0.5), (1.0, 2.0), 200))
        2.0
    """
    if not has_milestones(schedule):
        return jnp.where(step < timeline.switch, *schedule)
    value = jnp.asarray(schedule[0][1])
    for at, later in schedule[1:]:
        value = jnp.where(step < milestone_step(at, timeline.steps), value, later)
    return value


def window(
    timeline: Timeline, low: tuple[float, float], high: tuple[float, float]
) -> Callable[[Array | int], tuple[Array, Array]]:
    """The window of timesteps as a function of the step.

    Args:
        timeline: of the run.
        low: pair of lowest timesteps, as fractions of all.
        high: pair of highest timesteps, as fractions of all.

    Returns:
        step -> lowest and highest timestep.
    """
    low, high = (tuple(int(T * x) for x in pair) for pair in (low, high))
    return lambda step: (phase(timeline, low, step), phase(timeline, high, step))
