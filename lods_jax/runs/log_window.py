"""The means that a line of metrics.jsonl gives: over the steps since the line before it.

What of them has been measured when a checkpoint is saved is saved with it, so that the log of a resumed run is that of an
uninterrupted one, line for line.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

from lods_jax.runs.run_directory import is_figure


class Window(NamedTuple):
    """What has been measured since the last line: data alone, which JSON keeps to the last bit."""

    logged: int = 0  # the step of that line
    steps: int = 0  # since then
    sums: Mapping[str, float] = {}
    counts: Mapping[str, int] = {}
    skipped: int = 0  # updates of the run that were dropped, up to that line
    dead: int = 0  # of them, how many in a row before it

    def after(self, metrics: Sequence[Mapping[str, Any]]) -> Self:
        """With some more steps. NaN is no value: a step in which a name has none does not count for it."""
        sums, counts = dict(self.sums), dict(self.counts)
        for step in metrics:
            for name, x in step.items():
                if name != "nonfinite_leaf" and not math.isnan(x := float(x)):
                    sums[name], counts[name] = sums.get(name, 0.0) + x, counts.get(name, 0) + 1
        return self._replace(steps=self.steps + len(metrics), sums=sums, counts=counts)

    def means(self) -> dict[str, float]:
        """Means over the steps that have a value, by name; a name that none of them has is left out."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}

    @classmethod
    def read(cls, saved: Any, first: int) -> Self:
        """The window of a checkpoint; a new one after the step `first` where there is none that makes sense."""
        empty = cls(logged=first)
        if not (isinstance(saved, dict) and saved.keys() == set(cls._fields)):
            return empty
        sums, counts, rest = saved["sums"], saved["counts"], {k: x for k, x in saved.items() if k not in ("sums", "counts")}
        numbers = isinstance(sums, dict) and isinstance(counts, dict) and sums.keys() == counts.keys()
        numbers = numbers and all(map(is_figure, sums.values()))
        whole = numbers and all(is_figure(x) and isinstance(x, int) and x >= 0 for x in [*rest.values(), *counts.values()])
        return cls(**saved) if whole and min([1, *counts.values()]) > 0 and saved["logged"] <= first else empty
