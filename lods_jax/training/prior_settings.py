"""The prior of a run: its settings as options of `priors.loading.load_prior`, and where the parts of its weights wait."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from lods_jax.config import PriorConfig
from lods_jax.core.types import Prior
from lods_jax.priors.architectures import write_configs
from lods_jax.priors.diffusers_folder import TEXT_PARTS
from lods_jax.priors.loading import load_prior
from lods_jax.priors.prompt_encoder import context_shape
from lods_jax.priors.stable_diffusion import stable_diffusion


def prior_options(p: PriorConfig) -> dict[str, Any]:
    """The options of `load_prior` that the settings p of a prior hold."""
    options = {name: getattr(p, name) for name in ("dtype", "rank", "attention", "remat", "variant")}
    options |= {"remat": ("transformer",) * p.remat + ("resnet",)} if p.remat_resnets else {}
    # A prior that somebody registered need not know of these, unless they are asked for.
    asked = {"image_size": p.image_size, "loras": p.lora and loras_of(p), "embeddings": p.embedding, "few_steps": p.few_steps}
    return options | {name: value for name, value in asked.items() if value}


def prior_of(p: PriorConfig) -> Prior:
    """The prior that the settings p name."""
    return load_prior(p.name, download=p.download, **prior_options(p))


def untrained_prior(p: PriorConfig) -> tuple[Prior, tuple[int, int]]:
    """A prior without its folder.

    Args:
        p: settings, which name a key of `architectures.CONFIGS`.

    Returns:
        The prior, whose weights would be random, and the shape of the tokens of a text.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = write_configs(Path(folder), p.name)
        return stable_diffusion(root, strict=False, untrained=True, **prior_options(p)), context_shape(root)


def loras_of(p: PriorConfig) -> list[tuple[str, float]]:
    """The LoRA files that the settings p of a prior name, each with its scale."""
    return list(zip(p.lora, p.lora_scale or (1.0,) * len(p.lora), strict=True))


def text_on_host(weights: Any) -> Any:
    """The weights with those of the text encoders as NumPy arrays, which wait for the next prompt without room on a device."""
    if not isinstance(weights, Mapping):
        return weights
    return dict(weights) | {part: jax.device_get(weights[part]) for part in TEXT_PARTS if part in weights}


def without_text(weights: Any) -> Any:
    """The weights without the text encoders, which are not needed once prompts are embedded; SDXL's take 3.0 GiB."""
    return {part: own for part, own in weights.items() if part not in TEXT_PARTS} if isinstance(weights, Mapping) else weights
