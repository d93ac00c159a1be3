"""Refinement of Gaussians at fixed capacity: clone, split and prune (Kerbl et al. 2023, section 5), under one compiled shape.

A slot is alive or free. Refinement first frees slots, then gives free slots to children of the Gaussians whose screen-space
gradient is largest, as far as they reach. Parameters, statistics and both Adam moments move together; a new Gaussian starts
without momentum.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from lods_jax.types import TrainState

SHRINK = 1.6  # the two halves of a split Gaussian are this much smaller


class Rules(NamedTuple):
    """When a Gaussian multiplies and when it goes. Sizes are the largest standard deviation in world units.

    A Gaussian multiplies if its mean gradient per view, in normalised device units, exceeds `threshold` and is among the largest
    `fraction` of those alive. The usual absolute 2e-4 is made for one loss scale; a fraction serves every objective alike.
    """

    threshold: float = 0.0
    fraction: float = 0.1
    split_size: float = 0.02  # larger ones split in two, smaller ones are cloned
    prune_opacity: float = 0.005
    prune_size: float = 0.35


RULES = Rules()


def refine(key: Key[Array, ""], state: TrainState, tx: optax.GradientTransformation, rules: Rules = RULES) -> TrainState:
    """One refinement of a state of `scenes.gaussians`; clears its statistics. Jit it with `tx` and `rules` static.

    Args:
      tx: the optimizer of theta, to tell its moments from its counters.
    """
    theta, aux = state.theta, state.aux
    size, opacity = jnp.exp(theta["log_scales"]).max(-1), jax.nn.sigmoid(theta["opacity_logits"])
    alive = aux["alive"] & (opacity >= rules.prune_opacity) & (size <= rules.prune_size)
    gradient = jnp.where(alive, aux["grad"] / jnp.maximum(aux["seen"], 1), 0.0)

    # Parents by falling gradient, and the slots of children: the j-th parent's child goes to the j-th free slot.
    parent, slot = jnp.argsort(-gradient), jnp.argsort(alive)
    wanted = jnp.minimum(jnp.sum(gradient > rules.threshold), jnp.ceil(rules.fraction * jnp.sum(alive)).astype(jnp.int32))
    born = jnp.arange(len(alive)) < jnp.minimum(wanted, jnp.sum(~alive))
    n = len(alive)
    source = jnp.arange(n).at[jnp.where(born, slot, n)].set(parent, mode="drop")
    child = jnp.zeros(n, bool).at[jnp.where(born, slot, n)].set(True, mode="drop")
    split = born & (size[parent] > rules.split_size)
    halved = jnp.zeros(n, bool).at[jnp.where(split, slot, n)].set(True, mode="drop")
    halved = halved.at[jnp.where(split, parent, n)].set(True, mode="drop")

    theta = jax.tree.map(lambda x: x[source], theta)
    # Both halves of a split are drawn from the Gaussian that they replace.
    offset = _rotate(theta["quats"], jnp.exp(theta["log_scales"]) * jax.random.normal(key, (n, 3)))
    theta = theta | {
        "means": jnp.where(halved[:, None], theta["means"] + offset, theta["means"]),
        "log_scales": jnp.where(halved[:, None], theta["log_scales"] - jnp.log(SHRINK), theta["log_scales"]),
    }
    fresh = child | halved
    move = lambda m: jnp.where(fresh.reshape(-1, *[1] * (m.ndim - 1)), 0.0, m[source])  # noqa: E731
    opt = optax.tree_utils.tree_map_params(tx, move, state.opt_theta)
    cleared = {name: jnp.zeros_like(aux[name]) for name in ("grad", "seen", "radius")}
    return state.replace(theta=theta, aux=aux | cleared | {"alive": alive | child}, opt_theta=opt)


def _rotate(quats: Float[Array, "n 4"], v: Float[Array, "n 3"]) -> Float[Array, "n 3"]:
    """v turned by quaternions wxyz of any length but 0."""
    quats = quats / jnp.linalg.norm(quats, axis=-1, keepdims=True)
    w, u = quats[:, :1], quats[:, 1:]
    return v + 2 * jnp.cross(u, jnp.cross(u, v) + w * v)
