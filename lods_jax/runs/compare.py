"""`lods compare`: runs side by side on one page, and the true object beside them where the world is tabletop."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from lods_jax.core.cameras import TABLETOP
from lods_jax.runs.artifacts import turntable_cameras
from lods_jax.runs.page import write_page
from lods_jax.runs.run_directory import read_run
from lods_jax.tabletop.dataset import parse_caption, render_caption

FRAMES, SIZE = 24, 192  # of the true object


def compare(paths: Sequence[Path], out: Path) -> list[str]:
    """Writes the page; returns one line for each run that is missing something."""
    runs = [read_run(path) for path in paths]
    truths = {prompt: frames for prompt in {run.config.prompt for run in runs} if (frames := truth(prompt)) is not None}
    return write_page(runs, out, truths)


def truth(prompt: str) -> Float[np.ndarray, "n h w 3"] | None:
    """The true object of a prompt from equal azimuths, from the front on; None for a prompt of another world."""
    try:
        caption = parse_caption(prompt)
    except ValueError:
        return None
    return np.asarray(render_caption(caption._replace(view=None), turntable_cameras(TABLETOP, FRAMES), SIZE))[..., :3]
