"""Images from a prior by plain sampling."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lods_jax.core.cameras import turntable
from lods_jax.core.errors import tell
from lods_jax.core.types import Prior
from lods_jax.priors.ddim import ddim
from lods_jax.priors.lora import RANK
from lods_jax.priors.stable_diffusion import stable_diffusion
from lods_jax.priors.tokenizer import left_out

CLIP = 4.0  # bound on |x0| in standard deviations of the latents
ELEVATION = 15.0  # degrees, of the views that a prior of several makes; MVDream's (Shi et al. 2024)


def sample(prior: Prior, weights: Any, tokens: Array, null: Array, keys: Array, s: float, steps: int) -> Float[Array, "b h w 3"]:
    """Images by DDIM, each from the noise of its own key; of a prior of several views, those of one object side by side.

    Args:
        prior: decodes, and predicts the noise.
        weights: its frozen parameters.
        tokens: of the prompts [b n d].
        null: of the negative prompts [b n d].
        keys: one per image.
        s: guidance scale.
        steps: of DDIM.

    Returns:
        [b h w 3] in [0, 1]; w is that of all views together. They are at equal azimuths, the first at the front.
    """
    v, b = prior.views, len(keys)
    shape = latent_shape(prior, weights)
    z = jax.vmap(lambda key: jax.random.normal(key, (v, *shape)))(keys).reshape(b * v, *shape)
    tokens, null = (jnp.repeat(x, v, axis=0) for x in (tokens, null))
    camera = None if v == 1 else group_cameras(v, b)
    predict, predict_x0 = (f and partial(f, weights, {}) for f in (prior.predict, prior.predict_x0))
    z = ddim(predict, z, tokens, null, prior.noise_schedule, s=s, steps=steps, clip=CLIP, predict_x0=predict_x0, camera=camera)
    rgb = prior.decode(weights, z)
    return jnp.concatenate([rgb[i::v] for i in range(v)], axis=2)


def group_cameras(views: int, groups: int) -> Float[Array, "b 16"]:
    """The cameras that samples of several views are seen by.

    Args:
        views: number of views in a group; they are at equal azimuths, the first at the front.
        groups: number of groups.

    Returns:
        Camera-to-world matrices, row-major, group by group.
    """
    return jnp.tile(turntable(views, ELEVATION).c2w.reshape(views, 16), (groups, 1))


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
    """Samples images of a prompt. Image i starts from the noise of seed + i; a prior of several views puts them side by side.

    Args:
        folder: of a Stable Diffusion prior.
        prompt: what to show.
        n: number of images.
        seed: of the first.
        s: guidance scale.
        steps: of DDIM.
        negative_prompt: what to guide away from.
        strict: whether words outside the folder's vocabulary are refused.
        batch: see `in_batches`; None for all at once.
        **network: options of `stable_diffusion`.

    Returns:
        [n h w 3] in [0, 1].
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
    """The prior of a folder, its weights, and the tokens of a prompt table.

    Args:
        folder: of a Stable Diffusion prior.
        strict: whether words outside the folder's vocabulary are refused.
        table: {name: texts}.
        rank: of the adapter that a trained query learns.
        **network: further options of `stable_diffusion`.

    Returns:
        The prior, its weights, and {name: tokens [k n d]}.
    """
    prior = stable_diffusion(folder, strict=strict, rank=rank, **network)
    tell_left_out(prior, table)
    weights = prior.init(jax.random.key(0))
    return prior, weights, {name: prior.embed(weights, list(rows)) for name, rows in table.items()}


def tell_left_out(prior: Prior, table: Mapping[str, Sequence[str]]) -> None:
    """Prints one line if some text of the user is longer than the prior reads.

    Args:
        prior: truncates texts.
        table: {name: texts}, without views.
    """
    names = {"prompt": "prompt", "null": "negative prompt", "source": "source prompt"}
    if cut := left_out(prior.truncate, {named: table[name][0] for name, named in names.items() if name in table}):
        tell(cut)


def in_batches(prior: Prior, size: int) -> Prior:
    """A prior whose U-Net and decoder see at most `size` examples at once: less memory, the same values.

    The last batch is filled up. The backward pass computes activations again, since it would otherwise keep those of all batches.

    Args:
        prior: of any kind.
        size: number of examples; a noise prediction with guidance takes two. Groups of views are not parted: where one is larger,
            a group at a time.

    Returns:
        A prior in its place.
    """
    size = max(size // prior.views, 1) * prior.views

    def mapped(f: Callable, rows: Any) -> Any:
        n = len(jax.tree.leaves(rows)[0])
        if n <= size:
            return f(rows)
        parts = -(-n // size)
        of = np.minimum(np.arange(parts * size), n - 1).reshape(parts, size)
        out = jax.lax.map(jax.checkpoint(f), jax.tree.map(lambda x: x[of], rows))
        return out.reshape(parts * size, *out.shape[2:])[:n]

    def asked(f: Callable) -> Callable:
        return lambda weights, psi, z_t, t, cond: mapped(lambda rows: f(weights, psi, *rows), (z_t, t, cond))

    def decode(weights, z):
        return mapped(lambda rows: prior.decode(weights, rows), z)

    predict_x0 = prior.predict_x0 and asked(prior.predict_x0)
    return prior._replace(predict=asked(prior.predict), predict_x0=predict_x0, decode=decode)


def image_size(folder: Path, asked: int | None = None) -> int:
    """The edge of the images that the prior of a folder makes, pixels.

    Args:
        folder: of a Stable Diffusion prior.
        asked: `image_size` of `stable_diffusion`.

    Returns:
        The edge.

    Raises:
        ValueError: the networks take no images of the size that is asked for.
    """
    # Of any network; loading it decides. No weights are read for it.
    prior = stable_diffusion(folder, image_size=asked, strict=False, few_steps=True, untrained=True)
    weights = jax.eval_shape(prior.init, jax.random.key(0))
    z = jax.ShapeDtypeStruct((1, *latent_shape(prior, weights)), jnp.float32)
    return jax.eval_shape(prior.decode, weights, z).shape[1]


def latent_shape(prior: Prior, weights: Any) -> tuple[int, ...]:
    """The shape (h, w, c) of the latents of one image.

    Args:
        prior: encodes.
        weights: its frozen parameters, or their shapes.

    Returns:
        A tuple.
    """
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return jax.eval_shape(prior.encode, weights, image, jax.random.key(0)).shape[1:]
