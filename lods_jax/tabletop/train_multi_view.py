"""Trains a prior of four views of the tabletop world: MVDream (Shi et al. 2024) in miniature, from the prior of single images.

The U-Net begins as that of the tabletop prior. The layers of the camera are new and add nothing yet; attention sees all views of
a group from the first step on. Three tenths of each batch stay single images, as MVDream keeps its 2D data: their attention is
not joined and they have no camera, so that with one view and no camera the prior remains what it was, view words included.
Captions of groups name no view, since the camera says it. The autoencoder is that of the prior. As in `train_prior`:
v-prediction, averaged weights, sittings, and a folder that is all that travels.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lods_jax.core.cameras import orbit_camera
from lods_jax.core.images import grid, write_png
from lods_jax.core.noise_schedule import draw_timesteps
from lods_jax.priors import flax_networks as modules
from lods_jax.priors import tokenizer
from lods_jax.priors.multi_view import camera_vectors
from lods_jax.tabletop.architectures import LATENT, LENGTH, Architecture, Networks, architecture, networks, of_views, size_of
from lods_jax.tabletop.dataset import VIEWS as VIEW_WORDS
from lods_jax.tabletop.dataset import WORDS, Renders
from lods_jax.tabletop.denoising import sample_latents, unet_loss, velocity_error
from lods_jax.tabletop.fine_tuning import Task, recipe_of
from lods_jax.tabletop.fitting import Fit, Recipe
from lods_jax.tabletop.prior_batches import caption_ids, decode, draw_captions, encode, in_chunks
from lods_jax.tabletop.streams import ahead, fresh_renders, pool_batches

VIEWS = 4  # of a group
JOINED = 0.7  # share of the images of a batch that are denoised in groups, as in MVDream
PREVIEW = ("a red mug", "a blue car", "a green house", "a yellow robot", "a purple chair", "an orange rocket")


# --- loss ---------------------------------------------------------------------------------------------------------------
def joined_rows(batch: int) -> int:
    """How many images of a batch are denoised in groups; they come first, and the others are single images.

    Args:
        batch: number of images.

    Returns:
        A multiple of VIEWS.

    Raises:
        ValueError: the batch is not of whole groups, or too small to have both.
    """
    if batch % VIEWS or batch < 2 * VIEWS:
        raise ValueError(f"batch must be a multiple of {VIEWS} from {2 * VIEWS} on for groups of {VIEWS} views, got {batch}")
    return VIEWS * round(JOINED * batch / VIEWS)


def loss(nets: Networks, params, batch, key):
    """Mean squared error of the velocity; the views of a group share their timestep, and each has its own noise.

    Args:
        nets: the modules.
        params: of U-Net and text tower.
        batch: from `batches`.
        key: of timesteps and noise.

    Returns:
        The loss, and metrics: it, and those of groups and of single images.
    """
    z, ids, camera = batch
    n, (k_t, k_noise, k_single) = joined_rows(len(z)), jax.random.split(key, 3)
    t = jnp.repeat(draw_timesteps(k_t, n // VIEWS), VIEWS)
    joined = velocity_error(nets, params, z[:n], t, ids[:n], k_noise, VIEWS, camera[:n])
    single, _ = unet_loss(nets, params, (z[n:], ids[n:]), k_single)
    mse = (n * joined + (len(z) - n) * single) / len(z)
    return mse, {"loss": mse, "joined": joined, "single": single}


# --- data ---------------------------------------------------------------------------------------------------------------
def vectors_of(renders: Renders) -> Float[np.ndarray, "n 16"]:
    """What the U-Net sees of the cameras of renders."""
    place = (jnp.asarray(x) for x in (renders.azimuth, renders.elevation, renders.radius))
    camera = orbit_camera(*place, jnp.ones(len(renders.rgb)))  # the field of view is not in the matrix
    return np.asarray(camera_vectors(camera.c2w.reshape(-1, 16)))


def batches(arch: Architecture, seed: int, recipe: Recipe, vae: Any) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields groups of views and single images, in one batch.

    Args:
        arch: the architecture.
        seed: of the stream.
        recipe: batch and reuse.
        vae: parameters of the autoencoder.

    Yields:
        Latents [batch h w 4], token ids [batch LENGTH] and what the U-Net sees of the cameras [batch 16]. Groups come first, as
            `joined_rows` says, their captions without view words; of single images the camera goes unused.
    """
    rng = np.random.default_rng([seed, 4])
    table, empty = caption_ids()
    joined = joined_rows(recipe.batch)
    groups, singles = joined // VIEWS, recipe.batch - joined

    def draw(i):
        r = fresh_renders(jax.random.key(seed), i, arch.size, views=VIEWS)
        columns = in_chunks(partial(encode, arch.size, vae), r.rgb), r.labels, vectors_of(r)
        return tuple(x.reshape(-1, VIEWS, *x.shape[1:]) for x in columns)

    rows = groups + singles  # objects; a single image is one view of a group of its own
    reuse = recipe.reuse * VIEWS * rows / recipe.batch
    for columns in pool_batches(ahead(draw), capacity=6_000, batch=rows, reuse=reuse, seed=seed):
        view = rng.integers(VIEWS, size=singles)
        z, labels, camera = (
            np.concatenate([x[:groups].reshape(-1, *x.shape[2:]), x[np.arange(groups, rows), view]]) for x in columns
        )
        whole = labels[:joined:VIEWS] * [1, 1, 1, 0] + [0, 0, 0, len(VIEW_WORDS)]  # the last of the views means none
        said = draw_captions(rng, whole, table, empty).repeat(VIEWS, 0)
        yield z, np.concatenate([said, draw_captions(rng, labels[joined:], table, empty)]), camera


