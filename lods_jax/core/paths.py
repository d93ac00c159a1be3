"""Paths of the data that is shipped with the package."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
TABLETOP = PACKAGE / "tabletop" / "weights"  # the shipped prior
PRESETS = PACKAGE / "config" / "presets"  # a link to configs/ in a checkout, a folder in a wheel
