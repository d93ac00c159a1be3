"""Equal tuning of methods: as many trials for each, and no kept value at the edge of what was tried.

A round is one trial of each method. A method whose best value lies at an edge tries the next one beyond it; the others look
between their best value and its better neighbour. Rounds end when no method's best value lies at an edge.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

from lods_jax.config.conversion import real
from lods_jax.core.errors import UserError

Values = dict[str, str]  # {dotted key: value as a text of YAML}
Proposal = tuple[str, Values]  # a method and what it shall try


class Trial(NamedTuple):
    """A trial and how it went.

    Attributes:
        values: what was tried.
        loss: mean over prompts and seeds, the lower the better; infinite if a run of it failed.
    """

    values: Values
    loss: float


class Tuned(NamedTuple):
    """The end of tuning of one method.

    Attributes:
        values: what is kept.
        trials: all of them, in order.
        edges: keys whose kept value is the lowest or the highest that was tried.
    """

    values: Values
    trials: list[Trial]
    edges: list[str]


def first_trials(grid: Mapping[str, tuple[str, ...]]) -> list[Values]:
    """The trials that a grid {dotted key: values} begins with.

    Examples:
        >>> first_trials({"objective.guidance_scale": ("7.5", "30")})
        [{'objective.guidance_scale': '7.5'}, {'objective.guidance_scale': '30'}]
    """
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def tune(
    grids: Mapping[str, Mapping[str, tuple[str, ...]]],
    allowed: Callable[[str, Values], bool],
    measure: Callable[[list[Proposal]], Sequence[float]],
    most: int,
) -> dict[str, Tuned]:
    """Tunes some methods side by side, a round at a time: the trials of a round do not depend on each other.

    Args:
        grids: {method: {dotted key: values}}; all begin with as many trials.
        allowed: whether a method can take some values.
        measure: trials of a round -> the loss of each; it is asked for values that are allowed.
        most: trials of a method.

    Returns:
        {method: what is kept}.
    """
    trials: dict[str, list[Trial]] = {name: [] for name in grids}
    closed: set[tuple[str, str, str]] = set()  # (method, key, value) that cannot be taken: an end of the range, and no edge

    def make(proposals: list[Proposal]) -> None:
        losses = iter(measure([proposal for proposal in proposals if allowed(*proposal)]))
        for name, values in proposals:
            trials[name].append(Trial(values, next(losses) if allowed(name, values) else float("inf")))

    make([(name, values) for name, grid in grids.items() for values in first_trials(grid)])
    tunable = sorted(name for name, grid in grids.items() if grid)
    while tunable and any(edges(trials[name], name, closed) for name in tunable) and len(trials[tunable[0]]) < most:
        make([(name, next_values(trials[name], name, allowed, closed)) for name in tunable])
    return {name: Tuned(best(held).values, held, edges(held, name, closed)) for name, held in trials.items()}


def next_values(
    held: list[Trial], name: str, allowed: Callable[[str, Values], bool], closed: set[tuple[str, str, str]]
) -> Values:
    """What a method tries next: beyond the edge that its best value lies at, else beside its best value.

    Args:
        held: its trials.
        name: of the method.
        allowed: as of `tune`.
        closed: gets the values beyond an edge that it cannot take.

    Returns:
        The values.
    """
    while keys := edges(held, name, closed):
        values = best(held).values | {keys[0]: beyond(held, keys[0])}
        if allowed(name, values):
            return values
        closed.add((name, keys[0], values[keys[0]]))
    return closer(held)


def best(held: list[Trial]) -> Trial:
    """The trial with the lowest loss of those held, the first of several."""
    return min(held, key=lambda trial: trial.loss)


def tried(held: list[Trial], key: str) -> list[float]:
    """The numbers that trials gave a key, in order.

    Args:
        held: the trials.
        key: dotted.

    Returns:
        Numbers, each once.

    Raises:
        UserError: one is no number.
    """
    try:
        return sorted({real(trial.values[key]) for trial in held})
    except ValueError as error:
        raise UserError(f"grid.{key} must hold numbers, got {error}") from None


def edges(held: list[Trial], name: str, closed: set[tuple[str, str, str]]) -> list[str]:
    """The keys whose best value is the lowest or the highest that was tried, though one beyond it may be taken.

    Args:
        held: trials of a method.
        name: of the method.
        closed: values that it cannot take.

    Returns:
        Dotted keys.
    """
    kept = best(held).values
    at_end = [key for key, value in kept.items() if real(value) in (tried(held, key)[0], tried(held, key)[-1])]
    return [key for key in at_end if (name, key, beyond(held, key)) not in closed]


def beyond(held: list[Trial], key: str) -> str:
    """The next value beyond the edge that the best one lies at: as far from it as its neighbour, by ratio where all are positive.

    Args:
        held: trials.
        key: dotted; its best value lies at an edge.

    Returns:
        A text of YAML.

    Examples:
        >>> beyond([Trial({"x": "10"}, 2.0), Trial({"x": "30"}, 1.0)], "x")
        '90'
    """
    numbers, at = tried(held, key), real(best(held).values[key])
    neighbour = numbers[-2] if at == numbers[-1] else numbers[1]
    return f"{at * at / neighbour if numbers[0] > 0 else 2 * at - neighbour:.4g}"


def closer(held: list[Trial]) -> Values:
    """Values between the best trial and the better of its neighbours, for the key whose neighbours are farthest apart.

    Args:
        held: trials of a method, the best one at no edge.

    Returns:
        Values that were not tried.
    """
    kept = best(held).values
    gaps = {}
    for key, value in kept.items():
        numbers, at = tried(held, key), real(value)
        i = numbers.index(at)
        beside = numbers[max(i - 1, 0) : i] + numbers[i + 1 : i + 2]
        loss = lambda x, key=key: min(trial.loss for trial in held if real(trial.values[key]) == x)  # noqa: E731
        good = min(beside, key=loss)
        gaps[key] = (abs(at - good) / max(abs(at), abs(good), 1e-12), (at * good) ** 0.5 if at * good > 0 else (at + good) / 2)
    key = max(gaps, key=lambda name: gaps[name][0])
    return kept | {key: f"{gaps[key][1]:.4g}"}
