"""The scene of 3D Gaussians as a run needs it."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optax
from jaxtyping import Array, Key

from lods_jax.config import GaussianConfig, OptimizerConfig
from lods_jax.config.schema import MOST_GAUSSIANS
from lods_jax.core.errors import UserError
from lods_jax.core.types import Scene, TrainState
from lods_jax.scenes import density_field
from lods_jax.scenes import gaussians as gs
from lods_jax.scenes.densification import DensifyStrategy, densify, relocate
from lods_jax.scenes.gaussian_init import Start, ball, fitted, from_points, shell
from lods_jax.scenes.ply import read_points, write_ply, write_splat
from lods_jax.training.scene_setups import BACKGROUNDS, SceneSetup, StaticShapes, decaying, scaled_by_name

INTERSECTIONS_PER_GAUSSIAN = 8  # tile intersections per slot to begin with, twice of what is typical at 64 to 128 px
ENOUGH = 100_000  # points to see from where they lie and how far they reach
SHAPES = {"ball": ball, "shell": shell}  # of what is there at first


def gaussian_setup(g: GaussianConfig, optimizer: OptimizerConfig, steps: int, view: float, seed: int, pixel: float) -> SceneSetup:
    """The setup of a scene of Gaussians.

    Args:
        g: its settings.
        optimizer: settings of Adam that all parameters share.
        steps: of the run; schedules are fractions of it.
        view: distance from the origin up to which the cameras of training see, world units. A file of points is fitted into it.
        seed: for the choice of rows of a file of points.
        pixel: edge of the finest pixel that training sees at the origin, world units.

    Returns:
        The setup.
    """
    filter_std = math.sqrt(g.filter_3d) * pixel
    from_file = g.init_type not in SHAPES

    def scene(shapes: StaticShapes, background: str = g.background, blank: bool = False) -> Scene:
        if from_file and not blank:
            points = lambda key, count: points_of_file(g, view, seed)[0]  # noqa: E731 (read when they are made)
        else:
            points = partial(SHAPES.get(g.init_type, ball), radius=g.init_extent)
        return gs.gaussians(
            height=shapes.resolution,
            width=shapes.resolution,
            intersections=shapes.capacity,
            capacity=g.capacity,
            count=g.init_count,
            points=points,
            size=g.init_scale,
            opacity=g.init_opacity,
            degree=g.sh_degree,
            statistic=g.refine.statistic,
            filter_std=filter_std,
            background=BACKGROUNDS[background],
        )

    r = g.refine
    strategy = DensifyStrategy(r.grow_grad2d, r.fraction, r.grow_scale3d, r.prune_opacity, r.prune_scale3d, r.prune_pieces)

    def gaussian_refine(tx: optax.GradientTransformation, key: Key[Array, ""], state: TrainState) -> TrainState:
        if r.kind == "relocate":
            return relocate(key, state, tx, r.prune_opacity, r.growth, r.prune_pieces)
        return densify(key, state, tx, strategy)

    return SceneSetup(
        scene=scene,
        blank_scene=partial(scene, blank=True),
        eval_scene=partial(scene, background="white", blank=True),
        tx=gaussian_optimizer(g, optimizer, steps),
        choose_shapes=partial(gaussian_shapes, g.capacity),
        should_refine=lambda done: r.every > 0 and done % r.every == 0 and r.start * steps <= done <= r.stop * steps,
        refine=gaussian_refine,
        count=lambda aux: {"gaussians": int(np.sum(aux["alive"]))},
        export=lambda folder, theta, aux: export_gaussians(folder, gs.filtered(theta, filter_std), aux),
        mass=lambda theta, aux: gaussian_mass(gs.filtered(theta, filter_std), aux),
        surface=lambda theta, aux: density_field.of_gaussians(gs.filtered(theta, filter_std), np.asarray(aux["alive"])),
        exports_mesh=False,
        notes=lambda: points_of_file(g, view, seed)[1] if from_file else [],
    )


def points_of_file(g: GaussianConfig, view: float, seed: int) -> tuple[Start, list[str]]:
    """The first Gaussians from the file `gaussians.init_type`.

    Args:
        g: names the file.
        view: distance from the origin up to which the cameras of training see, world units.
        seed: for the choice of rows.

    Returns:
        {leaf of theta: first rows}, and notes for the user.

    Raises:
        UserError: there is no such file, or it holds no point that can be rendered.
    """
    if not Path(g.init_type).is_file():
        raise UserError(f"gaussians.init_type must be ball, shell or a file of points or splats, got {g.init_type}")
    points = read_points(g.init_type, max(g.init_count, ENOUGH), seed)
    if not len(points.columns["means"]):
        raise UserError(f"{g.init_type} holds no point that can be rendered")
    columns, notes = fitted(points.columns, g.fit, view, g.init_extent)
    if points.total > g.init_count:
        n, slots = min(points.total, MOST_GAUSSIANS), min(2 * points.total, MOST_GAUSSIANS)
        more = f"--gaussians.init-count {n}" + (f" --gaussians.capacity {slots}" if slots > g.capacity else "")
        notes.append(f"{g.init_count:,} of its {points.total:,} rows are drawn at random: pass {more} for more")
    if (degree := math.isqrt(columns["sh"].shape[1]) - 1 if "sh" in columns else 0) > g.sh_degree:
        notes.append(f"its colours depend on the view to degree {degree}: pass --gaussians.sh-degree {degree} to keep that")
    return from_points(columns, g.init_count, seed), [f"{g.init_type}: {note}" for note in (*points.notes, *notes)]


def gaussian_optimizer(g: GaussianConfig, o: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Adam with one learning rate per parameter. All rates decay alike, and that of the means by `means_decay` in addition.

    Args:
        g: learning rates.
        o: settings of Adam that all parameters share.
        steps: of the run.

    Returns:
        An optax optimizer.
    """
    rates = vars(g.lr)
    chain = [
        optax.scale_by_adam(o.b1, o.b2, o.eps),
        decaying(o.decay, steps),
        scaled_by_name(rates),
    ]
    if g.means_decay < 1:  # checkpoints of runs without it hold no such counter
        chain.append(optax.masked(decaying(g.means_decay, steps), {name: name == "means" for name in rates}))
    return optax.chain(*chain)


