"""The prior of a run: its settings as options of `priors.loading.load_prior`, and where the parts of its weights wait."""

from collections.abc import Mapping
from typing import Any

import jax

from lods_jax.config import PriorConfig


def prior_options(p: PriorConfig) -> dict[str, Any]:
    """The options of `load_prior` that the settings p of a prior hold."""
    options = {name: getattr(p, name) for name in ("dtype", "rank", "attention", "remat", "variant")}
    # A prior that somebody registered need not know of adapters, unless they are asked for.
    return options | ({"loras": loras_of(p)} if p.lora else {}) | ({"embeddings": p.embedding} if p.embedding else {})


def loras_of(p: PriorConfig) -> list[tuple[str, float]]:
    """The LoRA files that the settings p of a prior name, each with its scale."""
    return list(zip(p.lora, p.lora_scale or (1.0,) * len(p.lora), strict=True))


def text_on_host(weights: Any) -> Any:
    """The weights with those of the text encoder as NumPy arrays, which wait for the next prompt without room on a device."""
    own = weights.get("text") if isinstance(weights, Mapping) else None
    return weights if own is None else dict(weights) | {"text": jax.device_get(own)}


def without_text(weights: Any) -> Any:
    """The weights without the text encoder, which is not needed once prompts are embedded; Stable Diffusion 2's takes 1.3 GiB."""
    return {part: own for part, own in weights.items() if part != "text"} if isinstance(weights, Mapping) else weights
