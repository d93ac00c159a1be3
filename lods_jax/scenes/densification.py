"""Refinement of Gaussians at fixed capacity, under one compiled shape. A slot is alive or free.

  densify    clone, split and prune (Kerbl et al. 2023, section 5): free slots go to children of the Gaussians whose screen-space
             gradient is largest, as far as they reach
  relocate   3D Gaussian splatting as Markov chain Monte Carlo (Kheradmand et al. 2024, section 4): dead Gaussians move into
             living ones, and the image stays as it is

Parameters, statistics and both Adam moments move together; a new Gaussian starts without momentum.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from lods_jax.core.quaternions import rotate
from lods_jax.core.types import TrainState

SHRINK = 1.6  # the two halves of a split Gaussian are this much smaller


class DensifyStrategy(NamedTuple):
    """When a Gaussian multiplies and when it is pruned. Sizes are the largest standard deviation in world units.

    A Gaussian multiplies if its mean gradient per view exceeds `grow_grad2d` and is among the largest `fraction` of those alive.
    The usual absolute 2e-4 suits one loss scale; a fraction suits all objectives.

    Attributes:
        grow_grad2d: threshold of the gradient of the projected mean, in normalised device units.
        fraction: share of the Gaussians alive that may multiply at once.
        grow_scale3d: larger Gaussians are split in two, smaller ones cloned.
        prune_opacity: Gaussians below this opacity are pruned.
        prune_scale3d: Gaussians above this size are pruned.
        prune_pieces: Gaussians of connected pieces (`connected_pieces`) with less than this share of the largest piece's opacity
            are pruned; 0 keeps them.
    """

    grow_grad2d: float = 0.0
    fraction: float = 0.1
    grow_scale3d: float = 0.02
    prune_opacity: float = 0.005
    prune_scale3d: float = 0.35
    prune_pieces: float = 0.0


DEFAULT_STRATEGY = DensifyStrategy()


def densify(
    key: Key[Array, ""], state: TrainState, tx: optax.GradientTransformation, strategy: DensifyStrategy = DEFAULT_STRATEGY
) -> TrainState:
    """Clones, splits and prunes Gaussians once (Kerbl et al. 2023, section 5), and clears the statistics.

    Jit it with `tx` and `strategy` static.

    Args:
        key: for the offsets of split Gaussians.
        state: of a run on `scenes.gaussians`.
        tx: the optimizer of theta, whose moments move along.
        strategy: thresholds.

    Returns:
        The new state, with the same shapes.
    """
    theta, aux = state.theta, state.aux
    size, opacity = jnp.exp(theta["log_scales"]).max(-1), jax.nn.sigmoid(theta["opacity_logits"])
    alive = aux["alive"] & (opacity >= strategy.prune_opacity) & (size <= strategy.prune_scale3d)
    alive &= in_large_pieces(theta["means"], jnp.where(alive, opacity, 0.0), strategy.prune_pieces)
    gradient = jnp.where(alive, aux["grad"] / jnp.maximum(aux["seen"], 1), 0.0)

    # Parents by falling gradient, and the slots of children: the j-th parent's child goes to the j-th free slot.
    parent, slot = jnp.argsort(-gradient), jnp.argsort(alive)
    wanted = jnp.minimum(jnp.sum(gradient > strategy.grow_grad2d), jnp.ceil(strategy.fraction * jnp.sum(alive)).astype(jnp.int32))
    born = jnp.arange(len(alive)) < jnp.minimum(wanted, jnp.sum(~alive))
    n = len(alive)
    source = jnp.arange(n).at[jnp.where(born, slot, n)].set(parent, mode="drop")
    child = jnp.zeros(n, bool).at[jnp.where(born, slot, n)].set(True, mode="drop")
    split = born & (size[parent] > strategy.grow_scale3d)
    halved = jnp.zeros(n, bool).at[jnp.where(split, slot, n)].set(True, mode="drop")
    halved = halved.at[jnp.where(split, parent, n)].set(True, mode="drop")

    theta = jax.tree.map(lambda x: x[source], theta)
    # Both halves of a split are drawn from the Gaussian that they replace.
    offset = rotate(theta["quats"], jnp.exp(theta["log_scales"]) * jax.random.normal(key, (n, 3)))
    theta = theta | {
        "means": jnp.where(halved[:, None], theta["means"] + offset, theta["means"]),
        "log_scales": jnp.where(halved[:, None], theta["log_scales"] - jnp.log(SHRINK), theta["log_scales"]),
    }
    return reslot(state, tx, theta, alive | child, source, child | halved)


CELL = 0.08  # world units; objects are about 1.6 across
REACH = 16  # cells from the origin to each side; what is farther away counts to the outermost cells


def connected_pieces(means: Float[Array, "n 3"], mass: Float[Array, "n"]) -> Float[Array, "n"]:
    """The mass of the connected piece of space that each point lies in.

    Space is cut into cells. Those with more than 1 % of the mass of the fullest are occupied, and occupied cells that touch, also
    at a corner, belong to one piece.

    Args:
        means: [n 3] world units.
        mass: [n], 0 for points that do not count.

    Returns:
        [n], 0 in cells that are not occupied.
    """
    edge = 2 * REACH
    cell = jnp.clip(jnp.floor(means / CELL).astype(jnp.int32) + REACH, 0, edge - 1)
    flat = (cell[:, 0] * edge + cell[:, 1]) * edge + cell[:, 2]
    held = jnp.zeros(edge**3).at[flat].add(mass)
    occupied = (held > 0.01 * jnp.max(held)).reshape(edge, edge, edge)
    labels = jnp.where(occupied, jnp.arange(1, edge**3 + 1).reshape(occupied.shape), 0)

    def spread(carry):
        labels, _ = carry
        highest = jax.lax.reduce_window(labels, 0, jax.lax.max, (3, 3, 3), (1, 1, 1), "SAME")
        after = jnp.where(occupied, highest, 0)
        return after, jnp.any(after != labels)

    labels, _ = jax.lax.while_loop(lambda carry: carry[1], spread, (labels, jnp.array(True)))
    labels = labels.ravel()
    pieces = jnp.zeros(edge**3 + 1).at[labels].add(held).at[0].set(0.0)
    return pieces[labels[flat]]


def in_large_pieces(means: Float[Array, "n 3"], mass: Float[Array, "n"], share: float) -> Bool[Array, "n"]:
    """Which points lie in a connected piece with at least a share of the largest piece's mass.

    Args:
        means: of the points [n 3], world units.
        mass: of the points [n].
        share: in [0, 1]; 0 keeps all points.

    Returns:
        True for those that do [n].
    """
    if share == 0:
        return jnp.ones(len(mass), bool)
    piece = connected_pieces(means, mass)
    return piece >= share * jnp.max(piece)


MAX_COPIES = 51  # Gaussians in the place of one
BINOMIALS = np.array([[math.comb(n, j) for j in range(1, MAX_COPIES + 1)] for n in range(1, MAX_COPIES + 1)], np.float32)


def relocate(
    key: Key[Array, ""],
    state: TrainState,
    tx: optax.GradientTransformation,
    dead: float = 0.005,
    growth: float = 0.05,
    prune_pieces: float = 0.0,
) -> TrainState:
    """Moves dead Gaussians into living ones (Kheradmand et al. 2024, section 4), and clears the statistics.

    Gaussians of an opacity below `dead`, and free slots as far as `growth` allows, take the place of living Gaussians drawn in
    proportion to opacity. Those that share a place then look together as one of them did (`share`). The noise that the paper adds
    to means in every step did not help here, and is not part of this. Jit it with `tx` and `prune_pieces` static.

    Args:
        key: for the draw.
        state: of a run on `scenes.gaussians`.
        tx: the optimizer of theta, whose moments move along.
        dead: opacity below which a Gaussian is dead.
        growth: share by which the number of Gaussians may grow.
        prune_pieces: Gaussians of smaller connected pieces are dead too, as in `DensifyStrategy`.

    Returns:
        The new state, with the same shapes.
    """
    theta, aux = state.theta, state.aux
    n, opacity = len(aux["alive"]), jax.nn.sigmoid(theta["opacity_logits"])
    living = aux["alive"] & (opacity >= dead)
    living &= in_large_pieces(theta["means"], jnp.where(living, opacity, 0.0), prune_pieces)
    free = ~aux["alive"]
    grown = free & (jnp.cumsum(free) <= jnp.ceil(growth * jnp.sum(aux["alive"])))
    # Without one living Gaussian there is no place to go to.
    moved = ((aux["alive"] & ~living) | grown) & jnp.any(living)
    drawn = jax.random.categorical(key, jnp.where(living, jnp.log(opacity), -jnp.inf), shape=(n,))
    source = jnp.where(moved, drawn, jnp.arange(n))
    copies = jnp.zeros(n, jnp.int32).at[source].add(jnp.where(moved | living, 1, 0))[source]
    theta = jax.tree.map(lambda x: x[source], theta)
    fresh = (copies > 1) & (moved | living)
    shared, factor = share(jnp.clip(opacity[source], max=1 - 1e-6), copies)
    shared = jnp.clip(shared, min=dead)  # what has just been moved is not dead
    theta = theta | {
        "opacity_logits": jnp.where(fresh, jnp.log(shared) - jnp.log1p(-shared), theta["opacity_logits"]),
        "log_scales": jnp.where(fresh[:, None], theta["log_scales"] + jnp.log(factor)[:, None], theta["log_scales"]),
    }
    return reslot(state, tx, theta, aux["alive"] | moved, source, fresh)


def share(opacity: Float[Array, "n"], copies: Int[Array, "n"]) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """Opacity and size factor with which N coincident Gaussians look as one did (Kheradmand et al. 2024, eq. 9).

    N absorb at the centre what one did, and the integral along a line through the centre is the same. The double sum of the paper
    equals sum_j C(N, j) (-1)^(j + 1) o^j / sqrt(j).

    Args:
        opacity: of one [n], below 1.
        copies: N [n]; above MAX_COPIES it counts as MAX_COPIES.

    Returns:
        Opacities [n], and factors [n] on the standard deviations.
    """
    copies = jnp.clip(copies, 1, MAX_COPIES)
    new = -jnp.expm1(jnp.log1p(-opacity) / copies)
    j = np.arange(1, MAX_COPIES + 1)
    signs = jnp.asarray((-1.0) ** (j + 1) / np.sqrt(j), jnp.float32)
    terms = jnp.asarray(BINOMIALS)[copies - 1] * new[:, None] ** j[None] * signs[None]
    return new, opacity / jnp.sum(terms, 1)


def reslot(
    state: TrainState,
    tx: optax.GradientTransformation,
    theta: Any,
    alive: Bool[Array, "n"],
    source: Int[Array, "n"],
    fresh: Bool[Array, "n"],
) -> TrainState:
    """A state with new Gaussians in its slots, and cleared statistics.

    Args:
        state: the old one.
        tx: the optimizer of theta, which tells its moments from its counters.
        theta: the new parameters.
        alive: which slots are drawn.
        source: the slot that each slot's moments come from.
        fresh: where the moments are 0 instead.

    Returns:
        The new state.
    """
    move = lambda m: jnp.where(fresh.reshape(-1, *[1] * (m.ndim - 1)), 0.0, m[source])  # noqa: E731
    opt = optax.tree_utils.tree_map_params(tx, move, state.opt_theta)
    cleared = {name: jnp.zeros_like(state.aux[name]) for name in ("grad", "seen", "radius")}
    return state.replace(theta=theta, aux=state.aux | cleared | {"alive": alive}, opt_theta=opt)
