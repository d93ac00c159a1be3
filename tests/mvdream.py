"""A whole folder with a tiny random MVDream: its U-Net is `tests/data/mvdream`, the rest is that of `tests/data/lods_parity`."""

import shutil
from pathlib import Path

DATA = Path(__file__).resolve().parent / "data"


def make_folder(folder: Path) -> Path:
    """Puts the folder together."""
    shutil.copytree(DATA / "lods_parity" / "sd", folder, ignore=shutil.ignore_patterns("unet"))
    shutil.copytree(DATA / "mvdream" / "unet", folder / "unet")
    return folder
