"""`lods evaluate`: the figures of finished and half-finished runs, as a table and as JSON."""

import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lods_jax.core.errors import UserError, tell
from lods_jax.core.files import is_regular
from lods_jax.core.statistics import bootstrap, interquartile_mean
from lods_jax.distillation.registry import is_code
from lods_jax.priors import clip as clips
from lods_jax.priors.registry import embedded_world
from lods_jax.runs.artifacts import SceneRenderer, output_views, scene_renderer
from lods_jax.runs.page import FIGURES_FILE, write_page
from lods_jax.runs.restore import restore_scene
from lods_jax.runs.run_directory import Run, is_figure, read_run, write_json
from lods_jax.training.build import objective_of, orbit_of, predictions_per_view, scene_setup
from lods_jax.training.run_inputs import SOURCE, source_object
from lods_jax.training.scene_setups import SceneSetup, state_of_scene, unstack_particles

VIEWS = 120  # that CLIP sees
COSTS = {
    "gaussians": "Gaussians at the end",
    "samples": "samples of the field that a view needed at the end",
    "seconds": "seconds of optimisation, without compilation",
    "predictions": "noise predictions that the prior made, in thousands",
    "psi_displacement": "root mean square by which the learned branch moved",
    "fit_gain": "by how much it denoises the renders better than before",
}


def evaluate(run: Run, newest: int | None = None) -> dict[str, Any]:
    """All figures of a run at its newest checkpoint, means over its particles.

    Args:
        run: the run.
        newest: the last step to look at; None for the newest. Costs are those of the end in any case.

    Returns:
        A row; its `missing` is one line on what cannot be measured.
    """
    row = {"run": str(run.path), "prompt": run.config.prompt, "objective": run.config.objective.name, "end": run.end}
    row |= {"s": run.config.objective.guidance_scale, "prior": run.config.prior.name, "seed": run.config.seed, "step": run.step}
    row |= costs(run)
    try:
        scene = restore_scene(run, newest)
    except ValueError as error:
        return row | {"missing": f"no checkpoint to measure: {error}"}
    theta, aux = scene["theta"], scene["aux"]
    row["step"] = int(scene["step"])
    kind, render_fn, world = scene_setup(run.config), shared_renderer(run), embedded_world()
    row |= kind.count(aux)
    try:
        figures = [
            world.measure(run.config.prompt, partial(render_fn, theta, aux), *kind.mass(theta, aux))
            for theta, aux in zip(unstack_particles(theta, kind.particles), unstack_particles(aux, kind.particles), strict=True)
        ]
    except ValueError as error:  # a prompt of another world: there is no truth to compare with
        return row | {"missing": f"no figures against the truth: {error}"}
    row |= {name: float(np.mean([one[name] for one in figures])) for name in world.figures}
    return row | edit_figures(run, kind, theta, aux) if run.config.edit.run else row


def edit_figures(run: Run, setup: SceneSetup, theta: Any, aux: Any) -> dict[str, Any]:
    """What the edit of an object changed and what it left, beside the copy of the object in the folder of the edit.

    Args:
        run: the edit.
        setup: of its scene.
        theta: its parameters.
        aux: its other arrays.

    Returns:
        Part of a row; its `missing` says why there are no such figures.
    """
    world, looks = embedded_world(), shared_renderer(run)
    if not (run.path / SOURCE).is_dir():  # the other run may be anywhere, and no folder is told to be read
        return {"missing": f"no figures of the edit: {run.path / SOURCE} is gone"}
    try:
        before = source_object("", run.path, state_of_scene(setup, run.config.resolution))
        scenes = (partial(looks, *scene) for scene in ((theta, aux), before))
        return world.measure_edit(run.config.source_prompt, run.config.prompt, *scenes)
    except (ValueError, UserError) as error:
        return {"missing": f"no figures of the edit: {error}"}


def clip_figures(run: Run, clip: clips.Clip, prompts: Sequence[str]) -> dict[str, float]:
    """The figures of CLIP of a run at its newest checkpoint, over VIEWS evenly spaced views, means over its particles.

    Args:
        run: the run.
        clip: from `priors.clip.load_clip`.
        prompts: of the set, for R-precision.

    Returns:
        {figure: value}; empty if there is nothing to look at.
    """
    try:
        scene = restore_scene(run)
    except ValueError:
        return {}
    render_fn, particles = shared_renderer(run, clip.size), run.config.particles
    camera = output_views(run.config, orbit_of(run.config.camera), VIEWS)
    scenes = zip(*(unstack_particles(scene[name], particles) for name in ("theta", "aux")), strict=True)
    found = [clips.judge(clip, render_fn(theta, aux, camera).rgb, run.config.prompt, prompts) for theta, aux in scenes]
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


_RENDERERS: dict[str, SceneRenderer] = {}  # by what a compiled render depends on


