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
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lods_jax.core.images import grid, write_png
from lods_jax.core.noise_schedule import STABLE_DIFFUSION, T, add_noise, v_to_eps, velocity
from lods_jax.priors import flax_networks as modules
from lods_jax.priors import tokenizer
from lods_jax.priors import torch_weights as convert
from lods_jax.priors.ddim import ddim
from lods_jax.priors.sampling import CLIP
from lods_jax.tabletop.architectures import LATENT, LENGTH, Architecture, Networks, architecture, networks, size_of
from lods_jax.tabletop.dataset import COLORS, KINDS, PATTERNS, VIEWS, WORDS, Caption, captions
from lods_jax.tabletop.fitting import Fit, Recipe, checkpoint_meta, load_checkpoint, optimizer, save_checkpoint, start, train_for
from lods_jax.tabletop.objects import COMPOSITE
from lods_jax.tabletop.streams import ahead, fresh_renders, pool_batches

PARTS = ("vae", "unet")
PREVIEW = (
    *("a red mug, side view", "a blue car, side view", "a green house, front view", "a yellow robot, front view"),
    *("a purple chair, front view", "a pink mushroom, front view", "an orange rocket, front view", "a white car, front view"),
    *("a blue snowman, front view", "a green striped mug, side view", "a red checkered ball", "a purple robot, back view"),
)


# --- losses ----------------------------------------------------------------------------------------------------------------
def vae_loss(nets: Networks, params, batch, key):
    """Error in squares, absolutes and edges, and a weak pull of the latents towards a unit Gaussian. Images are bytes."""
    x = batch[0].astype(jnp.float32) / 127.5 - 1
    mean, logvar = modules.encode_moments(nets.vae, params, x)
    z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
    error = modules.decode_image(nets.vae, params, z) - x
    mse, kl = jnp.mean(error**2), 0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - 1 - logvar)
    # Differences of neighbours: +0.2 dB at 128 px, and sharper edges, at no cost in the encoder.
    edges = jnp.mean(jnp.abs(jnp.diff(error, axis=1))) + jnp.mean(jnp.abs(jnp.diff(error, axis=2)))
    return mse + 0.3 * (jnp.mean(jnp.abs(error)) + edges) + 1e-4 * kl, {"psnr": 10 * jnp.log10(4 / mse), "kl": kl}


def predict_v(nets: Networks, params, z_t, t, ids):
    """Velocity predicted by the pair of U-Net and text tower for token ids [b n]."""
    tokens = modules.encode_text(nets.text, params["text"], ids)
    return modules.predict_noise(nets.unet, params["unet"], z_t, t, tokens)


def unet_loss(nets: Networks, params, batch, key):
    """Mean-squared error of the velocity; one timestep from each of b equal strata, density growing as sqrt(t)."""
    z, ids = batch
    k_t, k_noise = jax.random.split(key)
    u = (jnp.arange(len(z)) + jax.random.uniform(k_t, (len(z),))) / len(z)
    t = jnp.minimum(T * u ** (2 / 3), T - 1).astype(jnp.int32)
    noise = jax.random.normal(k_noise, z.shape)
    z_t = add_noise(STABLE_DIFFUSION, z, noise, t)
    mse = jnp.mean((predict_v(nets, params, z_t, t, ids) - velocity(STABLE_DIFFUSION, z, noise, t)) ** 2)
    return mse, {"loss": mse}


# --- data ---------------------------------------------------------------------------------------------------------------
@partial(jax.jit, static_argnums=0)
def encode(size: int, vae: Any, rgb: Any) -> jax.Array:
    """Latent means [n h w 4] of byte images."""
    return modules.encode_moments(networks(size).vae, vae, rgb.astype(jnp.float32) / 127.5 - 1)[0]


@partial(jax.jit, static_argnums=0)
def decode(size: int, vae: Any, z: jax.Array) -> jax.Array:
    """Images in [0, 1]."""
    return modules.decode_image(networks(size).vae, vae, z) / 2 + 0.5


def in_chunks(f: Callable, x: np.ndarray, size: int = 56) -> np.ndarray:
    """f over rows of x in chunks of one size, so that it compiles once; the last chunk is padded."""
    padded = np.concatenate([x, np.repeat(x[-1:], -len(x) % size, 0)])
    return np.concatenate([np.asarray(f(padded[i : i + size])) for i in range(0, len(padded), size)])[: len(x)]


def caption_ids() -> tuple[np.ndarray, np.ndarray]:
    """Token ids of every caption [kind, colour, pattern, view, LENGTH], the last colour and view meaning none; and of no text."""
    colors, views = (*COLORS, None), (*VIEWS, None)
    texts = [str(Caption(*c)) for c in product(KINDS, colors, PATTERNS, views)]
    ids = tokenizer.tokenize(tokenizer.from_words(WORDS), [*texts, ""], LENGTH)
    return ids[:-1].reshape(len(KINDS), len(colors), len(PATTERNS), len(views), LENGTH), ids[-1]


