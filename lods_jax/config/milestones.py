"""Schedules of a configuration: pairs of the two phases of a run, or milestones. This file loads no jax."""

from typing import Any, TypeGuard

# A pair (before `milestone`, from there on), or milestones ((step, value), ...), each value from its step on. A step up to 1 is a
# share of the run.
Schedule = tuple[float, float] | tuple[tuple[float, float], ...]


def has_milestones(schedule: Any) -> TypeGuard[tuple[tuple[float, float], ...]]:
    """Whether a schedule is given by milestones, and not as a pair.

    Examples:
        >>> has_milestones(((0.0, 1.0), (0.5, 2.0))), has_milestones((1.0, 2.0))
        (True, False)
    """
    return isinstance(schedule, tuple) and all(isinstance(x, tuple) for x in schedule)


def ever_on(schedule: Schedule) -> bool:
    """Whether a schedule of a weight is ever anything but 0.

    Examples:
        >>> ever_on((0.0, 0.0)), ever_on((0.0, 1.0))
        (False, True)
    """
    return any(value for _, value in schedule) if has_milestones(schedule) else any(schedule)


def milestone_step(at: float, steps: int) -> float:
    """The step of a milestone.

    Args:
        at: a step, or up to 1 a share of the run.
        steps: of the run.

    Returns:
        A step.

    Examples:
        >>> milestone_step(0.5, 400)
        200.0
    """
    return at * steps if at <= 1 else at
