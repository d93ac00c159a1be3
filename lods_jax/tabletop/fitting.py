"""Fitting a network to an endless stream in sittings: state, optimizers, schedule, loop and checkpoint file.

Shared by the tabletop prior and its classifier. A sitting is bounded by wall-clock time, because that is what people have.
"""

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from lods_jax.core.files import replacing

CHECKPOINT = "checkpoint.safetensors"  # in the folder of what is trained
NO_SITTINGS = {"seconds": 0.0, "sittings": 0}  # meta before the first one


class Recipe(NamedTuple):
    """How a network is trained.

    Attributes:
        loss: (params, batch, key) -> (loss, {name: metric}).
        peak: learning rate.
        batch: rows per step.
        ema: decay of the moving average of the parameters, per step.
        reuse: times that a render is seen, on average.
    """

    loss: Callable
    peak: float
    batch: int
    ema: float
    reuse: float = 6.0


class Fit(NamedTuple):
    """The state of a network's training: data only.

    Attributes:
        params: parameters.
        ema: their moving average.
        opt: state of the optimizer.
        step: steps of this sitting.
        samples: rows seen in all sittings.
    """

    params: Any
    ema: Any
    opt: Any
    step: jax.Array
    samples: jax.Array


def _muon_axes(params):
    """Which axes of a kernel Muon treats as its input and output; None sends a leaf to Adam (first and last layers, vectors)."""

    def axes(path, leaf):
        names = [getattr(p, "key", "") for p in path]
        outer = {"conv_in", "conv_out", "quant_conv", "post_quant_conv"} & set(names)
        if names[-1] != "kernel" or outer:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), (leaf.ndim - 1,))

    return jax.tree_util.tree_map_with_path(axes, params)


def optimizer(name: str) -> optax.GradientTransformation:
    """An optimizer at unit learning rate: Muon (Jordan et al. 2024) on hidden kernels with updates of Adam's size, or AdamW.

    Args:
        name: "muon" or "adamw".

    Returns:
        An optax optimizer.

    Raises:
        ValueError: the name is another.
    """
    if name == "muon":
        muon = partial(optax.contrib.muon, consistent_rms=0.2, adam_b2=0.99, weight_decay=1e-3)
        return optax.chain(optax.clip_by_global_norm(1.0), muon(1.0, muon_weight_dimension_numbers=_muon_axes))
    if name == "adamw":
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1.0, b2=0.99, weight_decay=1e-3))
    raise ValueError(f"optimizer must be muon or adamw, got {name!r}")


def learning_rate(peak: float, step: int, done: float) -> float:
    """Warm-up over 60 steps, then constant, then linear to 2 % of the peak over the last fifth.

    Args:
        peak: the constant.
        step: of the sitting.
        done: share of the sitting, in [0, 1].

    Returns:
        The rate.
    """
    return peak * min(1.0, (step + 1) / 60) * min(1.0, 0.02 + 0.98 * max(0.0, 1 - done) / 0.2)


def make_step(recipe: Recipe, tx: optax.GradientTransformation) -> Callable:
    """One update of parameters and their moving average.

    Args:
        recipe: loss and decay.
        tx: optimizer.

    Returns:
        (fit, batch, key, lr) -> (fit, metrics), compiled; the fit is donated.
    """

    @partial(jax.jit, donate_argnums=0)
    def step(fit, batch, key, lr):
        key = jax.random.fold_in(key, fit.step)
        (_, metrics), grads = jax.value_and_grad(recipe.loss, has_aux=True)(fit.params, batch, key)
        updates, opt = tx.update(grads, fit.opt, fit.params)
        params = jax.tree.map(lambda p, u: p + lr * u, fit.params, updates)
        keep = jnp.minimum(recipe.ema, (1 + fit.step) / (10 + fit.step))
        average = optax.incremental_update(params, fit.ema, 1 - keep)
        return Fit(params, average, opt, fit.step + 1, fit.samples + len(batch[0])), metrics

    return step


def start(params: Any, tx: optax.GradientTransformation, samples: int = 0) -> Fit:
    """The state before the first step of a sitting.

    Args:
        params: parameters.
        tx: optimizer.
        samples: rows seen in former sittings.

    Returns:
        The state.
    """
    zero = jnp.zeros((), jnp.int32)
    return Fit(params, jax.tree.map(jnp.copy, params), tx.init(params), zero, zero + samples)


def train_for(
    name: str,
    recipe: Recipe,
    fit: Fit,
    batches: Iterator,
    seconds: float,
    seed: int,
    tx: optax.GradientTransformation,
    save: Callable[[Fit], None],
    every: float = 600.0,
) -> Fit:
    """One sitting, compilation included, on all devices.

    Args:
        name: of the progress bar.
        recipe: how to train.
        fit: the state.
        batches: of training data.
        seconds: length of the sitting.
        seed: of the noise.
        tx: optimizer.
        save: called now and then, and at the end.
        every: seconds between two calls.

    Returns:
        The last state.

    Raises:
        ValueError: the batch cannot be split evenly over the devices.
    """
    mesh = Mesh(jax.devices(), ("data",))
    spread, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    if recipe.batch % mesh.size:
        raise ValueError(f"the batch of {recipe.batch} does not divide over {mesh.size} devices")
    fit, key = jax.device_put((fit, jax.random.key(seed)), whole)
    step, key = make_step(recipe, tx), jax.random.fold_in(key, fit.samples)
    i, begin, saved = 0, time.monotonic(), 0.0
    with tqdm(total=round(seconds), unit="s", desc=name, bar_format="{l_bar}{bar}| {remaining} left{postfix}") as bar:
        while (elapsed := time.monotonic() - begin) < seconds:
            batch = jax.device_put(next(batches), spread)
            fit, metrics = step(fit, batch, key, learning_rate(recipe.peak, i, elapsed / seconds))
            i += 1
            if i % 20 == 0:
                numbers = {name: f"{float(x):.4g}" for name, x in metrics.items()}
                rate = i * recipe.batch / (time.monotonic() - begin)
                bar.set_postfix(numbers | {"samples": int(fit.samples), "per_s": f"{rate:.0f}"}, refresh=False)
                bar.update(min(round(elapsed), bar.total) - bar.n)
            if elapsed - saved > every:
                saved = elapsed
                save(fit)
        bar.update(bar.total - bar.n)
    save(fit)
    return fit


