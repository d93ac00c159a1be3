"""Trains the tabletop prior: an exact miniature of Stable Diffusion, from endless renders, in as many sittings as it takes.

First the VAE (Kingma and Welling 2014) on crops and then on whole images; its latents are brought to zero mean and unit variance
per channel inside its 1x1 convolutions, so that `scaling_factor` is 1. Then the text tower and the U-Net together by
v-prediction (Salimans and Ho 2022), timesteps stratified over the batch and drawn towards high noise, where shape and view are
decided. Weights are averaged over steps (EMA); the learning rate falls over the last fifth of a sitting.

OUT is a Stable Diffusion folder with the averaged weights, plus `checkpoint.safetensors` with everything in float32, from which
a sitting continues. Without the checkpoint a sitting continues from the folder's own weights with fresh optimizers: the
folder alone is what travels between machines.
"""

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lods_jax.core.images import grid, write_png
from lods_jax.priors import flax_networks as modules
from lods_jax.priors import tokenizer
from lods_jax.priors import torch_weights as convert
from lods_jax.tabletop.architectures import LATENT, LENGTH, Architecture, Networks, architecture, networks, size_of
from lods_jax.tabletop.dataset import WORDS, captions
from lods_jax.tabletop.denoising import sample_latents, unet_loss
from lods_jax.tabletop.fitting import (
    CHECKPOINT,
    Fit,
    Recipe,
    check_sitting,
    checkpoint_meta,
    load_checkpoint,
    optimizer,
    save_checkpoint,
    start,
    train_for,
)
from lods_jax.tabletop.prior_batches import decode, encode, in_chunks, unet_batches, vae_batches
from lods_jax.tabletop.streams import fresh_renders

PARTS = ("vae", "unet")
PREVIEW = (
    *("a red mug, side view", "a blue car, side view", "a green house, front view", "a yellow robot, front view"),
    *("a purple chair, front view", "a pink mushroom, front view", "an orange rocket, front view", "a white car, front view"),
    *("a blue snowman, front view", "a green striped mug, side view", "a red checkered ball", "a purple robot, back view"),
)


# --- losses ----------------------------------------------------------------------------------------------------------------
def vae_loss(nets: Networks, params, batch, key):
    """Squared and absolute error, error of edges, and a weak pull of the latents towards a unit Gaussian.

    Args:
        nets: the modules.
        params: of the VAE.
        batch: byte images.
        key: of the latents' noise.

    Returns:
        The loss, and metrics.
    """
    x = batch[0].astype(jnp.float32) / 127.5 - 1
    mean, logvar = modules.encode_moments(nets.vae, params, x)
    z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
    error = modules.decode_image(nets.vae, params, z) - x
    mse, kl = jnp.mean(error**2), 0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - 1 - logvar)
    # Differences of neighbours: +0.2 dB at 128 px, and sharper edges, at no cost in the encoder.
    edges = jnp.mean(jnp.abs(jnp.diff(error, axis=1))) + jnp.mean(jnp.abs(jnp.diff(error, axis=2)))
    return mse + 0.3 * (jnp.mean(jnp.abs(error)) + edges) + 1e-4 * kl, {"psnr": 10 * jnp.log10(4 / mse), "kl": kl}


# --- training -----------------------------------------------------------------------------------------------------------
def recipe_of(part: str, nets: Networks, batch: int | None = None) -> Recipe:
    """How a part is trained. A larger batch than the default is for accelerators, which train faster than they render.

    Args:
        part: "vae" or "unet".
        nets: the modules.
        batch: None for the default.

    Returns:
        The recipe.
    """
    loss, peak, usual, ema = {"vae": (vae_loss, 3e-3, 16, 0.995), "unet": (unet_loss, 2e-3, 64, 0.998)}[part]
    batch = batch or usual
    return Recipe(partial(loss, nets), peak, batch, ema, reuse=6.0 * max(1.0, batch / usual))


def new_fit(part: str, nets: Networks, tx: optax.GradientTransformation, seed: int) -> Fit:
    """Random parameters and an empty optimizer.

    Args:
        part: "vae" or "unet".
        nets: the modules.
        tx: optimizer.
        seed: of the parameters.

    Returns:
        The state before the first step.
    """
    key = jax.random.fold_in(jax.random.key(seed), PARTS.index(part))
    if part == "vae":
        return start(modules.init(nets.vae, key), tx)
    k_unet, k_text = jax.random.split(key)
    return start({"unet": modules.init(nets.unet, k_unet), "text": modules.init(nets.text, k_text)}, tx)


