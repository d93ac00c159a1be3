"""Trains the pose prior of the tabletop world: Zero-1-to-3 (Liu et al. 2023) in miniature, on pairs of renders of one object.

The U-Net begins as that of the tabletop prior, with an input for the latents of the picture that does nothing yet; the image
encoder and the layer that joins it with the pose are new. The autoencoder is that of the prior, so that a render is encoded
once for both. As in `train_prior`: v-prediction, averaged weights, sittings, and a folder that is all that travels.
"""

import json
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lods_jax.core.cameras import relative_pose
from lods_jax.core.images import grid, to_uint8, write_png
from lods_jax.core.noise_schedule import STABLE_DIFFUSION, add_noise, draw_timesteps, v_to_eps, velocity
from lods_jax.core.types import Camera
from lods_jax.priors import flax_networks as modules
from lods_jax.priors import torch_weights as convert
from lods_jax.priors.ddim import ddim
from lods_jax.priors.sampling import CLIP
from lods_jax.priors.zero123 import token
from lods_jax.tabletop.architectures import Architecture, architecture, size_of
from lods_jax.tabletop.classifier import classify, load_classifier
from lods_jax.tabletop.dataset import Renders, sample_renders
from lods_jax.tabletop.fitting import NO_SITTINGS, Fit, Recipe, check_sitting, optimizer, resume_part, run_sitting, start
from lods_jax.tabletop.objects import COMPOSITE, KINDS
from lods_jax.tabletop.prior_batches import decode, encode, in_chunks
from lods_jax.tabletop.streams import PER_KIND, pool_batches

VIEWS = 4  # images of an object; those at even places are on white, and serve as pictures
COPIES = 6  # objects of a kind in a part of the stream, times PER_KIND
CAMERA = {"_class_name": "CCProjection", "in_channel": 64, "out_channel": 64}


def configs_of(arch: Architecture) -> dict[str, dict]:
    """The configurations of a pose prior for an architecture (arch) of the tabletop prior."""
    image = {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": arch.size,
        "patch_size": arch.size // 8,
        "projection_dim": CAMERA["in_channel"] - 4,
        "hidden_act": "quick_gelu",
    }
    return {"vae": arch.vae, "unet": arch.unet | {"in_channels": 8}, "image": image, "camera": CAMERA}


class Networks(NamedTuple):
    """The Flax modules of the pose prior, without parameters.

    Attributes:
        unet: the noise predictor.
        image: the image encoder.
        camera: the layer that joins image and pose.
    """

    unet: Any
    image: Any
    camera: Any


@cache
def networks(size: int) -> Networks:
    """The three Flax modules of the pose prior, for images of a size."""
    configs = configs_of(architecture(size))
    return Networks(modules.unet(configs["unet"]), modules.image_encoder(configs["image"]), modules.linear(configs["camera"]))


# --- loss ---------------------------------------------------------------------------------------------------------------
def context_of(params: Any, picture: jax.Array, pose: jax.Array) -> jax.Array:
    """The context of the U-Net.

    Args:
        params: of the networks.
        picture: [b h w 3] in [0, 1].
        pose: relative to the picture's camera [b 4].

    Returns:
        [b 1 w].
    """
    seen = modules.encode_image(networks(picture.shape[1]).image, params["image"], picture)
    return token(params["camera"]["projection"], seen, pose)


def loss(params, batch, key):
    """Mean squared error of the velocity; a tenth of the pairs sees no image, for guidance.

    Args:
        params: of the networks.
        batch: from `pairs`.
        key: of timesteps and noise.

    Returns:
        The loss, and metrics.
    """
    z, picture, pose, image = batch
    k_t, k_noise, k_null = jax.random.split(key, 3)
    t = draw_timesteps(k_t, len(z))
    noise = jax.random.normal(k_noise, z.shape)
    sees = (jax.random.uniform(k_null, (len(z),)) > 0.1).astype(jnp.float32)
    context = context_of(params, picture.astype(jnp.float32) / 255, pose) * sees[:, None, None]
    z_t = jnp.concatenate([add_noise(STABLE_DIFFUSION, z, noise, t), image * sees[:, None, None, None]], -1)
    v = modules.predict_noise(networks(picture.shape[1]).unet, params["unet"], z_t, t, context)
    mse = jnp.mean((v - velocity(STABLE_DIFFUSION, z, noise, t)) ** 2)
    return mse, {"loss": mse}


