"""The networks of the tabletop priors, in the configuration words of diffusers and transformers.

Two sizes: 64 px with a VAE of f = 4, and 128 px with f = 8, Stable Diffusion's own factor. Both have latents of 16 x 16 x 4 and
the same text encoder.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from lods_jax.priors import flax_networks as modules
from lods_jax.priors import tokenizer
from lods_jax.priors.diffusers_folder import MULTI_VIEW
from lods_jax.tabletop.dataset import WORDS

LENGTH = 12  # tokens of a caption; the longest has 9 with its start and end
LATENT = 16  # edge of the latents


class Architecture(NamedTuple):
    """One size of the prior.

    Attributes:
        size: edge of an image, pixels.
        crop: edge of a training crop of the VAE, pixels.
        vae: configuration of the VAE.
        unet: configuration of the U-Net.
        text: configuration of the text tower.
    """

    size: int
    crop: int
    vae: dict
    unet: dict
    text: dict


class Networks(NamedTuple):
    """Flax modules of one size, without parameters.

    Attributes:
        vae: the autoencoder.
        unet: the noise predictor.
        text: the text tower.
    """

    vae: Any
    unet: Any
    text: Any


def _vae(size: int, channels: tuple[int, ...]) -> dict:
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "block_out_channels": list(channels),
        "layers_per_block": 1,
        "act_fn": "silu",
        "latent_channels": 4,
        "norm_num_groups": 8,
        "sample_size": size,
        "scaling_factor": 1.0,
    }


def _unet(channels: tuple[int, ...]) -> dict:
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": LATENT,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": list(channels),
        "layers_per_block": 1,
        "attention_head_dim": 4,  # the number of heads, as in all Stable Diffusion configs
        "cross_attention_dim": 64,
    }


def _text() -> dict:
    """The text tower, with the size and the special tokens of the vocabulary that WORDS make."""
    vocabulary, _ = tokenizer.build_vocabulary(WORDS)
    special = {"bos_token_id": "<|startoftext|>", "eos_token_id": "<|endoftext|>", "pad_token_id": "<|endoftext|>"}
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
        "projection_dim": 64,
        "hidden_act": "quick_gelu",
        "vocab_size": len(vocabulary),
        **{name: vocabulary[token] for name, token in special.items()},
    }


ARCHITECTURES = {
    64: Architecture(64, 32, _vae(64, (16, 32, 64)), _unet((64, 64, 128)), _text()),
    128: Architecture(128, 64, _vae(128, (8, 16, 32, 64)), _unet((64, 96, 128)), _text()),
}


def architecture(size: int) -> Architecture:
    """The architecture of an image size.

    Args:
        size: edge of an image, pixels.

    Returns:
        The architecture.

    Raises:
        ValueError: there is none of this size.
    """
    if size not in ARCHITECTURES:
        raise ValueError(f"size must be {' or '.join(map(str, ARCHITECTURES))}, got {size}")
    return ARCHITECTURES[size]


def size_of(folder: Path) -> int:
    """The edge of the images of a prior's folder, pixels."""
    return json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))["sample_size"]


def of_views(arch: Architecture, views: int) -> Architecture:
    """The architecture whose U-Net denoises several views of one object together (`priors.multi_view`).

    Args:
        arch: of single images.
        views: number of views in a group.

    Returns:
        The same with another configuration of the U-Net.
    """
    return arch._replace(unet=arch.unet | {"_class_name": MULTI_VIEW, "views": views})


@cache
def networks(size: int, views: int = 1) -> Networks:
    """The three Flax modules of a prior. Importing them takes seconds, so it happens only for training.

    Args:
        size: edge of an image, pixels.
        views: number of views that are denoised together.

    Returns:
        The modules.
    """
    arch = architecture(size) if views == 1 else of_views(architecture(size), views)
    return Networks(modules.vae(arch.vae), modules.unet(arch.unet), modules.text_encoder(arch.text))
