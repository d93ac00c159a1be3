"""Means of the metrics over the steps since the last line of metrics.jsonl.

What of them has been measured when a checkpoint is saved is saved with it, so that the log of a resumed run is that of an
uninterrupted one, line for line.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lods_jax.runs.run_directory import is_figure

INDEX = "nonfinite_leaf"  # the metric that is no quantity


class Window(NamedTuple):
    """The measurements since the last line of the log. Plain data, which JSON keeps to the last bit.

    Attributes:
        logged: the step of that line.
        steps: number of steps since.
        skipped: updates of the run that were dropped, up to that line.
        dead: how many of them in a row, up to that line.
        seconds: of optimisation, in all sittings.
        sums: {metric: sum since}.
        counts: {metric: number of values since}.
    """

    logged: int = 0
    steps: int = 0
    skipped: int = 0
    dead: int = 0
    seconds: float = 0.0
    sums: Mapping[str, float] = {}
    counts: Mapping[str, int] = {}

    def after(self, metrics: Sequence[Mapping[str, Any]]) -> "Window":
        """The window after further steps. A NaN counts as no value.

        Args:
            metrics: of each step.

        Returns:
            A new window.
        """
        sums, counts = dict(self.sums), dict(self.counts)
        for step in metrics:
            for name, x in step.items():
                if name != INDEX and not math.isnan(x := float(x)):
                    sums[name], counts[name] = sums.get(name, 0.0) + x, counts.get(name, 0) + 1
        return self._replace(steps=self.steps + len(metrics), sums=sums, counts=counts)

    def means(self) -> dict[str, float]:
        """Means over the steps that have a value, by name."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}

    def closed(self, skipped: int) -> "Window":
        """The window that follows a line of the log; `skipped` updates were dropped by then."""
        dead = self.dead + self.steps if skipped - self.skipped == self.steps else 0
        return type(self)(self.logged + self.steps, 0, skipped, dead, self.seconds)


def read_window(saved: Any, new: Window) -> Window:
    """The window that a checkpoint holds, or a new one if it holds none that is valid; older checkpoints hold none.

    Args:
        saved: of the checkpoint.
        new: to fall back on.

    Returns:
        A window.
    """
    if not (isinstance(saved, dict) and saved.keys() == set(Window._fields)):
        return new
    window = Window(**saved)
    if not (isinstance(window.sums, dict) and isinstance(window.counts, dict) and window.sums.keys() == window.counts.keys()):
        return new
    whole = (window.logged, window.steps, window.skipped, window.dead, *window.counts.values())
    if not all(is_figure(x) and isinstance(x, int) and x >= 0 for x in whole) or 0 in window.counts.values():
        return new
    fits = window.logged + window.steps == new.logged and all(map(is_figure, (window.seconds, *window.sums.values())))
    return window if fits else new