def gaussian_shapes(slots: int, resolution: int, aux: Any) -> StaticShapes:
    """Static shapes with a capacity for a tenth more intersections than any view has had, as a power of two.

    Args:
        slots: capacity of the scene.
        resolution: edge of the renders, pixels.
        aux: with "total"; None at first.

    Returns:
        Static shapes.
    """
    most = 0 if aux is None else int(np.max(aux["total"]))
    capacity = max(INTERSECTIONS_PER_GAUSSIAN * slots, round(1.1 * most))
    return StaticShapes(resolution, 1 << (capacity - 1).bit_length())


def export_gaussians(folder: Path, theta: Any, aux: Any) -> str:
    """Writes scene.ply and scene.splat.

    Args:
        folder: of the run.
        theta: parameters.
        aux: of the scene.

    Returns:
        A line on what was written.
    """
    alive = np.asarray(aux["alive"])
    splats = {name: np.asarray(x)[alive] for name, x in theta.items()}
    dropped = write_ply(folder / "scene.ply", splats)
    write_splat(folder / "scene.splat", splats)
    return f"scene.ply and scene.splat with {alive.sum() - dropped} Gaussians" + (
        f" ({dropped} that were not finite left out)" if dropped else ""
    )


def gaussian_mass(theta: Any, aux: Any) -> tuple[np.ndarray, np.ndarray]:
    """Means, and opacity times the largest area that a Gaussian can show.

    Args:
        theta: parameters.
        aux: of the scene.

    Returns:
        Points [n 3] and masses [n].
    """
    alive = np.asarray(aux["alive"])
    area = np.exp(np.sort(np.asarray(theta["log_scales"]), 1)[:, 1:].sum(1))
    opacity = 1 / (1 + np.exp(-np.asarray(theta["opacity_logits"])))
    return np.asarray(theta["means"])[alive], (opacity * area)[alive]
