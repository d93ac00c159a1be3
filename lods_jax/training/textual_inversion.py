"""Textual inversion (Gal et al. 2023): the embedding of a prompt, fitted to the image of a run before the run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lods_jax.config import Config
from lods_jax.core.errors import UserError
from lods_jax.core.files import replacing
from lods_jax.core.images import read_rgba
from lods_jax.core.random import run_key
from lods_jax.core.types import Prior, ReferenceImage
from lods_jax.distillation.objectives import lods_embedding
from lods_jax.priors.adapter_files import pipeline_arrays
from lods_jax.scenes.gaussians import white_or_grey
from lods_jax.training.checkpoint import digest
from lods_jax.training.distill_2d import fit_on
from lods_jax.training.image_to_3d import COPY

EMBEDDING = "prompt_embeds.safetensors"  # in the folder of a run


def textual_inversion(
    config: Config, prior: Prior, weights: Any, prompt: Float[Array, "views k d"], image: ReferenceImage
) -> Float[Array, "k d"]:
    """The shift of the prompt's embedding that makes it denoise the image.

    Textual inversion (Gal et al. 2023) in the output space of the text encoder, by the training of LODS's learned branch.

    Args:
        config: of the run.
        prior: of the run.
        weights: its frozen parameters.
        prompt: tokens by view [views k d].
        image: of the run.

    Returns:
        [k d].

    Raises:
        UserError: the embedding is not finite.
    """
    k_behind, k_fit = jax.random.split(run_key(config.seed, "inversion"))
    behind = jax.vmap(white_or_grey)(jax.random.split(k_behind, config.image.invert_batch))[:, None, None]
    rgb, mask = image.rgb, image.mask
    if len(rgb) > config.resolution:  # as large as the renders will be
        size = (config.resolution, config.resolution)
        rgb, mask = (jax.image.resize(x, (*size, x.shape[2]), "linear") for x in (rgb, mask))
    # rgb is on white: what is to be seen through shows the other background.
    images = jnp.clip(rgb[None] - (1 - mask[None]) * (1 - behind), 0, 1)
    start = prompt[image.camera.view[0]]
    psi, tx = {"embedding": start}, optax.adam(config.image.invert_lr)
    psi = fit_on(prior, weights, lods_embedding(), {}, images, psi, tx, k_fit, config.image.invert)
    if not jnp.all(jnp.isfinite(psi["embedding"])):
        raise UserError("the embedding that was fitted to the image is not finite: try a smaller --image.invert-lr")
    return psi["embedding"] - start


def shift_embeddings(texts: Mapping[str, Array], by: Float[Array, "k d"]) -> dict[str, Array]:
    """The prompt tables with "prompt" and "plain" shifted.

    Args:
        texts: {name: tokens [views k d]}.
        by: shift [k d].

    Returns:
        New tables.
    """
    return dict(texts) | {name: texts[name] + by[None] for name in ("prompt", "plain")}


def save_textual_inversion(
    folder: Path, config: Config, by: Float[Array, "k d"], texts: Mapping[str, Array], pooled: int = 0
) -> None:
    """Writes the shifted prompt table as `prompt_embeds` [views k d], and the shift with all that it depends on.

    That of an SDXL has `pooled_prompt_embeds` [views p] beside it.

    Args:
        folder: of the run.
        config: of the run.
        by: shift [k d].
        texts: {name: tokens [views k d]}, not shifted.
        pooled: width of the pooled vector in each, `Prior.pooled`.
    """
    arrays = {"shift": np.asarray(by)} | pipeline_arrays(np.asarray(shift_embeddings(texts, by)["prompt"]), pooled)
    about = {"format": "pt", "made_with": made_with(folder, config), "sha256": digest(arrays["shift"])}
    with replacing(folder / EMBEDDING) as partial_file:
        save_file(arrays, partial_file, about)


def load_textual_inversion(folder: Path, config: Config) -> Float[np.ndarray, "k d"] | None:
    """Reads the shift that `save_textual_inversion` wrote.

    Args:
        folder: of the run.
        config: of the run.

    Returns:
        [k d]; None if it is not there, is damaged, or was made with other settings.
    """
    file = folder / EMBEDDING
    try:
        with safe_open(file, framework="np") as opened:
            about, by = opened.metadata() or {}, opened.get_tensor("shift")
    except (SafetensorError, OSError):
        return None
    whole = about.get("sha256") == digest(by) and about.get("made_with") == made_with(folder, config)
    return by if whole else None


def made_with(folder: Path, config: Config) -> str:
    """A hash of everything that a shift depends on, except the prior.

    Args:
        folder: of the run.
        config: of the run.

    Returns:
        Hexadecimal digits.
    """
    p = config.image
    settings = (config.prompt, config.view_words, config.seed, config.resolution, config.debias)
    settings += (p.azimuth, p.elevation, p.invert, p.invert_lr, p.invert_batch)
    return digest(json.dumps(settings) + digest(read_rgba(folder / COPY)))
