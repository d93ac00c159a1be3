"""The figures of a bench: which there are, which a suite names, and which of them are costs."""

import difflib

from lods_jax.core.errors import UserError
from lods_jax.priors import clip
from lods_jax.priors.registry import embedded_world
from lods_jax.runs.bench.ranking import SECONDS_ON, Rows, values_of
from lods_jax.runs.bench.suite import Suite
from lods_jax.runs.evaluate import COSTS


def all_figures() -> dict[str, str]:
    """The figures that a row of a bench may have, and what each means."""
    return embedded_world().all_figures | clip.FIGURES | COSTS


def check_figures(suite: Suite) -> None:
    """Checks, before any run is made, that there are the figures by which a suite ranks, tunes and draws.

    Args:
        suite: the suite.

    Raises:
        UserError: there is no such figure, or none without the key `clip`; the message names the nearest.
    """
    named = {"rank_by": (suite.rank_by,), "figures": suite.figures, "curves": suite.curves}
    named |= {"tuning.figure": (suite.tuning.figure,)} if suite.tuning.prompts else {}
    for key, name in [(key, name) for key, names in named.items() for name in names]:
        if name not in (known := all_figures()):
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise UserError(f"{key} must be figures of lods evaluate, got {name}; the nearest is {nearest}")
        if name in clip.FIGURES and key in ("curves", "tuning.figure"):
            raise UserError(f"{key} cannot be {name}: a CLIP judges the runs of the table alone, and each at its end")
        if name in clip.FIGURES and not suite.clip:
            raise UserError(f"{key} {name} is what a CLIP says: name its folder, clip: path/to/clip")


def figures_of(suite: Suite, rows: Rows) -> dict[str, str]:
    """The figures of the table, and what each means: those that the suite names, else all but that of tuning.

    Args:
        suite: the suite.
        rows: of a bench.

    Returns:
        {name: meaning} of those that some row has.
    """
    about = all_figures()
    apart = sorted({name for row in rows for name in row if name.startswith(SECONDS_ON)})
    names = suite.figures or tuple(name for name in about if name != suite.tuning.figure or not suite.tuning.prompts)
    names = tuple(each for name in names for each in ((name, *apart) if name == "seconds" else (name,)))
    about |= dict.fromkeys(apart, COSTS["seconds"])
    there = lambda name: any(values_of(rows, method, name) for method in suite.methods)  # noqa: E731
    return {name: about.get(name, name) for name in dict.fromkeys((suite.rank_by, *names)) if there(name)}


def is_cost(figure: str) -> bool:
    """Whether a figure says what a run cost."""
    return figure in COSTS or figure.startswith(SECONDS_ON)