def shared_renderer(run: Run, size: int | None = None) -> SceneRenderer:
    """A renderer of a run; runs with the same scene settings share its compilation.

    Args:
        run: the run.
        size: edge of its renders, pixels; None for that of the world's figures.

    Returns:
        From `artifacts.scene_renderer`.
    """
    size = size or embedded_world().measured_size
    c = run.config
    # The 3D filter of Gaussians is as wide as a pixel of training: it depends on the camera and on the resolutions.
    key = repr((c.scene, c.gaussians, c.nerf, c.camera, c.resolution, c.resolution_after, c.particles, size))
    if key not in _RENDERERS:
        _RENDERERS[key] = scene_renderer(scene_setup(run.config), size)
    return _RENDERERS[key]


def costs(run: Run) -> dict[str, Any]:
    """The costs of a run, and what its learned branch did, from its log. The objective that a run names is never imported.

    Args:
        run: the run.

    Returns:
        Part of a row.
    """
    last, config = run.metrics[-1] if run.metrics else {}, run.config
    asked = run.note.get("predictions_per_view")  # which run.json did not always hold
    if not is_figure(asked) and not is_code(config.objective.name):
        asked = predictions_per_view(config, objective_of(config))
    before = config.image.invert * config.image.invert_batch if config.image.invert else 0
    row = {"seconds": last.get("seconds")}
    row |= {"predictions": (asked * config.batch * run.step + before) / 1000} if is_figure(asked) else {}
    return row | {name: last[name] for name in ("psi_displacement", "fit_gain") if name in last}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as aligned text: a line per figure, a column per run, and what the figure means.

    Args:
        rows: from `evaluate`.

    Returns:
        The text.
    """
    about = embedded_world().all_figures | clips.FIGURES | COSTS
    names = [name for name in about if any(is_number(row.get(name)) for row in rows)]
    heads = [Path(row["run"]).name for row in rows]
    body = [["objective", *(label(row) for row in rows)], ["prompt", *(row["prompt"] for row in rows)]]
    body += [[name, *(format_number(row.get(name)) for row in rows), about[name]] for name in names]
    lines = [[*line, ""] if len(line) == len(rows) + 1 else line for line in [["", *heads], *body]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def label(row: Mapping[str, Any]) -> str:
    """The objective and guidance scale of a row.

    Examples:
        >>> label({"objective": "sds", "s": 7.5})
        'sds s=7.5'
    """
    return row["objective"] + (f" s={row['s']:g}" if row.get("s") is not None else "")


def is_number(x: Any) -> bool:
    """Whether x is a number, and not NaN."""
    return isinstance(x, int | float) and not math.isnan(x)


def format_number(x: Any) -> str:
    """A number x with three digits; a dash for anything else.

    Examples:
        >>> format_number(0.12345), format_number(None)
        ('0.123', '-')
    """
    if not is_number(x):
        return "-"
    return str(x) if isinstance(x, int) else f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}"


def cell(x: np.ndarray) -> str:
    """Interquartile mean of some runs and its bootstrap interval, as text.

    Args:
        x: a figure of n runs [n]; NaN for a run in which it has no meaning.

    Returns:
        "mean (low to high)" of the runs in which it has one, or a dash without any.
    """
    x = x[~np.isnan(x)]
    if not len(x):
        return "-"
    low, high = bootstrap(x)
    return f"{format_number(interquartile_mean(x))} ({format_number(low)} to {format_number(high)})"


def report(paths: Sequence[Path], out: Path | None, clip: clips.Clip | None = None, prompts: Sequence[str] = ()) -> None:
    """Prints the table of some runs, and a line for each that lacks something. Each keeps its row, and shows it on its page.

    Args:
        paths: folders of the runs.
        out: a JSON file for the rows, or None.
        clip: judges the runs too, by its own figures.
        prompts: that R-precision compares with, beside those of the runs.
    """
    runs = [read_run(path) for path in paths]
    names = [*(run.config.prompt for run in runs), *prompts]
    rows = [evaluate(run) | ({} if clip is None else clip_figures(run, clip, names)) for run in runs]
    tell(table(rows))
    for run, row in zip(runs, plain(rows), strict=True):
        keep_row(run, row)
    for row in rows:
        if "missing" in row:
            tell(f"{row['run']}: {row['missing']} ({row['end']})")
    if out:
        write_json(out, plain(rows))
        figures = {name for row in rows for name in embedded_world().all_figures | clips.FIGURES if name in row}
        tell(f"{out}: {len(rows)} runs, {len(figures)} figures")


def keep_row(run: Run, row: Mapping[str, Any]) -> None:
    """Writes a row into the folder of its run, and the page of the run anew. A folder that cannot be written to is left as it is.

    Args:
        run: the run.
        row: from `evaluate`, as strict JSON has it.
    """
    file = run.path / FIGURES_FILE
    try:
        if os.path.lexists(file) and not is_regular(file):
            raise OSError(f"{file} is no regular file")  # a link of a foreign folder may lead anywhere
        write_json(file, row)
        if is_regular(run.path / "index.html"):
            write_page([run], run.path / "index.html")
    except OSError as error:
        tell(f"{run.path}: its page does not show the figures: {error}")


def plain(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows as strict JSON has them: null in place of NaN."""
    return [{k: None if isinstance(x, float) and not math.isfinite(x) else x for k, x in row.items()} for row in rows]
