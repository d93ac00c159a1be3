"""What the tabletop prior is trained on: images or crops for its VAE, latents with captions for its U-Net."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lods_jax.priors import flax_networks as modules
from lods_jax.priors import tokenizer
from lods_jax.tabletop.architectures import LENGTH, Architecture, networks
from lods_jax.tabletop.dataset import COLORS, KINDS, PATTERNS, VIEWS, WORDS, Caption
from lods_jax.tabletop.fitting import Recipe
from lods_jax.tabletop.objects import COMPOSITE
from lods_jax.tabletop.streams import ahead, fresh_renders, pool_batches


@partial(jax.jit, static_argnums=0)
def encode(size: int, vae: Any, rgb: Any) -> jax.Array:
    """Latent means of byte images.

    Args:
        size: edge of the images, pixels.
        vae: parameters.
        rgb: [n h w 3].

    Returns:
        [n h w 4].
    """
    return modules.encode_moments(networks(size).vae, vae, rgb.astype(jnp.float32) / 127.5 - 1)[0]


@partial(jax.jit, static_argnums=0)
def decode(size: int, vae: Any, z: jax.Array) -> jax.Array:
    """Images of latents.

    Args:
        size: edge of the images, pixels.
        vae: parameters.
        z: [n h w 4].

    Returns:
        [n h w 3] in about [0, 1].
    """
    return modules.decode_image(networks(size).vae, vae, z) / 2 + 0.5


def in_chunks(f: Callable, x: np.ndarray, size: int = 56) -> np.ndarray:
    """A function over rows in chunks of one size, so that it compiles once; the last chunk is padded.

    Args:
        f: of [size ...].
        x: rows [n ...].
        size: rows per chunk.

    Returns:
        [n ...].
    """
    padded = np.concatenate([x, np.repeat(x[-1:], -len(x) % size, 0)])
    return np.concatenate([np.asarray(f(padded[i : i + size])) for i in range(0, len(padded), size)])[: len(x)]


def caption_ids() -> tuple[np.ndarray, np.ndarray]:
    """Token ids of every caption [kind, colour, pattern, view, LENGTH], the last colour and view meaning none; and of no text."""
    colors, views = (*COLORS, None), (*VIEWS, None)
    texts = [str(Caption(*c)) for c in product(KINDS, colors, PATTERNS, views)]
    ids = tokenizer.tokenize(tokenizer.from_words(WORDS), [*texts, ""], LENGTH)
    return ids[:-1].reshape(len(KINDS), len(colors), len(PATTERNS), len(views), LENGTH), ids[-1]


def draw_captions(rng: np.random.Generator, labels: np.ndarray, table: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """Training captions of labelled renders: 10 % empty for guidance, 5 % without colour and pattern, 10 % without view.

    Args:
        rng: of the draw.
        labels: [n 4].
        table: from `caption_ids`.
        empty: token ids of no text.

    Returns:
        Token ids [n LENGTH].
    """
    kind, color, pattern, view = labels.T
    u, w = rng.random(len(labels)), rng.random(len(labels))
    bare = u < 0.05
    no_view = (w < 0.10) | ~np.isin(kind, [KINDS.index(k) for k in COMPOSITE])
    ids = table[kind, np.where(bare, len(COLORS), color), np.where(bare, 0, pattern), np.where(no_view, len(VIEWS), view)]
    return np.where((u > 0.90)[:, None], empty, ids)


def vae_batches(size: int, seed: int, recipe: Recipe, crop: int | None) -> Iterator[tuple[np.ndarray]]:
    """Yields byte images, or random crops: an edge seen in a crop teaches as much as in a whole image and costs a quarter.

    Args:
        size: edge of the renders, pixels.
        seed: of the stream.
        recipe: batch and reuse.
        crop: edge of the crops, pixels; None for whole images.

    Yields:
        Images [batch h w 3].
    """
    rng = np.random.default_rng([seed, 1])
    draw = ahead(lambda i: fresh_renders(jax.random.key(seed), i, size)[:1])
    for (rgb,) in pool_batches(draw, capacity=8192, batch=recipe.batch, reuse=recipe.reuse, seed=seed):
        if crop is None:
            yield (rgb,)
            continue
        # Crops from the middle, where the objects are.
        corners = rng.integers(2, size - crop - 1, (len(rgb), 2))
        yield (np.stack([x[i : i + crop, j : j + crop] for x, (i, j) in zip(rgb, corners, strict=True)]),)


def unet_batches(arch: Architecture, seed: int, recipe: Recipe, vae: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields latents of fresh renders with token ids of a caption that is drawn anew each time.

    Args:
        arch: the architecture.
        seed: of the stream.
        recipe: batch and reuse.
        vae: parameters of the VAE.

    Yields:
        Latents [batch h w 4] and token ids [batch LENGTH].
    """
    rng = np.random.default_rng([seed, 2])
    table, empty = caption_ids()

    def draw(i):
        renders = fresh_renders(jax.random.key(seed), i, arch.size)
        return in_chunks(partial(encode, arch.size, vae), renders.rgb), renders.labels

    for z, labels in pool_batches(ahead(draw), capacity=24_000, batch=recipe.batch, reuse=recipe.reuse, seed=seed):
        yield z, draw_captions(rng, labels, table, empty)
