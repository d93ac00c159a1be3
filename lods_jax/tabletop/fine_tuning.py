"""From the prior of single images to another one, with the same autoencoder and text tower: the sittings of every such part."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lods_jax.priors import flax_networks as modules
from lods_jax.priors import torch_weights as convert
from lods_jax.tabletop.architectures import Architecture, Networks, networks
from lods_jax.tabletop.fitting import NO_SITTINGS, Fit, Recipe, check_sitting, optimizer, resume_part, run_sitting, start
from lods_jax.tabletop.train_prior import write_folder

SAVE_EVERY = 120.0  # seconds; a sitting on an accelerator is short


class Task(NamedTuple):
    """What is trained.

    Attributes:
        part: its name, of the checkpoint and of its previews.
        arch: the architecture of the prior that it begins from, which its data has.
        becomes: the architecture of its own folder.
        nets: its modules.
        recipe: how it is trained.
        batches: (arch, seed, recipe, parameters of the autoencoder) -> training data.
        preview: (out, arch, fit, parameters of the autoencoder) -> None, writes a picture of where training is.
        begin: {"unet", "text"} of the prior -> those before the first step.
        prediction_type: of its U-Net.
    """

    part: str
    arch: Architecture
    becomes: Architecture
    nets: Networks
    recipe: Recipe
    batches: Callable[..., Iterator]
    preview: Callable[..., None]
    begin: Callable[[dict[str, Any]], dict[str, Any]] = lambda params: params
    prediction_type: str = "v_prediction"


def recipe_of(loss: Callable, batch: int | None = None) -> Recipe:
    """How a part that goes on from the prior is trained: at half the learning rate of the prior's own training.

    Args:
        loss: as of `Recipe`.
        batch: images per step; None for 64, which suits a CPU.

    Returns:
        The recipe.
    """
    batch = batch or 64
    return Recipe(loss, peak=1e-3, batch=batch, ema=0.998, reuse=6.0 * max(1.0, batch / 64))


def fine_tune(
    task: Task, out: Path, minutes: float, prior: Path, *, resume: bool = False, name: str = "muon", seed: int = 0
) -> None:
    """One sitting.

    Args:
        task: what is trained.
        out: folder of the result.
        minutes: length of this sitting, compilation included.
        prior: folder of the tabletop prior, whose autoencoder it shares and whose U-Net it starts from.
        resume: whether to continue from what `out` holds.
        name: of the optimizer, "muon" or "adamw".
        seed: of renders and noise.

    Raises:
        ValueError: an argument is out of range, or `out` holds a checkpoint and `resume` is not given.
    """
    file, tx = check_sitting(out, minutes, resume), optimizer(name)
    vae = convert.to_flax(convert.read_state(prior, "vae"), modules.shapes(networks(task.arch.size).vae))

    def write(fit: Fit, meta: dict) -> None:
        about = meta | {"optimizer": name, "size": task.arch.size}
        write_folder(out, task.becomes, {"vae": vae, **fit.ema}, about, task.prediction_type)
        task.preview(out, task.arch, fit, vae)

    begun = former_fit(task, tx, prior, out) if resume else (first_fit(task, tx, prior), NO_SITTINGS)
    batches = lambda seed: task.batches(task.arch, seed, task.recipe, vae)  # noqa: E731
    run_sitting(file, task.part, task.recipe, tx, begun, batches, minutes, seed, write, SAVE_EVERY)


def first_fit(task: Task, tx: optax.GradientTransformation, prior: Path) -> Fit:
    """The state before the first step.

    Args:
        task: what is trained.
        tx: optimizer.
        prior: folder of the tabletop prior.

    Returns:
        The state.
    """
    return start(jax.tree.map(jnp.asarray, task.begin(averaged(prior, networks(task.arch.size)))), tx)


def former_fit(task: Task, tx: optax.GradientTransformation, prior: Path, out: Path) -> tuple[Fit, dict]:
    """The state that a former sitting left, see `fitting.resume_part`.

    Args:
        task: what is trained.
        tx: optimizer.
        prior: folder of the tabletop prior.
        out: folder of the result.

    Returns:
        The state and its meta.
    """
    return resume_part(out, task.part, tx, partial(first_fit, task, tx, prior), lambda: averaged(out, task.nets))


def averaged(folder: Path, nets: Networks) -> dict[str, Any]:
    """The parameters of U-Net and text tower in a folder.

    Args:
        folder: of a prior.
        nets: its modules.

    Returns:
        {"unet", "text"}.
    """
    return {
        name: convert.to_flax(convert.read_state(folder, name), modules.shapes(getattr(nets, name))) for name in ("unet", "text")
    }
