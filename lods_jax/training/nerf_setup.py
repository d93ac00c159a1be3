"""The radiance field as a run needs it."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optax
from jaxtyping import Array, Key

from lods_jax.config import NerfConfig, OptimizerConfig
from lods_jax.core.types import Scene, TrainState
from lods_jax.scenes import density_field
from lods_jax.scenes.density_field import Surface
from lods_jax.scenes.nerf import centres, nerf, update_occupancy_grid
from lods_jax.scenes.ply import write_ply, write_splat
from lods_jax.scenes.radiance_field import OFFICIAL, TINY, FieldConfig
from lods_jax.training.scene_setups import BACKGROUNDS, SceneSetup, StaticShapes, decaying, scaled_by_name

FIELDS = {"tiny": TINY, "tiny-64": TINY._replace(finest=64), "official": OFFICIAL}
NORMAL_EPS = 0.01  # world units
WALL = 10.0  # density that viewers take for solid, per world unit
BESIDE_LEARNED = {"learned": "white-or-grey", "learned-or-random": "random"}  # what views without the learned background show
MASS = 0.05  # a cell that stops less light is empty to a count
BUCKETS = 6  # capacities for samples: all, a half, a quarter, ...


def nerf_setup(n: NerfConfig, optimizer: OptimizerConfig, steps: int, normals: bool) -> SceneSetup:
    """The setup of a radiance field.

    Args:
        n: its settings.
        optimizer: settings of Adam that all parameters share.
        steps: of the run; learning rates decay over it.
        normals: whether training renders normals, for a regularizer.

    Returns:
        The setup.
    """
    field = FIELDS[n.size]

    def scene(shapes: StaticShapes, for_eval: bool = False) -> Scene:
        behind = "white" if for_eval else n.background
        return nerf(
            height=shapes.resolution,
            width=shapes.resolution,
            capacity=shapes.capacity,
            field=field,
            samples=n.samples,
            stratified=not for_eval,
            normal_eps=NORMAL_EPS if normals and not for_eval else None,
            environment=behind in BESIDE_LEARNED,
            background=BACKGROUNDS[BESIDE_LEARNED.get(behind, behind)],
        )

    def nerf_refine(tx: optax.GradientTransformation, key: Key[Array, ""], state: TrainState) -> TrainState:
        del tx  # no parameter moves
        return state.replace(aux=update_occupancy_grid(key, field, state.theta, state.aux))

    return SceneSetup(
        scene=scene,
        blank_scene=scene,
        eval_scene=partial(scene, for_eval=True),
        tx=nerf_optimizer(n, optimizer, steps),
        choose_shapes=partial(nerf_shapes, n.samples),
        should_refine=lambda done: done % n.update_grid_every == 0,
        refine=nerf_refine,
        count=lambda aux: {"samples": int(np.max(np.maximum(aux["total"], aux["last"])))},
        export=partial(export_nerf, field),
        mass=partial(nerf_mass, field),
        surface=partial(nerf_surface, field),
        exports_mesh=True,
    )


def nerf_optimizer(n: NerfConfig, o: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW with one learning rate per part of the field; all decay alike.

    Args:
        n: learning rates.
        o: settings of Adam that all parameters share.
        steps: of the run.

    Returns:
        An optax optimizer.
    """
    return optax.chain(
        optax.scale_by_adam(o.b1, o.b2, o.eps),
        optax.add_decayed_weights(n.weight_decay),
        decaying(o.decay, steps),
        scaled_by_name(vars(n.lr)),
    )


def nerf_shapes(samples: int, resolution: int, aux: Any) -> StaticShapes:
    """Static shapes with a capacity for an eighth more samples than a view has needed lately; at first for half of all.

    Args:
        samples: per ray.
        resolution: edge of the renders, pixels.
        aux: with "total" and "last"; None at first.

    Returns:
        Static shapes.
    """
    most = [] if aux is None else [int(np.max(aux[name])) for name in ("total", "last") if name in aux]
    every = samples * resolution**2
    capacities = [max(every >> i, 1) for i in range(BUCKETS)]
    if aux is None:
        return StaticShapes(resolution, capacities[1])
    return StaticShapes(resolution, min(x for x in capacities if x >= min(1.125 * max(most), every)))


def export_nerf(field: FieldConfig, folder: Path, theta: Any, aux: Any) -> str:
    """Writes flat Gaussians on the field's surface, for viewers, as scene.ply and scene.splat.

    Args:
        field: its sizes.
        folder: of the run.
        theta: parameters.
        aux: of the scene.

    Returns:
        A line on what was written.
    """
    splats = density_field.surfels(nerf_surface(field, theta, aux), WALL)
    write_ply(folder / "scene.ply", splats)
    write_splat(folder / "scene.splat", splats)
    return f"scene.ply and scene.splat with {len(splats['means'])} flat Gaussians on the field's surface, for viewers"


def nerf_surface(field: FieldConfig, theta: Any, aux: Any) -> Surface:
    """The density field of a NeRF.

    Args:
        field: its sizes.
        theta: parameters.
        aux: of the scene, which says nothing more.

    Returns:
        The density field.
    """
    del aux
    return density_field.of_field(field, theta)


def nerf_mass(field: FieldConfig, theta: Any, aux: Any) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the occupancy cells, and the largest share of light that a cell absorbs.

    Args:
        field: its sizes.
        theta: parameters.
        aux: of the scene.

    Returns:
        Points [n 3] and masses [n].
    """
    held = np.asarray(aux["density"])
    middles = np.asarray(centres(field)).T
    mass = 1 - np.exp(-held.ravel() * 2 * field.bound / field.cells)
    return middles[mass > MASS], mass[mass > MASS]
