"""Trees of arrays: their types, their names, and the first leaf that is not finite."""

from typing import Any

import jax
import jax.numpy as jnp


def strongly_typed(tree: Any) -> Any:
    """A copy of a tree of arrays whose leaves have a strong dtype, as the outputs of a compiled function do."""
    return jax.tree.map(lambda x: jnp.array(x, x.dtype), tree)


def not_finite(tree: Any) -> jax.Array:
    """Index of the first leaf that holds a NaN or an infinity; -1 if there is none.

    Args:
        tree: of arrays. `leaf_names` gives the name that belongs to an index.

    Returns:
        An integer scalar.

    Examples:
        >>> int(not_finite({"a": jnp.ones(2), "b": jnp.array([1.0, jnp.nan])}))
        1
    """
    bad = jnp.asarray([~jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)] + [False])
    return jnp.where(jnp.any(bad), jnp.argmax(bad), -1)


def leaf_names(tree: Any) -> list[str]:
    """Names of the leaves of a tree, in the order of `jax.tree.leaves`.

    Args:
        tree: of nested containers.

    Returns:
        Paths with dots, as "theta.means".

    Examples:
        >>> leaf_names({"theta": {"means": 0, "quats": 1}})
        ['theta.means', 'theta.quats']
    """
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
