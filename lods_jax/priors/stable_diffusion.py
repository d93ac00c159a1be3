"""Stable Diffusion 1.x and 2.x, SDXL and MVDream, from a folder in diffusers layout, as a `Prior`.

weights = {"unet", "vae", "text"}, and "text_2" of SDXL; latents are scaled, so that they have about unit variance.
"""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from lods_jax.core.types import Prior, Query
from lods_jax.priors import flax_networks, lora, sdxl
from lods_jax.priors.backbone import backbone
from lods_jax.priors.networks import network
from lods_jax.priors.prompt_encoder import prompt_encoder
from lods_jax.priors.scheduler_config import check_scores
from lods_jax.priors.user_adapters import ScaledFile


def stable_diffusion(
    folder: str | Path,
    dtype: DTypeLike = jnp.float32,
    image_size: int | None = None,
    variant: str | None = None,
    strict: bool = True,
    rank: int = lora.RANK,
    targets: Sequence[str] = lora.TARGETS,
    attention: str = "plain",
    remat: bool | Collection[str] = False,
    untrained: bool = False,
    views: int | None = None,
    loras: Sequence[ScaledFile] = (),
    embeddings: Sequence[str | Path] = (),
    few_steps: bool = False,
) -> Prior:
    """The prior of a Stable Diffusion folder. Networks are built here; weights are read by `init`.

    Args:
        folder: in diffusers layout.
        dtype: float32, bfloat16 or float16, of U-Net and VAE and of their weights. With float16 the VAE stays in float32, since
            its activations leave the range of float16. Predictions and latents are float32.
        image_size: edge of the square images that the VAE sees, pixels; None for the size that the U-Net was trained for.
        variant: of the weight files, such as "fp16"; see `diffusers_folder.weight_files`.
        strict: whether texts with words outside the folder's `vocabulary.json` are refused. Such words have tokens, but untrained
            ones.
        rank: of the adapter that a trained query learns.
        targets: ends of the names of the layers that the adapter changes.
        attention: "plain" as in diffusers, or "fused" by the kernel that the device has for each layer (`attention.fused`).
        remat: whether the transformer blocks are computed again in the backward pass, which takes time and saves memory; or the
            kinds of blocks that are, of `flax_networks.BLOCKS`.
        untrained: whether weights are random instead of read, for sizes and costs; the folder may then lack them.
        views: number of views that are denoised together; None for as many as the U-Net was trained on, 4 for MVDream's.
        loras: (file, scale) of adapters that are merged into U-Net and text encoder, see `adapter_files.read_lora`.
        embeddings: files of textual inversions; their tokens are words of texts, see `user_adapters.read_token_embedding`.
        few_steps: whether a folder is taken whose scheduler is that of networks which were distilled to a few steps.

    Returns:
        The prior. Its weights are {"unet", "vae", "text"}, and "text_2" of SDXL.

    Raises:
        FileNotFoundError: a file of the folder is missing.
        ValueError: a config is malformed or not supported, the parts do not fit each other, or an argument is out of range.

    Examples:
        >>> from lods_jax.core.paths import TABLETOP
        >>> prior = stable_diffusion(TABLETOP)
    """
    folder = Path(folder)
    make = lambda part: network(folder, part, flax_networks.text_encoder, jnp.float32, part == "text_2")  # noqa: E731
    texts = {part: make(part) for part in sdxl.text_parts(folder)}
    if not few_steps:
        check_scores(folder)
    base = backbone(folder, texts, dtype, image_size, variant, attention, remat, untrained, views, loras)
    if base.unet.in_channels != base.vae.latent_channels:
        raise ValueError(f"{folder}: {describe_input(base.unet.in_channels, base.vae.latent_channels)}")
    sdxl.check_texts(folder, base.unet, [one.config for one in texts.values()])
    prompts, pooled = prompt_encoder(folder, texts, strict, embeddings), sdxl.pooled_width(base.unet)

    def init(key: Key[Array, ""]) -> dict:
        weights = base.init(key)
        return weights if untrained else prompts.extend(weights)

    def init_psi(weights: dict, key: Key[Array, ""], tokens: Float[Array, "n w"], queries: Iterable[Query]) -> dict[str, Any]:
        """What the fitted `queries` can learn: "embedding" starts as `tokens`, "lora" and "pose" change nothing at the start."""
        queries, psi = list(queries), {}
        k_lora, k_pose = jax.random.split(key)
        if any(query.text == "learned" for query in queries):
            # Rows of zeros, as SDXL's empty text has, would get equal gradients and stay one token for ever.
            apart = 0.01 * jax.random.normal(jax.random.fold_in(key, 1), tokens.shape)
            psi["embedding"] = jnp.where(jnp.any(tokens), tokens, apart) if pooled else tokens
        if any(query.lora for query in queries):
            psi["lora"] = lora.init(k_lora, weights["unet"], rank, targets)
        if any(query.pose for query in queries):
            psi["pose"] = lora.init_pose(k_pose, 4 * base.unet.block_out_channels[0])
        return psi

    own = {name: getattr(base, name) for name in ("noise_schedule", "predict_x0", "views")}
    own |= {"truncate": prompts.truncate, "pooled": pooled}
    return Prior(init, prompts.embed, init_psi, base.encode, base.decode, base.predict, **own)


def describe_input(channels: int, latents: int) -> str:
    """An error message: why a U-Net is no text-to-image prior, judged by its input channels.

    Args:
        channels: of its input.
        latents: number of latent channels.

    Returns:
        The text.
    """
    kinds = {2 * latents + 1: "inpainting", 2 * latents: "edits by instruction or views of a picture", latents + 1: "depth maps"}
    made_for = f", as one for {kinds[channels]} has," if channels in kinds else ""
    return f"the U-Net has {channels} input channels{made_for} and latents have {latents}: expected one that takes a text alone"
