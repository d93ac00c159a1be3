"""The settings of a prior as options of `priors.loading.load_prior`."""

from typing import Any

from lods_jax.config import PriorConfig


def prior_options(p: PriorConfig) -> dict[str, Any]:
    """The options of `load_prior` that the settings p of a prior hold."""
    options = {name: getattr(p, name) for name in ("dtype", "rank", "attention", "remat", "variant")}
    # A prior that somebody registered need not know of adapters, unless they are asked for.
    return options | ({"loras": loras_of(p)} if p.lora else {}) | ({"embeddings": p.embedding} if p.embedding else {})


def loras_of(p: PriorConfig) -> list[tuple[str, float]]:
    """The LoRA files that the settings p of a prior name, each with its scale."""
    return list(zip(p.lora, p.lora_scale or (1.0,) * len(p.lora), strict=True))
