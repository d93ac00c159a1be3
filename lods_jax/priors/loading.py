"""A prior by its name or its folder."""

from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from lods_jax.core.types import Prior
from lods_jax.priors.hub import local
from lods_jax.priors.registry import registered
from lods_jax.priors.stable_diffusion import stable_diffusion


def load_prior(name: str = "tabletop", *, download: bool = False, dtype: DTypeLike = jnp.float32, **options: Any) -> Prior:
    """The prior of a registered name, of a Stable Diffusion folder, or of a repository in the local Hugging Face cache.

    Args:
        name: "tabletop" (shipped), "exact", "exact-flow", "exact-gaussians", another registered name, a folder in diffusers
            layout, or the id of a repository.
        download: whether to fetch what the cache lacks of a repository.
        dtype: arithmetic of U-Net and VAE; predictions are float32 in any case.
        **options: of `stable_diffusion`: `rank`, `attention`, `remat`, `variant`, `loras`, `embeddings`, `few_steps`, ...

    Returns:
        The prior; `prior.init(key)` reads its weights.

    Raises:
        FileNotFoundError: there is no such folder, or a file of it is missing.
        ValueError: the folder holds something else, or the prior has no networks for `loras` and `embeddings`.

    Examples:
        >>> prior = load_prior("tabletop", rank=8)
    """
    entry, options = registered(name), {"dtype": jnp.dtype(dtype)} | options
    of_networks = {"--prior.lora": "loras", "--prior.embedding": "embeddings", "--prior.image-size": "image_size"}
    if entry is not None and entry.folder is None and any(options.get(option) for option in of_networks.values()):
        flags = " or ".join(flag for flag, option in of_networks.items() if options.get(option))
        raise ValueError(f"the prior {name} has no networks that {flags} could change: leave them out")
    return stable_diffusion(local(name, download), strict=False, **options) if entry is None else entry.make(**options)