RECIPE = Recipe(loss, peak=2e-3, batch=64, ema=0.998)


# --- data ---------------------------------------------------------------------------------------------------------------
def fresh_views(size: int, seed: int, part: int, split: str = "seen") -> Renders:
    """Objects in VIEWS views each.

    Args:
        size: edge of the renders, pixels.
        seed: of the stream.
        part: its number.
        split: of the captions.

    Returns:
        Renders [n VIEWS ...].
    """
    per_kind = {kind: n * COPIES * VIEWS for kind, n in PER_KIND.items()}
    renders = sample_renders(jax.random.fold_in(jax.random.key(seed), part), per_kind, size, split=split, views=VIEWS)
    return Renders(*(x.reshape(-1, VIEWS, *x.shape[1:]) for x in renders))


def pairs(size: int, seed: int, batch: int, vae: Any) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields training pairs.

    Args:
        size: edge of the renders, pixels.
        seed: of the stream.
        batch: rows per batch.
        vae: parameters of the autoencoder.

    Yields:
        Latents of a view, another view on white, pose of the first relative to the second, latents of the second.
    """
    rng = np.random.default_rng([seed, 3])

    def draw(i):
        r = fresh_views(size, seed, i)
        z = in_chunks(partial(encode, size, vae), r.rgb.reshape(-1, size, size, 3))
        return r.rgb, z.reshape(*r.rgb.shape[:2], *z.shape[1:]), np.stack([r.azimuth, r.elevation, r.radius], -1)

    rows = np.arange(batch)
    for rgb, z, place in pool_batches(draw, capacity=6000, batch=batch, reuse=6.0 * VIEWS, seed=seed):
        view, picture = rng.integers(VIEWS, size=batch), 2 * rng.integers(VIEWS // 2, size=batch)
        pose = np.asarray(relative_pose(camera_at(place[rows, picture]), camera_at(place[rows, view])))
        yield z[rows, view], rgb[rows, picture], pose, z[rows, picture]


def camera_at(place: np.ndarray) -> Camera:
    """Cameras at a place [b 3], azimuth, elevation and radius; all else is None."""
    azimuth, elevation, radius = place.T
    return Camera(c2w=None, fov_y=None, azimuth=azimuth, elevation=elevation, radius=radius, view=None)


# --- training -----------------------------------------------------------------------------------------------------------
def train(out: Path, minutes: float, prior: Path, *, resume: bool = False, name: str = "muon", seed: int = 0) -> None:
    """Trains the pose prior into a folder.

    Args:
        out: the folder.
        minutes: length of this sitting, compilation included.
        prior: folder of the tabletop prior, whose autoencoder it shares and whose U-Net it starts from.
        resume: whether to continue from what `out` holds.
        name: of the optimizer, "muon" or "adamw".
        seed: of parameters, renders and noise.

    Raises:
        ValueError: `minutes` is not positive, or `out` holds a checkpoint and `resume` is not given.
    """
    file, tx = check_sitting(out, minutes, resume), optimizer(name)
    arch = architecture(size_of(prior))
    vae = convert.to_flax(convert.read_state(prior, "vae"), modules.shapes(modules.vae(arch.vae)))

    def write(fit: Fit, meta: dict) -> None:
        text = json.dumps(meta | {"optimizer": name}, indent=2) + "\n"
        convert.save_folder(
            out, configs_of(arch), {"vae": vae} | fit.ema, {"training.json": text}, prediction_type="v_prediction"
        )
        preview(out, arch.size, fit, vae)

    begun = resume_from(out, tx, prior, seed) if resume else (new_fit(tx, prior, seed), NO_SITTINGS)
    run_sitting(file, "pose", RECIPE, tx, begun, lambda seed: pairs(arch.size, seed, RECIPE.batch, vae), minutes, seed, write)


def new_fit(tx: optax.GradientTransformation, prior: Path, seed: int) -> Fit:
    """The U-Net of the prior with an unused input for the picture's latents; encoder and join are random.

    Args:
        tx: optimizer.
        prior: folder of the tabletop prior.
        seed: of the parameters.

    Returns:
        The state before the first step.
    """
    keys, size = jax.random.split(jax.random.key(seed), 2), size_of(prior)
    nets = networks(size)
    unet = convert.to_flax(convert.read_state(prior, "unet"), modules.shapes(modules.unet(architecture(size).unet)))
    kernel = unet["conv_in"]["kernel"]
    unet["conv_in"]["kernel"] = np.concatenate([kernel, np.zeros_like(kernel)], 2)
    params = {"unet": unet, "image": modules.init(nets.image, keys[0]), "camera": modules.init(nets.camera, keys[1])}
    return start(jax.tree.map(jnp.asarray, params), tx)


def resume_from(out: Path, tx: optax.GradientTransformation, prior: Path, seed: int) -> tuple[Fit, dict]:
    """The state that a former sitting left, see `fitting.resume_part`.

    Args:
        out: the folder.
        tx: optimizer.
        prior: folder of the tabletop prior.
        seed: of the parameters.

    Returns:
        The state and its meta.
    """
    return resume_part(out, "pose", tx, partial(new_fit, tx, prior, seed), partial(averaged, out))


def averaged(folder: Path) -> dict[str, Any]:
    """The parameters in a folder, by network."""
    shapes = {name: modules.shapes(module) for name, module in networks(size_of(folder))._asdict().items()}
    return {name: convert.to_flax(convert.read_state(folder, name), shape) for name, shape in shapes.items()}


@partial(jax.jit, static_argnames="steps")
def sample(params: Any, picture: jax.Array, pose: jax.Array, image: jax.Array, key: jax.Array, s: float, steps: int) -> jax.Array:
    """DDIM samples of how pictures look from elsewhere, with classifier-free guidance.

    Args:
        params: of the networks.
        picture: [b h w 3] in [0, 1].
        pose: relative to the picture's camera [b 4].
        image: latents of the picture [b h w c].
        key: of the noise.
        s: guidance scale.
        steps: of DDIM.

    Returns:
        Latents [b h w c].
    """

    def predict(z_t, t, cond):
        # Both halves of the doubled batch: the one with the token sees the picture.
        on = jnp.any(cond.tokens != 0, (1, 2))[:, None, None, None]
        seen = jnp.concatenate([z_t, jnp.where(on, jnp.concatenate([image, image]), 0.0)], -1)
        unet = networks(picture.shape[1]).unet
        return v_to_eps(STABLE_DIFFUSION, modules.predict_noise(unet, params["unet"], seen, t, cond.tokens), z_t, t)

    context = context_of(params, picture, pose)
    return ddim(
        predict,
        jax.random.normal(key, image.shape),
        context,
        jnp.zeros_like(context),
        STABLE_DIFFUSION,
        s=s,
        steps=steps,
        clip=CLIP,
    )


# --- looking at it ----------------------------------------------------------------------------------------------------------
class Pairs(NamedTuple):
    """Images of unseen objects, and how these look from another camera.

    Attributes:
        picture: [n h w 3] in [0, 1], on white.
        image: latents of the picture.
        pose: relative to the picture's camera [n 4].
        truth: the other view [n h w 3] in [0, 1], on white.
        labels: of the truth [n 4].
    """

    picture: np.ndarray
    image: jax.Array
    pose: np.ndarray
    truth: np.ndarray
    labels: np.ndarray


def unseen_pairs(size: int, vae: Any, n: int) -> Pairs:
    """Pairs of objects with a front, of captions that training never shows.

    Args:
        size: edge of the renders, pixels.
        vae: parameters of the autoencoder.
        n: number of pairs.

    Returns:
        The pairs.
    """
    r = fresh_views(size, 7, 0, split="unseen")
    front = np.flatnonzero(np.isin(r.labels[:, 0, 0], [KINDS.index(kind) for kind in COMPOSITE]))[:n]
    r = Renders(*(x[front] for x in r))
    place = np.stack([r.azimuth, r.elevation, r.radius], -1)
    pose = np.asarray(relative_pose(camera_at(place[:, 0]), camera_at(place[:, 2])))
    picture, truth = (r.rgb[:, i] / np.float32(255) for i in (0, 2))
    return Pairs(picture, encode(size, vae, r.rgb[:, 0]), pose, truth, r.labels[:, 2])


def preview(out: Path, size: int, fit: Fit, vae: Any, n: int = 12) -> None:
    """Writes a picture: unseen objects, how they truly look from elsewhere, and samples of that at s = 2.

    Args:
        out: the folder.
        size: edge of the renders, pixels.
        fit: the state.
        vae: parameters of the autoencoder.
        n: number of objects.
    """
    p = unseen_pairs(size, vae, n)
    drawn = sample(fit.ema, p.picture, p.pose, p.image, jax.random.key(0), 2.0, 25)
    rows = np.concatenate([p.picture, p.truth, np.asarray(decode(size, vae, drawn))])
    write_png(out / "samples" / f"pose-{int(fit.samples):08d}.png", grid(rows, n), scale=128 // size)


def report(folder: Path, out: Path, n: int = 96) -> dict[str, float]:
    """Measures a pose prior on unseen objects, prints the figures, and writes gates.json.

    By how much the loss rises with the picture of another object, or with a pose turned by 90 to 270 degrees, as a share of the
    loss with the right ones; and the shares of samples (s = 2) in which the classifier reads kind, colour and view of the truth.

    Args:
        folder: of the pose prior.
        out: folder to write to.
        n: number of objects.

    Returns:
        {figure: value}.
    """
    params, size = averaged(folder), size_of(folder)
    vae = convert.to_flax(convert.read_state(folder, "vae"), modules.shapes(modules.vae(architecture(size).vae)))
    p, rng = unseen_pairs(size, vae, n), np.random.default_rng(0)
    n = len(p.picture)
    turn = rng.uniform(np.pi / 2, 3 * np.pi / 2, n)
    azimuth = np.arctan2(p.pose[:, 1], p.pose[:, 2]) + turn
    turned = np.stack([p.pose[:, 0], np.sin(azimuth), np.cos(azimuth), p.pose[:, 3]], -1).astype(np.float32)
    other = np.roll(np.arange(n), n // 2)
    z = encode(size, vae, to_uint8(p.truth))

    @jax.jit
    def losses(picture, pose, image, key):
        t = (jnp.arange(len(z)) * T // len(z)).astype(jnp.int32)
        noise = jax.random.normal(key, z.shape)
        seen = jnp.concatenate([add_noise(STABLE_DIFFUSION, z, noise, t), image], -1)
        v = modules.predict_noise(networks(size).unet, params["unet"], seen, t, context_of(params, picture, pose))
        return jnp.mean((v - velocity(STABLE_DIFFUSION, z, noise, t)) ** 2)

    mean = lambda *inputs: float(np.mean([losses(*inputs, key) for key in jax.random.split(jax.random.key(0), 4)]))  # noqa: E731
    right = mean(p.picture, p.pose, p.image)
    drawn = sample(params, p.picture, p.pose, p.image, jax.random.key(0), 2.0, 30)
    figures = {
        "loss": right,
        "wrong picture": mean(p.picture[other], p.pose, p.image[other]) / right - 1,
        "wrong pose": mean(p.picture, turned, p.image) / right - 1,
    }
    for name, rgb in (("samples", np.asarray(decode(size, vae, drawn))), ("renders", p.truth)):
        read = classify(load_classifier(), rgb.astype(np.float32))
        for i, attribute in enumerate(("kind", "color", "pattern", "view")):
            figures[f"{name}: {attribute}"] = float(np.mean(getattr(read, attribute) == p.labels[:, i]))
    out.mkdir(parents=True, exist_ok=True)
    (out / "gates.json").write_text(json.dumps(figures, indent=2) + "\n")
    for name, value in figures.items():
        print(f"{name:20} {value:7.3f}")
    print(f"written: {out / 'gates.json'}")
    return figures
