"""Forms of operations whose plain form has a NaN, an infinite or a useless gradient, each with its reason."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


def normalize(x: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
    """x / |x| over the last axis; the zero vector stays zero, with a finite gradient.

    Args:
        x: vectors [... n].

    Returns:
        Unit vectors [... n].

    Examples:
        >>> normalize(jnp.zeros(3)).tolist()
        [0.0, 0.0, 0.0]
    """
    # optax's norm has the gradient 0 at the origin, where that of the plain form is 0 * inf = NaN.
    length = optax.safe_norm(x, 0.0, axis=-1, keepdims=True)
    return x / jnp.where(length > 0, length, 1.0)


@jax.custom_jvp
def clip_to_unit(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """x clipped to [0, 1], with the slope of x itself: what is white already can still be pushed to grey.

    The derivative of `jnp.clip` is 0 outside its limits: a score that is pushed through it (`score_paths.push_forward`) would be
    lost wherever a decoder overshoots white or black by a little.
    """
    return jnp.clip(x, 0.0, 1.0)


@clip_to_unit.defjvp
def _(primals, tangents):
    return clip_to_unit(*primals), tangents[0]