def normalize_latents(size: int, vae: Any, rgb: np.ndarray) -> Any:
    """The VAE whose latents of some images have zero mean and unit variance per channel, by an affine map in its 1x1 kernels.

    Args:
        size: edge of the images, pixels.
        vae: parameters.
        rgb: byte images [n h w 3].

    Returns:
        New parameters.
    """
    z = in_chunks(partial(encode, size, vae), rgb)
    z = z.reshape(-1, z.shape[-1])
    mu, sd = z.mean(0), z.std(0)
    quant, post = (jax.tree.map(np.asarray, vae[name]) for name in ("quant_conv", "post_quant_conv"))
    scale, shift = np.concatenate([1 / sd, np.ones_like(sd)]), np.concatenate([mu, 2 * np.log(sd)])
    # Means become (mean - mu) / sd, log variances logvar - 2 log sd; decoding undoes it.
    quant = {"kernel": quant["kernel"] * scale, "bias": (quant["bias"] - shift) * scale}
    post = {"kernel": post["kernel"] * sd[:, None], "bias": post["bias"] + mu @ post["kernel"][0, 0]}
    return vae | {"quant_conv": quant, "post_quant_conv": post}


def preview(out: Path, part: str, arch: Architecture, fit: Fit, vae: Any) -> None:
    """Writes a picture of where training is: true and decoded renders, or samples of fixed prompts and seeds at s = 3.

    Args:
        out: folder of the prior.
        part: "vae" or "unet", or "flow" of a U-Net of flow matching.
        arch: the architecture.
        fit: the state of the part.
        vae: parameters of the VAE.
    """
    size = arch.size
    if part == "vae":
        rgb = fresh_renders(jax.random.key(7), 0, size, split="unseen").rgb[:24]
        pairs = np.stack([rgb / 255, np.asarray(decode(size, fit.ema, encode(size, fit.ema, rgb)))], 1).reshape(-1, size, size, 3)
        picture = grid(pairs, 12)
    else:
        ids = tokenizer.tokenize(tokenizer.from_words(WORDS), [*PREVIEW, ""], LENGTH)
        null = np.repeat(ids[-1:], len(PREVIEW), 0)
        shape = (LATENT, LATENT, arch.unet["in_channels"])
        draw = partial(sample_latents, size, fit.ema, ids[:-1], null, s=3.0, shape=shape, steps=25, flow=part == "flow")
        rows = [draw(jax.random.key(k)) for k in range(3)]
        picture = grid(np.concatenate([np.asarray(decode(size, vae, z)) for z in rows]), len(PREVIEW))
    write_png(out / "samples" / f"{part}-{int(fit.samples):08d}.png", picture, scale=128 // size)


def train(
    out: Path,
    minutes: float,
    *,
    size: int | None = None,
    resume: bool = False,
    part: str = "all",
    name: str = "muon",
    batch: int | None = None,
    seed: int = 0,
) -> None:
    """Trains the prior's parts into a folder.

    Args:
        out: folder of the prior; made if it is not there.
        minutes: length of this sitting, compilation included.
        size: edge of the images, pixels, one of `ARCHITECTURES`; None for 128, or for what `out` holds when resuming.
        resume: whether to continue from what `out` holds; otherwise it must not hold a checkpoint.
        part: "vae", "unet", or "all": a fifth of the time for the VAE if it is new, the rest for the U-Net.
        name: of the optimizer, "muon" or "adamw".
        batch: images per step; None for 16 of the VAE and 64 of the U-Net, which suits a CPU.
        seed: of parameters, renders, noise and captions.

    Raises:
        ValueError: an argument is out of range, or does not fit what `out` holds.
    """
    if part not in ("all", *PARTS):
        raise ValueError(f"part must be all, {' or '.join(PARTS)}, got {part!r}")
    check_sitting(out, minutes, resume)
    tx = optimizer(name)
    arch, fits, meta = architecture(size or 128), {}, {"seconds": dict.fromkeys(PARTS, 0.0), "sittings": 0, "optimizer": name}
    if resume:
        arch, fits, meta = resume_from(out, tx, seed)
        if size not in (None, arch.size):
            raise ValueError(f"{out} holds a prior of {arch.size} px; pass --size {arch.size}, or another --out, got {size}")
    meta["size"] = arch.size
    fresh = part == "all" and "vae" not in fits
    budget = {"vae": 0.2, "unet": 0.8} if fresh else {"unet" if part == "all" else part: 1.0}
    meta["sittings"] += 1
    for name_of_part, share in budget.items():
        run_part(name_of_part, arch, out, fits, meta, 60 * minutes * share, tx, batch, seed)


def run_part(
    part: str,
    arch: Architecture,
    out: Path,
    fits: dict[str, Fit],
    meta: dict,
    seconds: float,
    tx: optax.GradientTransformation,
    batch: int | None,
    seed: int,
) -> None:
    """One sitting of one part; updates `fits`, `meta` and the files of the folder.

    Args:
        part: "vae" or "unet".
        arch: the architecture.
        out: folder of the prior.
        fits: {part: state}.
        meta: of the checkpoint.
        seconds: length of the sitting.
        tx: optimizer.
        batch: images per step, or None.
        seed: of parameters, renders and noise.

    Raises:
        ValueError: there is no VAE for the U-Net.
    """
    if part == "unet" and "vae" not in fits:
        raise ValueError(f"the U-Net learns latents, but {out} has no VAE; train --part vae or all first")
    nets = networks(arch.size)
    recipe, fit = recipe_of(part, nets, batch), fits.get(part) or new_fit(part, nets, tx, seed)
    stream_seed = seed + 1000 * meta["sittings"]  # a later sitting sees new renders
    begin, before = time.monotonic(), meta["seconds"][part]

    def save(fit):
        fits[part] = fit
        meta["seconds"][part] = before + time.monotonic() - begin
        save_checkpoint(out / CHECKPOINT, fits, meta)
        if "unet" in fits:
            counts = {"samples": {part: int(fit.samples) for part, fit in fits.items()}}
            write_folder(out, arch, {"vae": fits["vae"].ema, **fits["unet"].ema}, meta | counts)
        preview(out, part, arch, fit, fits["vae"].ema)

    if part == "unet":
        batches = unet_batches(arch, stream_seed, recipe, fits["vae"].ema)
        fits[part] = train_for(part, recipe, fit, batches, seconds, seed, tx, save)
        return
    # Two thirds of the time on crops, the rest on whole images.
    for crop, share in ((arch.crop, 2 / 3), (None, 1 / 3)):
        batches = vae_batches(arch.size, stream_seed + (crop or 0), recipe, crop)
        fit = train_for(part, recipe, fit, batches, seconds * share, seed, tx, save)
    rgb = fresh_renders(jax.random.key(seed), 10**6, arch.size).rgb
    params, ema = (normalize_latents(arch.size, p, rgb) for p in (fit.params, fit.ema))
    save(fit._replace(params=params, ema=ema))


def resume_from(out: Path, tx: optax.GradientTransformation, seed: int) -> tuple[Architecture, dict[str, Fit], dict]:
    """What a former sitting left: its checkpoint, or the folder's averaged weights with fresh optimizers.

    Args:
        out: folder of the prior.
        tx: optimizer.
        seed: of the parameters.

    Returns:
        The architecture, {part: state} and the meta.
    """
    file = out / CHECKPOINT
    if file.exists():
        arch = architecture(checkpoint_meta(file).get("size", 64))  # 64 px before there was a choice
        nets = networks(arch.size)
        like = {part: jax.eval_shape(lambda part=part: new_fit(part, nets, tx, seed)) for part in PARTS}
        return arch, *load_checkpoint(file, like)
    arch = architecture(size_of(out))
    shapes = {name: modules.shapes(module) for name, module in networks(arch.size)._asdict().items()}
    trees = {name: convert.to_flax(convert.read_state(out, name), shape) for name, shape in shapes.items()}
    meta = json.loads((out / "training.json").read_text())
    fits = {}
    for part, params in (("vae", trees["vae"]), ("unet", {"unet": trees["unet"], "text": trees["text"]})):
        # Step 0: the moments warm up, and the average starts from the weights that it already is.
        fits[part] = start(jax.tree.map(jnp.asarray, params), tx, meta["samples"][part])
    return arch, fits, meta


def write_folder(
    out: Path, arch: Architecture, weights: dict[str, Any], meta: dict, prediction_type: str = "v_prediction"
) -> None:
    """Writes averaged weights as a Stable Diffusion folder in float16, with `training.json` on how they came about.

    Args:
        out: folder of the prior.
        arch: the architecture.
        weights: {"vae", "unet", "text"}.
        meta: for `training.json`.
        prediction_type: of the U-Net.
    """
    configs = {"vae": arch.vae, "unet": arch.unet, "text": arch.text}
    # The prompts are what a refused prompt is answered with.
    vocabulary = {"words": list(WORDS), "prompts": [str(c) for c in captions("all")]}
    files = tokenizer.files(WORDS, LENGTH) | {
        "vocabulary.json": json.dumps(vocabulary, indent=2) + "\n",
        "training.json": json.dumps(meta, indent=2) + "\n",
    }
    convert.save_folder(out, configs, weights, files, prediction_type)
