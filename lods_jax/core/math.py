"""Safe forms of operations whose plain form has a NaN or infinite gradient, each with its reason."""

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
