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
    """What a compiled step depends on beside the configuration. Equal values share one compilation.

    Attributes:
        resolution: edge of the renders, pixels.
        capacity: for pairs of Gaussian and tile, or for samples along rays, per view.
    """

    resolution: int
    capacity: int


def read_shapes(saved: Mapping[str, int]) -> StaticShapes:
    """The static shapes that a checkpoint holds; older ones call the capacity `room`.

    Args:
        saved: of the checkpoint.

    Returns:
        Static shapes.

    Raises:
        ValueError: one of them is no positive whole number.
    """
    shapes = StaticShapes(saved["resolution"], saved["capacity"] if "capacity" in saved else saved["room"])
    if any(not isinstance(x, int) or not 0 < x < 2**31 for x in shapes):
        raise ValueError(f"static shapes must be positive whole numbers, got {shapes}")
    return shapes


class SceneSetup(NamedTuple):
    """A kind of scene with its settings: made, optimised, refined, counted, exported and measured.

    Attributes:
        scene: shapes -> the scene of all particles.
        blank_scene: the same without the file that it starts from, which may be gone.
        eval_scene: shapes -> the scene of one particle, on white.
        tx: optimizer.
        choose_shapes: (resolution, aux or extras of renders, None at first) -> shapes.
        should_refine: number of steps so far -> whether the scene is refined now.
        refine: (optimizer of theta, key, state) -> state.
        count: aux -> {name: number} for the log.
        export: (folder, theta, aux) of one particle -> a line on what was written.
        mass: (theta, aux) of one particle -> points [n 3] that hold something, and how much [n].
        surface: (theta, aux) of one particle -> its density field.
        exports_mesh: whether a run ends with a mesh.
        notes: -> lines for the user on what the scene starts from.
        particles: number of particles.
    """

    scene: Callable[[StaticShapes], Scene]
    blank_scene: Callable[[StaticShapes], Scene]
    eval_scene: Callable[[StaticShapes], Scene]
    tx: optax.GradientTransformation
    choose_shapes: Callable[[int, Any], StaticShapes]
    should_refine: Callable[[int], bool]
    refine: Callable[..., TrainState]
    count: Callable[[Any], dict[str, int]]
    export: Callable[[Path, Any, Any], str]
    mass: Callable[[Any, Any], tuple[np.ndarray, np.ndarray]]
    surface: Callable[[Any, Any], Surface]
    exports_mesh: bool
    notes: Callable[[], list[str]] = lambda: []
    particles: int = 1


def in_particles(one: SceneSetup, n: int, group: int = 1) -> SceneSetup:
    """The setup of n scenes of a kind side by side.

    Args:
        one: setup of one.
        n: number of particles.
        group: number of views in a row that show one particle, those that the prior denoises together.

    Returns:
        The setup of all.
    """
    if n == 1:
        return one

    def refine(tx: optax.GradientTransformation, key: Key[Array, ""], state: TrainState) -> TrainState:
        # Moments have a row for each particle, the optimizer's counters are shared.
        rows = optax.tree_utils.tree_map_params(tx, lambda m: 0, state.opt_theta, transform_non_params=lambda x: None)
        axes = TrainState(step=None, theta=0, aux=0, psi=None, opt_theta=rows, opt_psi=None, skipped=None)
        return jax.vmap(partial(one.refine, tx), in_axes=(0, axes), out_axes=axes)(jax.random.split(key, n), state)

    return one._replace(
        scene=lambda shapes: ensemble(one.scene(shapes), n, group),
        blank_scene=lambda shapes: ensemble(one.blank_scene(shapes), n, group),
        refine=refine,
        particles=n,
    )


def unstack_particles(tree: Any, n: int) -> list[Any]:
    """The part of each particle in a tree.

    Args:
        tree: theta or aux.
        n: number of particles.

    Returns:
        n trees.
    """
    return [tree] if n == 1 else [jax.tree.map(lambda x: x[i], tree) for i in range(n)]  # noqa: B023


def state_of_scene(setup: SceneSetup, resolution: int) -> tuple[Any, Any]:
    """Shapes and dtypes of theta and aux.

    Args:
        setup: of the scene.
        resolution: edge of its renders, pixels.

    Returns:
        theta and aux, with a `jax.ShapeDtypeStruct` for each array.
    """
    return jax.eval_shape(setup.blank_scene(setup.choose_shapes(resolution, None)).init, jax.random.key(0))


BACKGROUNDS = {
    "white-or-grey": white_or_grey,
    "random": lambda key: jax.random.uniform(key, (3,)),
    "white": lambda key: jnp.ones(3),
    "black": lambda key: jnp.zeros(3),
}


def decaying(share: float, steps: int) -> optax.GradientTransformation:
    """Learning rates that fall exponentially.

    Args:
        share: of the rate at the end.
        steps: of the run.

    Returns:
        An optax transformation.
    """
    return optax.scale_by_schedule(optax.exponential_decay(1.0, steps, share))


def scaled_by_name(rates: Mapping[str, float]) -> optax.GradientTransformation:
    """A learning rate for each entry of theta.

    Args:
        rates: {entry: learning rate}.

    Returns:
        An optax transformation; it also turns gradients into descent.
    """

    def scale(updates: dict[str, Any], _: Any) -> dict[str, Any]:
        return {name: jax.tree.map(lambda x, rate=rates[name]: -rate * x, update) for name, update in updates.items()}

    return optax.stateless(scale)
