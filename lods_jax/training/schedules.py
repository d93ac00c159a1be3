"""Settings that change in a run: pairs of values, the first before the run's milestone, or milestones with a value each."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from lods_jax.config import Schedule, has_milestones, milestone_step
from lods_jax.config.schema import ScorePathConfig
from lods_jax.core.noise_schedule import T
from lods_jax.distillation.score_paths import ENCODER, ScorePath, blend, split


class Timeline(NamedTuple):
    """What the schedules of a run are fractions of.

    Attributes:
        steps: number of steps of the run.
        milestone: share of the run at which pairs change from their first to their second value.
    """

    steps: int
    milestone: float

    @property
    def later_from(self) -> float:
        """The step from which pairs have their second value."""
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
        return jnp.where(step < timeline.later_from, *schedule)
    value = jnp.asarray(schedule[0][1])
    for at, later in schedule[1:]:
        value = jnp.where(step < milestone_step(at, timeline.steps), value, later)
    return value


def annealed(timeline: Timeline, schedule: Schedule, step: Array | int, anneal: str = "steps") -> Array:
    """The value of a schedule that may go from each value to the next, in place of jumping.

    Args:
        timeline: of the run.
        schedule: a pair, or milestones ((step, value), ...).
        step: index of the step.
        anneal: "steps" is `phase`. "linear" goes in straight lines from milestone to milestone, and from the first of a pair to
            the second over the whole run. "sqrt" does that with the square root of the share of the way, fast at first (HiFA;
            Zhu et al. 2024, eq. 9).

    Returns:
        The value.

    Examples:
        >>> float(annealed(Timeline(steps=400, milestone=0.5), (1.0, 0.5), 100, "sqrt"))
        0.75
    """
    if anneal == "steps":
        return phase(timeline, schedule, step)
    knots = schedule if has_milestones(schedule) else ((0.0, schedule[0]), (1.0, schedule[1]))
    value = jnp.asarray(knots[0][1])
    for (at, before), (then, after) in pairwise(knots):
        start, end = milestone_step(at, timeline.steps), milestone_step(then, timeline.steps)
        share = jnp.clip((step - start) / max(end - start, 1.0), 0.0, 1.0)
        share = jnp.sqrt(share) if anneal == "sqrt" else share
        value = jnp.where(step < start, value, before + (after - before) * share)
    return value


def window(
    timeline: Timeline, low: Schedule, high: Schedule, anneal: str = "steps"
) -> Callable[[Array | int], tuple[Array, Array]]:
    """The window of timesteps as a function of the step.

    Args:
        timeline: of the run.
        low: schedule of the lowest timestep, as a fraction of all.
        high: schedule of the highest timestep, as a fraction of all.
        anneal: of `annealed`.

    Returns:
        step -> lowest and highest timestep.
    """
    edges = scaled(low, T), scaled(high, T)
    return lambda step: tuple(annealed(timeline, edge, step, anneal).astype(jnp.int32) for edge in edges)


def scaled(schedule: Schedule, factor: int) -> Schedule:
    """A schedule with `factor` times the values, rounded down to whole numbers.

    Examples:
        >>> scaled((0.98, 0.5), 1000), scaled(((0.0, 0.98), (0.5, 0.2)), 1000)
        ((980.0, 500.0), ((0.0, 980.0), (0.5, 200.0)))
    """
    whole = lambda value: float(int(factor * value))  # noqa: E731
    if has_milestones(schedule):
        return tuple((at, whole(value)) for at, value in schedule)
    return whole(schedule[0]), whole(schedule[1])


def score_path_of(path: ScorePathConfig, timeline: Timeline) -> ScorePath:
    """The way from latent scores to pixels.

    Args:
        path: its settings.
        timeline: of the run.

    Returns:
        The path, whose share of the decoder is a schedule.
    """
    reconstructs = path.through_decoder == "reconstruction"
    share = {"decoder": lambda step: 1.0, "blend": partial(phase, timeline, path.decoder_share)}
    if path.name == "encoder":
        return ENCODER._replace(pixel_clip=path.pixel_clip)
    if path.name == "split":
        return split(reconstructs, path.pixel_clip)
    return blend(share[path.name], reconstructs, path.pixel_clip)