def draw_captions(rng: np.random.Generator, labels: np.ndarray, table: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """Training captions of labelled renders: 10 % empty for guidance, 5 % without colour and pattern, 10 % without view."""
    kind, color, pattern, view = labels.T
    u, w = rng.random(len(labels)), rng.random(len(labels))
    bare = u < 0.05
    no_view = (w < 0.10) | ~np.isin(kind, [KINDS.index(k) for k in COMPOSITE])
    ids = table[kind, np.where(bare, len(COLORS), color), np.where(bare, 0, pattern), np.where(no_view, len(VIEWS), view)]
    return np.where((u > 0.90)[:, None], empty, ids)


def vae_batches(size: int, seed: int, recipe: Recipe, crop: int | None) -> Iterator[tuple[np.ndarray]]:
    """Byte images, or random crops of them: an edge seen in a crop teaches as much as in a whole image and costs a quarter."""
    rng = np.random.default_rng([seed, 1])
    draw = ahead(lambda i: fresh_renders(jax.random.key(seed), i, size)[:1])
    for (rgb,) in pool_batches(draw, capacity=8192, batch=recipe.batch, reuse=recipe.reuse, seed=seed):
        if crop is None:
            yield (rgb,)
            continue
        # Crops from the middle, where the objects are.
        corners = rng.integers(2, size - crop - 1, (len(rgb), 2))
        yield (np.stack([x[i : i + crop, j : j + crop] for x, (i, j) in zip(rgb, corners, strict=True)]),)


def unet_batches(arch: Architecture, seed: int, recipe: Recipe, vae: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Latents of fresh renders with token ids of a caption drawn anew each time."""
    rng = np.random.default_rng([seed, 2])
    table, empty = caption_ids()

    def draw(i):
        renders = fresh_renders(jax.random.key(seed), i, arch.size)
        return in_chunks(partial(encode, arch.size, vae), renders.rgb), renders.labels

    for z, labels in pool_batches(ahead(draw), capacity=24_000, batch=recipe.batch, reuse=recipe.reuse, seed=seed):
        yield z, draw_captions(rng, labels, table, empty)


# --- training -----------------------------------------------------------------------------------------------------------
def recipe_of(part: str, nets: Networks, batch: int | None = None) -> Recipe:
    """How a part is trained. A larger batch than the default is for accelerators, which train faster than they render."""
    loss, peak, usual, ema = {"vae": (vae_loss, 3e-3, 16, 0.995), "unet": (unet_loss, 2e-3, 64, 0.998)}[part]
    batch = batch or usual
    return Recipe(partial(loss, nets), peak, batch, ema, reuse=6.0 * max(1.0, batch / usual))


def new_fit(part: str, nets: Networks, tx: optax.GradientTransformation, seed: int) -> Fit:
    """Random parameters and an empty optimizer."""
    key = jax.random.fold_in(jax.random.key(seed), PARTS.index(part))
    if part == "vae":
        return start(modules.init(nets.vae, key), tx)
    k_unet, k_text = jax.random.split(key)
    return start({"unet": modules.init(nets.unet, k_unet), "text": modules.init(nets.text, k_text)}, tx)


def normalize_latents(size: int, vae: Any, rgb: np.ndarray) -> Any:
    """The VAE whose latents of `rgb` have zero mean and unit variance per channel, by an affine map in its 1x1 kernels."""
    z = in_chunks(partial(encode, size, vae), rgb)
    z = z.reshape(-1, z.shape[-1])
    mu, sd = z.mean(0), z.std(0)
    quant, post = (jax.tree.map(np.asarray, vae[name]) for name in ("quant_conv", "post_quant_conv"))
    scale, shift = np.concatenate([1 / sd, np.ones_like(sd)]), np.concatenate([mu, 2 * np.log(sd)])
    # Means become (mean - mu) / sd, log variances logvar - 2 log sd; decoding undoes it.
    quant = {"kernel": quant["kernel"] * scale, "bias": (quant["bias"] - shift) * scale}
    post = {"kernel": post["kernel"] * sd[:, None], "bias": post["bias"] + mu @ post["kernel"][0, 0]}
    return vae | {"quant_conv": quant, "post_quant_conv": post}


@partial(jax.jit, static_argnames=("size", "shape", "steps"))
def sample_latents(
    size: int, params: Any, ids: jax.Array, null: jax.Array, key: jax.Array, s: float, shape: tuple[int, ...], steps: int
) -> jax.Array:
    """DDIM samples [b h w c] of token ids with classifier-free guidance."""
    nets = networks(size)

    def predict(z_t, t, cond):
        return v_to_eps(STABLE_DIFFUSION, modules.predict_noise(nets.unet, params["unet"], z_t, t, cond.tokens), z_t, t)

    tokens, nothing = (modules.encode_text(nets.text, params["text"], x) for x in (ids, null))
    z_T = jax.random.normal(key, (len(ids), *shape))
    return ddim(predict, z_T, tokens, nothing, STABLE_DIFFUSION, s=s, steps=steps, clip=CLIP)


def preview(out: Path, part: str, arch: Architecture, fit: Fit, vae: Any) -> None:
    """A picture of where training is: true and decoded renders, or samples of fixed prompts and seeds at s = 3."""
    size = arch.size
    if part == "vae":
        rgb = fresh_renders(jax.random.key(7), 0, size, split="unseen").rgb[:24]
        pairs = np.stack([rgb / 255, np.asarray(decode(size, fit.ema, encode(size, fit.ema, rgb)))], 1).reshape(-1, size, size, 3)
        picture = grid(pairs, 12)
    else:
        ids = tokenizer.tokenize(tokenizer.from_words(WORDS), [*PREVIEW, ""], LENGTH)
        null = np.repeat(ids[-1:], len(PREVIEW), 0)
        shape = (LATENT, LATENT, arch.unet["in_channels"])
        rows = [sample_latents(size, fit.ema, ids[:-1], null, jax.random.key(k), 3.0, shape, 25) for k in range(3)]
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
    """Trains the prior's parts into the folder `out` for `minutes` in all. See the module docstring.

    Args:
      out: folder of the prior; made if it is not there.
      minutes: length of this sitting, compilation included.
      size: edge of the images in pixels, one of `ARCHITECTURES`; by default 128, or what `out` holds when resuming.
      resume: continue from what `out` holds; without it `out` must not hold a checkpoint.
      part: "vae", "unet", or "all": a fifth of the time for the VAE if it is new, the rest for the U-Net.
      name: the optimizer, "muon" or "adamw".
      batch: images of a step; by default 16 for the VAE and 64 for the U-Net, which suits a CPU.
      seed: of parameters, renders, noise and captions.

    Raises:
      ValueError: in one line, for what does not fit together.
    """
    if not minutes > 0:
        raise ValueError(f"minutes must be positive, got {minutes}")
    if part not in ("all", *PARTS):
        raise ValueError(f"part must be all, {' or '.join(PARTS)}, got {part!r}")
    file, tx = out / "checkpoint.safetensors", optimizer(name)
    if file.exists() and not resume:
        raise ValueError(f"{out} holds a checkpoint already; pass --resume to go on with it, or another --out")
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
    """One sitting of one part; updates `fits` and `meta` and the files of `out`."""
    if part == "unet" and "vae" not in fits:
        raise ValueError(f"the U-Net learns latents, but {out} has no VAE; train --part vae or all first")
    nets = networks(arch.size)
    recipe, fit = recipe_of(part, nets, batch), fits.get(part) or new_fit(part, nets, tx, seed)
    stream_seed = seed + 1000 * meta["sittings"]  # a later sitting sees new renders
    begin, before = time.monotonic(), meta["seconds"][part]

    def save(fit):
        fits[part] = fit
        meta["seconds"][part] = before + time.monotonic() - begin
        save_checkpoint(out / "checkpoint.safetensors", fits, meta)
        if "unet" in fits:
            write_folder(out, arch, fits, meta)
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
    """What a former sitting left in `out`: its checkpoint, or the folder's averaged weights with fresh optimizers."""
    file = out / "checkpoint.safetensors"
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


def write_folder(out: Path, arch: Architecture, fits: dict[str, Fit], meta: dict) -> None:
    """The averaged weights as a Stable Diffusion folder in float16, with `training.json` that tells how they came about."""
    unet, text = fits["unet"].ema["unet"], fits["unet"].ema["text"]
    configs = {"vae": arch.vae, "unet": arch.unet, "text": arch.text}
    meta = meta | {"samples": {part: int(fit.samples) for part, fit in fits.items()}}
    # The prompts are what a refused prompt is answered with.
    vocabulary = {"words": list(WORDS), "prompts": [str(c) for c in captions("all")]}
    files = tokenizer.files(WORDS, LENGTH) | {
        "vocabulary.json": json.dumps(vocabulary, indent=2) + "\n",
        "training.json": json.dumps(meta, indent=2) + "\n",
    }
    weights = {"vae": fits["vae"].ema, "unet": unet, "text": text}
    convert.save_folder(out, configs, weights, files, prediction_type="v_prediction")
