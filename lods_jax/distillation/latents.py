"""From renders to the latents that priors are asked about."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float, Key

from lods_jax.core.types import Prior


def encode_each(
    prior: Prior, weights: Any, rgb: Float[Array, "b _ _ _"], keys: Key[Array, "b"], slicing: bool = False
) -> Float[Array, "b _ _ _"]:
    """The latents of each view, from a key of its own: the encoder's noise does not depend on the other views of the batch.

    Args:
        prior: its `encode` is used.
        weights: its frozen parameters.
        rgb: renders [b h w 3] in [0, 1]; or what an encoder of another prior takes.
        keys: one per view.
        slicing: whether views are encoded one after the other: the activations of one are held at a time, and the backward pass
            computes them again.

    Returns:
        Latents [b m n c], float32.
    """
    one = lambda view: prior.encode(weights, view[0][None], view[1])[0]  # noqa: E731
    return (partial(jax.lax.map, jax.checkpoint(one, prevent_cse=False)) if slicing else jax.vmap(one))((rgb, keys))


def encode_for_all(
    priors: Sequence[tuple[Prior, Any]],
    shared: Sequence[bool],
    rgb: Float[Array, "b _ _ _"],
    keys: Key[Array, "b"],
    slicing: bool = False,
) -> tuple[Float[Array, "b _ _ _"], ...]:
    """The latents of each view for each of several priors.

    Args:
        priors: each prior with its frozen parameters.
        shared: for all but the first, whether its autoencoder is that of the first: its latents are not encoded again.
        rgb: renders [b h w 3] in [0, 1]; or what an encoder of another prior takes.
        keys: one per view, the same for all priors.
        slicing: as of `encode_each`.

    Returns:
        Latents [b m n c] for each prior, float32.
    """
    z = encode_each(*priors[0], rgb, keys, slicing)
    return z, *(z if same else encode_each(*who, rgb, keys, slicing) for who, same in zip(priors[1:], shared, strict=True))
