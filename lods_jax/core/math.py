"""Forms of operations whose plain form has a NaN, an infinite or a useless gradient, each with its reason."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def safe_norm(x: Float[Array, "*b n"], keepdims: bool = False) -> Float[Array, "..."]:
    """Euclidean length over the last axis, with gradient 0 at the origin.

    The plain form has the gradient 0 * inf = NaN there.

    Args:
        x: vectors [... n].
        keepdims: whether the last axis stays, with size 1.

    Returns:
        Lengths [...], or [... 1].

    Examples:
        >>> float(safe_norm(jnp.array([3.0, 4.0])))
        5.0
    """
    squared = jnp.sum(x * x, -1, keepdims=keepdims)
    positive = squared > 0
    # The double where: the sqrt itself must not see 0, or its NaN gradient leaks through the unselected branch.
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


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
    length = safe_norm(x, keepdims=True)
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
