"""Turns of scene and prior: steps that update the one, then steps that update the other (as the paper of LODS has it)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def active_updates(schedule: tuple[int, int] | None, step: Array, fit_first: int = 0) -> tuple[Array | bool, Array | bool]:
    """Whether a step updates the scene, and whether it updates the prior.

    Args:
        schedule: None for both in every step, or (m, k): m steps of the scene, then k of the prior.
        step: index of the step.
        fit_first: steps of the prior alone before all others.

    Returns:
        Two booleans, traced where they depend on the step.

    Examples:
        >>> [bool(on) for on in active_updates((3, 1), jnp.asarray(3))]
        [False, True]
        >>> [bool(on) for on in active_updates(None, jnp.asarray(3), fit_first=4)]
        [False, True]
    """
    begun = True if fit_first == 0 else step >= fit_first
    if schedule is None:
        return begun, True
    scene_on = begun & ((step - fit_first) % sum(schedule) < schedule[0])
    return scene_on, ~scene_on


def cond_or_zeros(on: Array | bool, f: Callable[[], Any]) -> Any:
    """f() if `on` holds, else zeros of the same shapes; f is then not computed.

    Args:
        on: True, or a traced boolean.
        f: takes nothing and gives a tree of arrays.

    Returns:
        The tree that f gives, or zeros like it.
    """
    if on is True:
        return f()
    return jax.lax.cond(on, f, lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(f)))