# --- training -----------------------------------------------------------------------------------------------------------
def task_of(prior: Path, batch: int | None = None, seed: int = 0) -> Task:
    """What is trained.

    Args:
        prior: folder of the tabletop prior, for its size.
        batch: images per step; None for 64.
        seed: of the parameters.

    Returns:
        The task.
    """
    arch = architecture(size_of(prior))
    nets = networks(arch.size, VIEWS)
    begin, recipe = partial(with_camera, nets, seed), recipe_of(partial(loss, nets), batch)
    joined_rows(recipe.batch)  # refuses a batch without groups before anything is read
    return Task("multiview", arch, of_views(arch, VIEWS), nets, recipe, batches, preview, begin)


def with_camera(nets: Networks, seed: int, params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a prior with the layers of the camera: the first is random, and the second zero, so that it adds nothing.

    Args:
        nets: the modules of the prior of four views.
        seed: of the first layer.
        params: {"unet", "text"} of the prior of single images.

    Returns:
        {"unet", "text"}.
    """
    camera = modules.init(nets.unet, jax.random.key(seed))["camera_embedding"]
    camera["linear_2"] = jax.tree.map(jnp.zeros_like, camera["linear_2"])
    return params | {"unet": params["unet"] | {"camera_embedding": camera}}


def preview(out: Path, arch: Architecture, fit: Fit, vae: Any) -> None:
    """Writes a picture of where training is: four views of samples of fixed prompts, two seeds each, at s = 3.

    Args:
        out: the folder.
        arch: the architecture.
        fit: the state.
        vae: parameters of the autoencoder.
    """
    ids = tokenizer.tokenize(tokenizer.from_words(WORDS), [*PREVIEW, ""], LENGTH)
    null = np.repeat(ids[-1:], len(PREVIEW), 0)
    shape = (LATENT, LATENT, arch.unet["in_channels"])
    draw = partial(sample_latents, arch.size, fit.ema, ids[:-1], null, s=3.0, shape=shape, steps=25, views=VIEWS)
    columns = [np.asarray(decode(arch.size, vae, draw(jax.random.key(k)))) for k in range(2)]
    rows = np.concatenate([x.reshape(len(PREVIEW), VIEWS, *x.shape[1:]) for x in columns], 1)
    write_png(out / "samples" / f"multiview-{int(fit.samples):08d}.png", grid(rows.reshape(-1, *rows.shape[2:]), 2 * VIEWS))
