"""Images from a prior by plain sampling."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lods_jax.core.errors import tell
from lods_jax.core.types import Prior
from lods_jax.priors.ddim import ddim
from lods_jax.priors.lora import RANK
from lods_jax.priors.stable_diffusion import stable_diffusion
from lods_jax.priors.tokenizer import left_out

CLIP = 4.0  # bound on |x0| in standard deviations of the latents


def sample(prior: Prior, weights: Any, tokens: Array, null: Array, keys: Array, s: float, steps: int) -> Float[Array, "b h w 3"]:
    """DDIM images in [0, 1], one per row of `tokens` and `null` [b n d] and of `keys` [b], each from its own key's noise."""
    shape = latent_shape(prior, weights)
    z = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    return prior.decode(weights, ddim(partial(prior.predict, weights, {}), z, tokens, null, s=s, steps=steps, clip=CLIP))


def text_to_image(
    folder: Path, prompt: str, n: int, seed: int, s: float, steps: int, negative_prompt: str = "", strict: bool = True
) -> Float[np.ndarray, "n h w 3"]:
    """n samples of `prompt` in [0, 1] from a Stable Diffusion folder; sample i starts from the noise of seed + i."""
    prior = stable_diffusion(folder, strict=strict)
    weights = prior.init(jax.random.key(0))
    tell_left_out(prior, {"prompt": [prompt], "null": [negative_prompt]})
    tokens, null = prior.embed(weights, [prompt, negative_prompt])

    @jax.jit
    def run(weights, tokens, null, keys):
        both = (jnp.broadcast_to(x, (n, *x.shape)) for x in (tokens, null))
        return sample(prior, weights, *both, keys, s, steps)

    return np.asarray(run(weights, tokens, null, jax.vmap(jax.random.key)(seed + jnp.arange(n))))


def prior_with_texts(
    folder: Path, strict: bool, table: Mapping[str, Sequence[str]], rank: int = RANK
) -> tuple[Prior, Any, dict[str, Array]]:
    """The prior of a folder, its weights, and the texts of a prompt table as it reads them; `rank` is of its adapter."""
    prior = stable_diffusion(folder, strict=strict, rank=rank)
    tell_left_out(prior, table)
    weights = prior.init(jax.random.key(0))
    return prior, weights, {name: prior.embed(weights, list(rows)) for name, rows in table.items()}


def tell_left_out(prior: Prior, table: Mapping[str, Sequence[str]]) -> None:
    """Tells, in one line, what the prior does not read of the texts of a person in a prompt table without views."""
    names = {"prompt": "prompt", "null": "negative prompt", "source": "source prompt"}
    if cut := left_out(prior.truncate, {named: table[name][0] for name, named in names.items() if name in table}):
        tell(cut)


def image_size(folder: Path) -> int:
    """The edge of the images that the prior of a folder makes, pixels."""
    prior = stable_diffusion(folder, strict=False)
    weights = jax.eval_shape(prior.init, jax.random.key(0))
    z = jax.ShapeDtypeStruct((1, *latent_shape(prior, weights)), jnp.float32)
    return jax.eval_shape(prior.decode, weights, z).shape[1]


def latent_shape(prior: Prior, weights: Any) -> tuple[int, ...]:
    """[h w c] of the latents of one image."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return jax.eval_shape(prior.encode, weights, image, jax.random.key(0)).shape[1:]
