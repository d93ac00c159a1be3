"""The means that a line of metrics.jsonl gives: over the steps since the line before it.

What of them has been measured when a checkpoint is saved is saved with it, so that the log of a resumed run is that of an
uninterrupted one, line for line.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lods_jax.runs.run_directory import is_figure

INDEX = "nonfinite_leaf"  # the metric that is no quantity


class Window(NamedTuple):
    """What has been measured since the last line: data alone, which JSON keeps to the last bit."""

    logged: int = 0  # the step of that line
    steps: int = 0  # since then
    skipped: int = 0  # updates of the run that were dropped, up to that line
    dead: int = 0  # of them, how many in a row before it
    seconds: float = 0.0  # of optimisation in all sittings
    sums: Mapping[str, float] = {}
    counts: Mapping[str, int] = {}

    def after(self, metrics: Sequence[Mapping[str, Any]]) -> "Window":
        """With some more steps. NaN is no value: a step in which a name has none does not count for it."""
        sums, counts = dict(self.sums), dict(self.counts)
        for step in metrics:
            for name, x in step.items():
                if name != INDEX and not math.isnan(x := float(x)):
                    sums[name], counts[name] = sums.get(name, 0.0) + x, counts.get(name, 0) + 1
        return self._replace(steps=self.steps + len(metrics), sums=sums, counts=counts)

    def means(self) -> dict[str, float]:
        """Means over the steps that have a value, by name; a name that none of them has is left out."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}

    def closed(self, skipped: int) -> "Window":
        """The window behind a line that was written after these steps; `skipped` updates were dropped by then."""
        dead = self.dead + self.steps if skipped - self.skipped == self.steps else 0
        return type(self)(self.logged + self.steps, 0, skipped, dead, self.seconds)


def read_window(saved: Any, new: Window) -> Window:
    """The window of a checkpoint, or a `new` one where it has none that makes sense, as checkpoints did not always."""
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
