"""Images from a prior by plain sampling."""

from collections.abc import Callable, Mapping, Sequence
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
    folder: Path,
    prompt: str,
    n: int,
    seed: int,
    s: float,
    steps: int,
    negative_prompt: str = "",
    strict: bool = True,
    batch: int | None = None,
    **network: Any,
) -> Float[np.ndarray, "n h w 3"]:
    """Samples of a prompt.

    Args:
      folder: of a Stable Diffusion.
      prompt: what the images show.
      n: how many.
      seed: sample i starts from the noise of seed + i.
      s: guidance scale.
      steps: of DDIM.
      negative_prompt: of the unconditional branch.
      strict: refuse words that the folder's vocabulary lacks.
      batch: as of `in_batches`; None asks for all at once.
      network: options of `stable_diffusion`.

    Returns:
      Images in [0, 1].
    """
    prior, weights, texts = prior_with_texts(folder, strict, {"prompt": [prompt], "null": [negative_prompt]}, **network)
    prior = in_batches(prior, batch) if batch else prior

    @jax.jit
    def run(weights, tokens, null, keys):
        both = (jnp.broadcast_to(x, (n, *x.shape[1:])) for x in (tokens, null))
        return sample(prior, weights, *both, keys, s, steps)

    # One by one: a sum of seeds could leave int32.
    keys = jnp.stack([jax.random.key(seed + i) for i in range(n)])
    return np.asarray(run(weights, texts["prompt"], texts["null"], keys))


def prior_with_texts(
    folder: Path, strict: bool, table: Mapping[str, Sequence[str]], rank: int = RANK, **network: Any
) -> tuple[Prior, Any, dict[str, Array]]:
    """The prior of a folder, its weights, and the texts of a prompt table as it reads them; `rank` is of its adapter."""
    prior = stable_diffusion(folder, strict=strict, rank=rank, **network)
    tell_left_out(prior, table)
    weights = prior.init(jax.random.key(0))
    return prior, weights, {name: prior.embed(weights, list(rows)) for name, rows in table.items()}


def tell_left_out(prior: Prior, table: Mapping[str, Sequence[str]]) -> None:
    """Tells, in one line, what the prior does not read of the texts of a person in a prompt table without views."""
    names = {"prompt": "prompt", "null": "negative prompt", "source": "source prompt"}
    if cut := left_out(prior.truncate, {named: table[name][0] for name, named in names.items() if name in table}):
        tell(cut)


def in_batches(prior: Prior, size: int) -> Prior:
    """The prior whose U-Net and decoder see at most `size` examples at once: less memory, the same values.

    The last batch is filled up. Activations are computed again in the backward pass, which would keep those of all batches.

    Args:
      prior: of any kind.
      size: examples; a noise prediction with guidance takes two.

    Returns:
      A prior in its place.
    """

    def mapped(f: Callable, rows: Any) -> Any:
        n = len(jax.tree.leaves(rows)[0])
        if n <= size:
            return f(rows)
        parts = -(-n // size)
        of = np.minimum(np.arange(parts * size), n - 1).reshape(parts, size)
        out = jax.lax.map(jax.checkpoint(f), jax.tree.map(lambda x: x[of], rows))
        return out.reshape(parts * size, *out.shape[2:])[:n]

    def predict(weights, psi, z_t, t, cond):
        return mapped(lambda rows: prior.predict(weights, psi, *rows), (z_t, t, cond))

    def decode(weights, z):
        return mapped(lambda rows: prior.decode(weights, rows), z)

    return prior._replace(predict=predict, decode=decode)


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
