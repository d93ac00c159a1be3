"""What is known of the tabletop world, as `priors.registry.World` asks for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from lods_jax.core.cameras import TABLETOP as ORBIT
from lods_jax.core.cameras import VIEWS, turntable
from lods_jax.core.cutouts import framed, over
from lods_jax.core.errors import UserError
from lods_jax.core.paths import TABLETOP, TABLETOP_VIEWS, figures_folder
from lods_jax.priors.registry import World
from lods_jax.tabletop import (
    evaluate,
    evaluate_multi_view,
    fine_tuning,
    train_classifier,
    train_flow,
    train_multi_view,
    train_pose,
    train_prior,
)
from lods_jax.tabletop.classifier import NONE, SIZE, classify, load_classifier
from lods_jax.tabletop.dataset import Caption, parse_caption, render_caption
from lods_jax.tabletop.measure import EDIT_FIGURES, FIGURES, measure, measure_edit
from lods_jax.tabletop.objects import COLORS, COMPOSITE, KINDS, PATTERNS
from lods_jax.tabletop.reward import classifier_judge


def names_views(prompt: str) -> bool:
    """Whether prompts of an object name the view: not for one that looks alike from all sides.

    Args:
        prompt: of a run.

    Returns:
        True also for a prompt of another world.
    """
    try:
        return parse_caption(prompt).kind in COMPOSITE
    except ValueError:
        return True


def read_image(rgba: Float[np.ndarray, "n n 4"]) -> tuple[str | None, str | None]:
    """Caption and view that the classifier reads in an image.

    Args:
        rgba: [n n 4] in [0, 1].

    Returns:
        The caption, None for no object; and the view of a kind with a front, else None.
    """
    seen = classify(load_classifier(), over(framed(rgba, SIZE), 1.0)[None].astype(np.float32))
    if seen.kind[0] == NONE:
        return None, None
    caption = Caption(KINDS[seen.kind[0]], list(COLORS)[seen.color[0]], PATTERNS[seen.pattern[0]])
    return str(caption), VIEWS[seen.view[0]] if caption.kind in COMPOSITE else None


def true_renders(prompt: str, n: int, size: int) -> Float[np.ndarray, "n size size 3"] | None:
    """The true object of a caption at equal azimuths, from the front on.

    Args:
        prompt: of a run.
        n: number of views.
        size: edge of the renders, pixels.

    Returns:
        [n size size 3] in [0, 1]; None for a prompt of another world.
    """
    try:
        caption = parse_caption(prompt)
    except ValueError:
        return None
    farthest = ORBIT._replace(extent=(ORBIT.extent[1],) * 2)
    return np.asarray(render_caption(caption._replace(view=None), turntable(n, orbit=farthest), size))[..., :3]


def train(
    out: Path,
    minutes: float,
    *,
    part: str = "all",
    size: int | None = None,
    batch: int | None = None,
    resume: bool = False,
    optimizer: str = "muon",
    seed: int = 0,
    measure_gates: bool = False,
) -> None:
    """Trains a part of the prior, measures its gates, or both (`lods train-prior`).

    Args:
        out: folder of the prior.
        minutes: length of this sitting; 0 trains nothing.
        part: "all", "vae", "unet", "multiview", "flow", "pose" or "classifier".
        size: edge of the images, pixels; None for the default.
        batch: images per step; None for the default.
        resume: whether to continue from what `out` holds.
        optimizer: "muon" or "adamw".
        seed: of parameters and renders.
        measure_gates: whether to measure.

    Raises:
        UserError: the part takes no such setting, or there is no such prior to measure.
    """
    check_settings(part, {"size": size, "batch": batch, "optimizer": None if optimizer == "muon" else optimizer})
    if minutes:
        if part == "classifier":
            path = out / "classifier.safetensors"
            train_classifier.train_classifier(path, minutes, resume=resume, batch=batch or 64, seed=seed)
        elif part in ("multiview", "flow", "pose"):
            prior = out if (out / "model_index.json").is_file() else TABLETOP
            options = {"resume": resume, "name": optimizer, "seed": seed}
            if part == "pose":
                train_pose.train(out / "pose", minutes, prior, **options)
            else:
                flow = part == "flow"
                task = train_flow.task_of(prior, batch) if flow else train_multi_view.task_of(prior, batch, seed)
                fine_tuning.fine_tune(task, out / part, minutes, prior, **options)
        else:
            train_prior.train(out, minutes, size=size, resume=resume, part=part, name=optimizer, batch=batch, seed=seed)
    if measure_gates:
        reports = {"pose": train_pose.report, "multiview": evaluate_multi_view.report, "flow": evaluate.report}
        shipped = part == "multiview" and out == TABLETOP  # it lies beside the prior that it is a difference to
        measured = TABLETOP_VIEWS if shipped else out / part if part in reports else out
        if part in reports and not (measured / "unet").is_dir():
            raise UserError(f"there is no prior {measured} to measure: train one by --part {part}, or name its folder by --out")
        reports.get(part, evaluate.report)(measured, figures_folder(measured))


def check_settings(part: str, given: Mapping[str, Any]) -> None:
    """Checks that a part of the prior takes the settings that are given.

    Args:
        part: of `train`.
        given: {name: value}, None for one that is not given.

    Raises:
        UserError: it does not.
    """
    fixed = {
        "multiview": {"size": "it has that of the prior that it goes on from"},
        "flow": {"size": "it has that of the prior that it goes on from"},
        "pose": {"size": "it has that of the prior that it goes on from", "batch": "it has one of its own"},
        "classifier": {"size": "it has one of its own", "optimizer": "it has one of its own"},
    }
    for name, why in fixed.get(part, {}).items():
        if given[name] is not None:
            raise UserError(f"--{name} is not for --part {part}, got {given[name]}: leave it out, {why}")


WORLD = World(names_views, read_image, FIGURES, measure, SIZE, true_renders, train, classifier_judge, EDIT_FIGURES, measure_edit)
