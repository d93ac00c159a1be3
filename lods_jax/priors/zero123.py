"""Zero-1-to-3 (Liu et al. 2023): a prior of how the object in an image looks from elsewhere, from a folder in diffusers layout.

It sees the image twice: its latents beside z_t in the input of the U-Net, and its CLIP embedding, joined with the pose of the
camera relative to that of the image, as the one token of the context. What is null is zeros in both places.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lods_jax.core.types import Camera, Prior
from lods_jax.priors import flax_networks
from lods_jax.priors.backbone import backbone, resize
from lods_jax.priors.networks import network


class Zero123Prior(NamedTuple):
    """A prior, and the function that prepares its condition.

    Attributes:
        prior: its `embed` raises ValueError, since it takes no texts.
        encode_image: (weights, square rgb [h w 3] in [0, 1] on white, its camera) -> tables for `select_zero123_prompts`.
    """

    prior: Prior
    encode_image: Callable


def zero123(
    folder: str | Path,
    dtype: DTypeLike = jnp.float32,
    image_size: int | None = None,
    variant: str | None = None,
    attention: str = "plain",
    remat: bool = False,
) -> Zero123Prior:
    """The prior of a Zero-1-to-3 folder, with unet, vae, image_encoder and cc_projection.

    Images are resized bilinearly with antialiasing; the published pipeline is bicubic.

    Args:
        folder: in diffusers layout.
        dtype: as in `stable_diffusion`.
        image_size: as in `stable_diffusion`.
        variant: as in `stable_diffusion`.
        attention: as in `stable_diffusion`.
        remat: as in `stable_diffusion`.

    Returns:
        The prior, and the function that prepares its condition.

    Raises:
        FileNotFoundError: a file of the folder is missing.
        ValueError: a config is malformed or not supported, or the U-Net has no input for an image.
    """
    encoder = network(Path(folder), "image", flax_networks.image_encoder)
    join = network(Path(folder), "camera", flax_networks.linear)
    base = backbone(folder, {"image": encoder, "camera": join}, dtype, image_size, variant, attention, remat)
    if base.unet.in_channels != 2 * base.vae.latent_channels:
        expected = f"{2 * base.vae.latent_channels}, latents beside those of a picture"
        raise ValueError(f"{folder}: the U-Net has {base.unet.in_channels} input channels; expected {expected}")

    def embed(weights: Any, texts: Any) -> Any:
        raise ValueError("a Zero-1-to-3 prior takes no text, but an image: ask it with what `encode_image` gives")

    def init_psi(weights: Any, key: Any, tokens: Any, queries: Any) -> dict[str, Any]:
        if list(queries):
            raise ValueError("a Zero-1-to-3 prior learns nothing: give it an objective without a fitted query, such as sds")
        return {}

    def encode_image(weights: Any, rgb: Float[Array, "h w 3"], camera: Camera) -> dict[str, Any]:
        # Pictures are not renders: they may be much larger than what is asked for.
        image = 2 * resize(rgb[None], base.size, antialias=True) - 1
        # Latents without their scale, as published.
        mean, _ = flax_networks.encode_moments(base.vae, weights["vae"], image.astype(jax.tree.leaves(weights["vae"])[0].dtype))
        seen = flax_networks.encode_image(encoder, weights["image"], resize(rgb[None], encoder.config.image_size, antialias=True))
        join = weights["camera"]["projection"]
        return {"image": mean[0].astype(jnp.float32), "embedding": seen[0], "camera": camera, "join": join}

    return Zero123Prior(
        Prior(base.init, embed, init_psi, base.encode, base.decode, base.predict, base.noise_schedule, base.predict_x0),
        encode_image,
    )


def token(join: dict[str, Any], embedding: Float[Array, "b p"], pose: Float[Array, "b 4"]) -> Float[Array, "b 1 w"]:
    """The context of the U-Net: image embedding and relative pose through the layer that joins them.

    Args:
        join: kernel and bias of the layer.
        embedding: CLIP embeddings of images [b p].
        pose: cameras relative to those of the images [b 4], as `cameras.relative_pose` gives them.

    Returns:
        One token per example [b 1 w].
    """
    return (jnp.concatenate([embedding, pose], -1) @ join["kernel"] + join["bias"][None])[:, None]
