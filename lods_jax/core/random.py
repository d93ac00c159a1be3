"""Random keys: derived from (seed, step, global view index), split by name, never stored, never used twice."""

from collections import namedtuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key


def split_named(key: Key[Array, ""], names: str):
    """One key per word of `names`, as a named tuple.

    Args:
        key: consumed.
        names: words separated by spaces.

    Returns:
        A named tuple with the fields of `names`.

    Examples:
        >>> split_named(jax.random.key(0), "camera render")._fields
        ('camera', 'render')
    """
    fields = names.split()
    return namedtuple("Keys", fields)(*jax.random.split(key, len(fields)))


def step_key(key: Key[Array, ""], step: Int[Array, ""] | int) -> Key[Array, ""]:
    """The key of one training step.

    Args:
        key: of the run.
        step: index of the step.

    Returns:
        A key.
    """
    return jax.random.fold_in(key, step)


def view_keys(key: Key[Array, ""], step: Int[Array, ""] | int, views: Int[Array, "b"]) -> Key[Array, "b"]:
    """One key per view, from its global index.

    A result does not depend on how views are split over devices.

    Args:
        key: of the run.
        step: index of the step.
        views: global indices of the views [b].

    Returns:
        Keys [b].
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(step_key(key, step), views)


def group_keys(keys: Key[Array, "b"], group: int) -> Key[Array, "b"]:
    """The key of the first view of each view's group, for what the views of a group share.

    Args:
        keys: one per view; each `group` in a row are one group.
        group: number of views in a group, which divides b.

    Returns:
        Keys [b], equal within a group; `keys` themselves for groups of one.
    """
    return keys[jnp.arange(len(keys)) // group * group]


def fixed_keys(key: Key[Array, ""], particles: Int[Array, "b"]) -> Key[Array, "b"]:
    """The keys of what stays as it is over the steps of a run, one for each particle.

    Args:
        key: of the run.
        particles: which of the particles each view shows [b].

    Returns:
        Keys [b]. No step has them.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, 2**32 - 1), particles)


# What a run draws, each with a key of its own. The numbers are part of what a seed means.
STREAMS = {"psi": 1, "scene": 2, "train": 3, "inversion": 4}


def run_key(seed: int, stream: str) -> Key[Array, ""]:
    """The key of one of the things that a run draws.

    Args:
        seed: of the run.
        stream: a key of `STREAMS`: what is learned of the prior, the first scene, the steps, textual inversion.

    Returns:
        A key.
    """
    return jax.random.fold_in(jax.random.key(seed), STREAMS[stream])
