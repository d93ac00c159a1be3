"""Kinds of scene as a run needs them: made, optimised, refined, counted, exported and measured.

`gaussian_setup` and `nerf_setup` close over their own part of a configuration; whoever holds a setup needs none of it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key

from lods_jax.core.types import Scene, TrainState
from lods_jax.scenes.density_field import Surface
from lods_jax.scenes.ensemble import ensemble
from lods_jax.scenes.gaussians import white_or_grey


class StaticShapes(NamedTuple):
    """What a compiled step depends on beside the configuration. Equal values share one compilation."""

    resolution: int  # edge of a render, pixels
    capacity: int  # for pairs of Gaussian and tile, or for samples along rays, per view


def read_shapes(saved: Mapping[str, int]) -> StaticShapes:
    """The static shapes that a checkpoint holds; older ones say `room` for the capacity."""
    return StaticShapes(saved["resolution"], saved["capacity"] if "capacity" in saved else saved["room"])


class SceneSetup(NamedTuple):
    """A kind of scene with its settings."""

    scene: Callable[[StaticShapes], Scene]  # of all particles
    blank_scene: Callable[[StaticShapes], Scene]  # of the same shapes, without the file that it starts from, which may be gone
    eval_scene: Callable[[StaticShapes], Scene]  # of one particle, on white, for people
    tx: optax.GradientTransformation
    choose_shapes: Callable[[int, Any], StaticShapes]  # (resolution, aux or extras of renders, None at first) -> shapes
    should_refine: Callable[[int], bool]  # whether the scene is refined after so many steps
    refine: Callable[..., TrainState]  # (the optimizer of theta, key, state) -> state
    count: Callable[[Any], dict[str, int]]  # aux -> what a log says of its size
    # Of one particle, (theta, aux):
    export: Callable[[Path, Any, Any], str]  # writes the scene into a folder; says what it wrote
    mass: Callable[[Any, Any], tuple[np.ndarray, np.ndarray]]  # where there is something [n 3], and how much [n]
    surface: Callable[[Any, Any], Surface]  # densities and colours in space, for meshes
    exports_mesh: bool  # whether a run ends with a mesh
    notes: Callable[[], list[str]] = lambda: []  # what a person should know of what it starts from, a line each
    particles: int = 1


def in_particles(one: SceneSetup, n: int) -> SceneSetup:
    """The setup of n scenes of a kind side by side."""
    if n == 1:
        return one

    def refine(tx: optax.GradientTransformation, key: Key[Array, ""], state: TrainState) -> TrainState:
        # Moments have a row for each particle, the optimizer's counters are shared.
        rows = optax.tree_utils.tree_map_params(tx, lambda m: 0, state.opt_theta, transform_non_params=lambda x: None)
        axes = TrainState(step=None, theta=0, aux=0, psi=None, opt_theta=rows, opt_psi=None, skipped=None)
        return jax.vmap(partial(one.refine, tx), in_axes=(0, axes), out_axes=axes)(jax.random.split(key, n), state)

    return one._replace(
        scene=lambda shapes: ensemble(one.scene(shapes), n),
        blank_scene=lambda shapes: ensemble(one.blank_scene(shapes), n),
        refine=refine,
        particles=n,
    )


def unstack_particles(tree: Any, n: int) -> list[Any]:
    """The share of each of n particles in theta or aux."""
    return [tree] if n == 1 else [jax.tree.map(lambda x: x[i], tree) for i in range(n)]  # noqa: B023


BACKGROUNDS = {
    "white-or-grey": white_or_grey,
    "random": lambda key: jax.random.uniform(key, (3,)),
    "white": lambda key: jnp.ones(3),
    "black": lambda key: jnp.zeros(3),
}


def decaying(share: float, steps: int) -> optax.GradientTransformation:
    """Rates that fall exponentially, to `share` of themselves at the end of so many steps."""
    return optax.scale_by_schedule(optax.exponential_decay(1.0, steps, share))