def save_checkpoint(path: Path, parts: dict[str, Fit], meta: dict) -> None:
    """Writes all parts into one safetensors file, float32. A kill never leaves half a file.

    Args:
        path: of the file.
        parts: {name: state}.
        meta: JSON value, kept in the header.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(parts)
    flat = {jax.tree_util.keystr(name, simple=True, separator="/"): np.asarray(x) for name, x in leaves}
    with replacing(path) as partial_file:
        save_file(flat, partial_file, {"meta": json.dumps(meta)})


def checkpoint_meta(path: Path) -> dict:
    """The meta of the checkpoint at a path."""
    with safe_open(path, framework="np") as file:
        return json.loads(file.metadata()["meta"])


def load_checkpoint(path: Path, like: dict[str, Fit]) -> tuple[dict[str, Fit], dict]:
    """Reads the parts that a checkpoint holds.

    Args:
        path: of the file.
        like: {name: state or its shapes}.

    Returns:
        {name: state} of those that the file holds, and its meta.

    Raises:
        ValueError: an array is missing or has another shape.
    """
    with safe_open(path, framework="np") as file:
        stored, meta = set(file.keys()), json.loads(file.metadata()["meta"])
        parts = {name: fit for name, fit in like.items() if any(key.startswith(f"{name}/") for key in stored)}
        leaves, treedef = jax.tree_util.tree_flatten_with_path(parts)
        values = []
        for name, leaf in leaves:
            key = jax.tree_util.keystr(name, simple=True, separator="/")
            value = file.get_tensor(key) if key in stored else None
            if value is None or value.shape != leaf.shape:
                found = "nothing" if value is None else value.shape
                raise ValueError(f"{path}: expected {key} of shape {leaf.shape}, found {found}; train into another folder")
            values.append(value)
    return jax.tree_util.tree_unflatten(treedef, values), meta


# --- sittings ---------------------------------------------------------------------------------------------------------------
def check_sitting(out: Path, minutes: float, resume: bool) -> Path:
    """Checks that a sitting may begin.

    Args:
        out: its folder.
        minutes: its length.
        resume: whether it continues from what `out` holds.

    Returns:
        The path of its checkpoint, which may not exist.

    Raises:
        ValueError: `minutes` is not positive, or `out` holds a checkpoint or weights and `resume` is not given.
    """
    if not minutes > 0:
        raise ValueError(f"minutes must be positive, got {minutes}")
    file = out / CHECKPOINT
    trained = "a checkpoint" if file.exists() else "weights" if any(out.glob("*/diffusion_pytorch_model*.safetensors")) else ""
    if trained and not resume:
        raise ValueError(f"{out} holds {trained} already; pass --resume to go on with it, or another --out")
    return file


def run_sitting(
    file: Path,
    part: str,
    recipe: Recipe,
    tx: optax.GradientTransformation,
    begun: tuple[Fit, dict],
    batches: Callable[[int], Iterator],
    minutes: float,
    seed: int,
    write: Callable[[Fit, dict], None],
    every: float = 600.0,
) -> None:
    """One sitting of a part that has a folder of its own, with its checkpoint.

    Args:
        file: the checkpoint, from `check_sitting`.
        part: its name in the checkpoint.
        recipe: how to train.
        tx: optimizer.
        begun: the state that the sitting begins with and its meta: `NO_SITTINGS` with a new one, or what `resume_part` gives.
        batches: seed -> training data.
        minutes: length, compilation included.
        seed: of the data, which is new in every sitting, and of the noise.
        write: (state, meta) -> None, writes the folder.
        every: seconds between two saves.
    """
    fit, meta = begun
    meta = meta | {"sittings": meta["sittings"] + 1}
    begin, before = time.monotonic(), meta["seconds"]

    def save(fit: Fit) -> None:
        meta["seconds"] = before + time.monotonic() - begin
        save_checkpoint(file, {part: fit}, meta)
        write(fit, meta | {"samples": int(fit.samples)})

    train_for(part, recipe, fit, batches(seed + 1000 * meta["sittings"]), 60 * minutes, seed, tx, save, every)


def resume_part(
    out: Path, part: str, tx: optax.GradientTransformation, new: Callable[[], Fit], averaged: Callable[[], Any]
) -> tuple[Fit, dict]:
    """The state that a former sitting left: its checkpoint, or the folder's averaged weights with a fresh optimizer.

    Args:
        out: the folder.
        part: its name in the checkpoint.
        tx: optimizer.
        new: gives the state before the first step, for its shapes.
        averaged: gives the parameters in the folder.

    Returns:
        The state and its meta.
    """
    if (file := out / CHECKPOINT).exists():
        fits, meta = load_checkpoint(file, {part: jax.eval_shape(new)})
        return fits[part], meta
    meta = json.loads((out / "training.json").read_text())
    return start(jax.tree.map(jnp.asarray, averaged()), tx, meta["samples"]), meta
