"""`lods compare`: runs side by side on one page, and the true object beside them where the world is tabletop."""

from collections.abc import Sequence
from pathlib import Path

from lods_jax.priors.registry import embedded_world
from lods_jax.runs.page import write_page
from lods_jax.runs.run_directory import read_run

FRAMES, SIZE = 24, 192  # of the true object


def compare(paths: Sequence[Path], out: Path) -> list[str]:
    """Writes a page with runs side by side, and the true object beside them for prompts of the tabletop world.

    Args:
        paths: folders of the runs.
        out: the HTML file.

    Returns:
        One line for each run that lacks something.
    """
    runs = [read_run(path) for path in paths]
    true_renders = embedded_world().true_renders
    frames = {prompt: true_renders(prompt, FRAMES, SIZE) for prompt in {run.config.prompt for run in runs}}
    return write_page(runs, out, {prompt: rgb for prompt, rgb in frames.items() if rgb is not None})
