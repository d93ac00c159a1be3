"""Paths of the data that is shipped with the package."""

import tempfile
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
WEIGHTS = PACKAGE / "tabletop" / "weights"
TABLETOP = WEIGHTS / "128"  # the shipped prior
TABLETOP_VIEWS = WEIGHTS / "128-views"  # the same for four views together, stored as the difference to it
TABLETOP_64 = WEIGHTS / "64"  # the one before it, in which runs from before go on
TABLETOP_POSE = TABLETOP_64 / "pose"  # the Zero-1-to-3 prior; it has an autoencoder of its own
CLASSIFIER = WEIGHTS / "classifier.safetensors"
PRESETS = PACKAGE / "config" / "presets"  # a link to configs/ in a checkout, a folder in a wheel
SUITES = PRESETS / "bench"  # of `lods bench`


@cache
def cache_folder() -> Path:
    """Where the package keeps what it can make again: below the home, or for a user without one in a new temporary folder."""
    try:
        return Path.home() / ".cache" / "lods_jax"
    except RuntimeError:
        return Path(tempfile.mkdtemp(prefix="lods_jax-"))


def figures_folder(prior: Path) -> Path:
    """Where the figures of a prior are written: beside its weights, and below outputs/ for shipped ones, which stay as they are.

    Args:
        prior: its folder.

    Returns:
        A folder, which need not exist.
    """
    shipped = prior.resolve().is_relative_to(WEIGHTS.resolve())
    return Path("outputs", f"prior-{prior.name}") if shipped else prior
