"""Images from a prior by plain sampling, without distillation: what the prior itself makes of a prompt."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lods_jax.priors.stable_diffusion import stable_diffusion
from lods_jax.sampling import ddim
from lods_jax.types import Prior

CLIP = 4.0  # bound on |x0| in standard deviations of the latents


def sample(prior: Prior, weights: Any, tokens: Array, null: Array, keys: Array, s: float, steps: int) -> Float[Array, "b h w 3"]:
    """DDIM images in [0, 1], one per row of `tokens` and `null` [b n d] and of `keys` [b], each from its own key's noise."""
    shape = jax.eval_shape(prior.encode, weights, jnp.zeros((1, 64, 64, 3)), jax.random.key(0)).shape[1:]
    z = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    return prior.decode(weights, ddim(partial(prior.predict, weights, {}), z, tokens, null, s=s, steps=steps, clip=CLIP))


def text_to_image(
    folder: Path, prompt: str, n: int, seed: int, s: float, steps: int, negative_prompt: str = "", strict: bool = True
) -> Float[np.ndarray, "n h w 3"]:
    """n samples of `prompt` in [0, 1] from a Stable Diffusion folder; sample i starts from the noise of seed + i."""
    prior = stable_diffusion(folder, strict=strict)
    weights = prior.init(jax.random.key(0))
    tokens, null = prior.embed(weights, [prompt, negative_prompt])

    @jax.jit
    def run(weights, tokens, null, keys):
        both = (jnp.broadcast_to(x, (n, *x.shape)) for x in (tokens, null))
        return sample(prior, weights, *both, keys, s, steps)

    return np.asarray(run(weights, tokens, null, jax.vmap(jax.random.key)(seed + jnp.arange(n))))
