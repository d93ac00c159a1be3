"""What the rows of a bench show: interquartile means, paired differences, and how firmly the order of the methods holds.

Statistics are those of Agarwal et al. 2021 ("Deep Reinforcement Learning at the Edge of the Statistical Precipice"). Methods are
compared on the runs that all of them have, so that a difference is one between methods and not between prompts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import kendalltau

from lods_jax.core.statistics import interquartile_means
from lods_jax.runs.evaluate import cell, is_number

Rows = Sequence[Mapping[str, Any]]
HIGHER = {"kind", "color", "pattern", "view", "coverage", "part_recall", "attribute", "rest", "reward"}
HIGHER |= {"clip_score", "clip_r_precision", "fit_gain"}
NEAREST = {"saturation": 0.0, "speckle": 1.0, "sharpness": 1.0}  # the true object's
DRAWS = 2000
SECONDS_ON = "seconds on "


class Order(NamedTuple):
    """The order of methods by one figure, best first.

    Attributes:
        methods: their names, those without the figure left out.
        loss: the interquartile mean by which they are ordered, lower is better.
        held: share of the bootstrap draws in which the whole order comes out.
        better: [m m] share of the draws in which the method of the row is better than that of the column.
        n: number of runs of each that are compared.
    """

    methods: list[str]
    loss: list[float]
    held: float
    better: np.ndarray
    n: int


def loss(figure: str, x: float) -> float:
    """A value x of a figure so that lower is better.

    Examples:
        >>> loss("kid", 0.2), loss("view", 0.2), round(loss("sharpness", 1.2), 6)
        (0.2, -0.2, 0.2)
    """
    return -x if figure in HIGHER else abs(x - NEAREST[figure]) if figure in NEAREST else x


def meaning(figure: str) -> str:
    """Which direction of a figure is better, in words.

    Examples:
        >>> meaning("kid")
        'lower is better'
    """
    return "higher is better" if figure in HIGHER else f"{NEAREST[figure]:g} is best" if figure in NEAREST else "lower is better"


def timed_on(row: Mapping[str, Any]) -> str:
    """Where the seconds of a row were measured: the kinds of its devices, and how many processes shared the work.

    Examples:
        >>> timed_on({"devices": ["gpu: A", "gpu: A"], "shard": "3/8"}), timed_on({"devices": ["cpu: cpu"]})
        ('gpu: A, 8 processes', 'cpu: cpu')
    """
    kinds = " and ".join(dict.fromkeys(row.get("devices") or ["unknown devices"]))
    processes = str(row.get("shard", "1/1")).rpartition("/")[2]
    return kinds if processes == "1" else f"{kinds}, {processes} processes"


def seconds_apart(rows: Rows) -> Rows:
    """Rows in which seconds of different machines are different figures, so that no mean and no difference mixes them.

    Args:
        rows: of a bench.

    Returns:
        The rows as they are if all were measured alike; else with "seconds on MACHINE" in place of "seconds", and curves without.
    """
    if len({timed_on(row) for row in rows}) < 2:
        return rows
    named = lambda row: {"seconds": None, SECONDS_ON + timed_on(row): row.get("seconds")}  # noqa: E731
    return [row | named(row) | {"curve": [point | {"seconds": None} for point in row.get("curve", [])]} for row in rows]


def key_of(row: Mapping[str, Any]) -> tuple:
    """What a row shares with those of other methods that it is compared with."""
    return tuple(row.get(name) for name in ("scene", "prior_name", "prompt_set", "prompt", "seed"))


def values_of(rows: Rows, method: str, figure: str) -> dict[tuple, float]:
    """The values of a figure in the runs of a method.

    Args:
        rows: of a bench.
        method: its name.
        figure: of the rows.

    Returns:
        {what the run shares with others: value}, without runs in which the figure has no meaning.
    """
    return {key_of(row): float(row[figure]) for row in rows if row["method"] == method and is_number(row.get(figure))}


def means(rows: Rows, methods: Sequence[str], figure: str) -> list[str]:
    """A cell for each method: interquartile mean and interval of a figure over all its runs.

    Args:
        rows: of a bench.
        methods: names.
        figure: of the rows.

    Returns:
        Texts.
    """
    return [cell(np.array([*values_of(rows, method, figure).values()], float)) for method in methods]


def differences(rows: Rows, methods: Sequence[str], figure: str, baseline: str) -> list[str]:
    """A cell for each method: interquartile mean and interval of its figure minus the baseline's, run by run.

    Args:
        rows: of a bench.
        methods: names.
        figure: of the rows.
        baseline: a method.

    Returns:
        Texts.
    """
    base = values_of(rows, baseline, figure)
    cells = []
    for method in methods:
        own = values_of(rows, method, figure)
        cells.append(cell(np.array([own[key] - base[key] for key in own if key in base], float)))
    return cells


def order_of(rows: Rows, methods: Sequence[str], figure: str, draws: int = DRAWS, seed: int = 0) -> Order | None:
    """The order of methods by a figure, and how often it comes out when the runs are drawn anew.

    A draw takes the same runs of every method: what is hard for all of them does not count against one.

    Args:
        rows: of a bench.
        methods: names.
        figure: of the rows.
        draws: of the bootstrap.
        seed: of the draws.

    Returns:
        The order; None if fewer than two methods have runs in common.
    """
    values = {method: values_of(rows, method, figure) for method in methods}
    values = {method: held for method, held in values.items() if held}
    common = sorted(set.intersection(*map(set, values.values())), key=repr) if values else []
    if len(values) < 2 or not common:
        return None
    x = np.array([[loss(figure, held[key]) for key in common] for held in values.values()])  # [methods runs]
    whole = interquartile_means(x)
    best_first = np.argsort(whole, kind="stable")
    rng, x = np.random.default_rng(seed), x[best_first]
    picked = rng.integers(0, len(common), (draws, len(common)))
    drawn = interquartile_means(x[:, picked]).T  # [draws methods]
    better = (drawn[:, :, None] < drawn[:, None, :]).mean(0)
    held = float(np.all(np.diff(drawn, axis=1) > 0, axis=1).mean())
    names = [*values]
    return Order([names[i] for i in best_first], [float(whole[i]) for i in best_first], held, better, len(common))


def agreement(a: Order, b: Order) -> float | None:
    """Kendall's tau-b between two orders, of the methods that both have: 1 for the same order, -1 for the reverse.

    Args:
        a: an order.
        b: another.

    Returns:
        Tau; None for fewer than two methods, or where all are equal.
    """
    common = [method for method in a.methods if method in b.methods]
    if len(common) < 2:
        return None
    tau = kendalltau(*([order.loss[order.methods.index(method)] for method in common] for order in (a, b))).statistic
    return None if np.isnan(tau) else float(tau)
