"""Kinds of scene as a run needs them: made from a configuration, optimised, refined, counted, exported and measured."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key

from lods_jax.config import Config, ever_on
from lods_jax.config.schema import MOST_GAUSSIANS
from lods_jax.core.errors import UserError
from lods_jax.core.types import Scene, TrainState
from lods_jax.scenes import density_field
from lods_jax.scenes import gaussians as gs
from lods_jax.scenes import nerf as radiance
from lods_jax.scenes.densification import DensifyStrategy, densify, relocate
from lods_jax.scenes.density_field import Surface
from lods_jax.scenes.ensemble import ensemble
from lods_jax.scenes.gaussian_init import Start, ball, fitted, from_points, shell
from lods_jax.scenes.ply import read_points, write_ply, write_splat


class StaticShapes(NamedTuple):
    """What a compiled step depends on beside the configuration. Equal values share one compilation."""

    resolution: int  # edge of a render, pixels
    capacity: int  # for pairs of Gaussian and tile, or for samples along rays, per view


def read_shapes(saved: Mapping[str, int]) -> StaticShapes:
    """The static shapes that a checkpoint holds; older ones say `room` for the capacity."""
    return StaticShapes(saved["resolution"], saved["capacity"] if "capacity" in saved else saved["room"])


class SceneSetup(NamedTuple):
    """A kind of scene, as functions of the configuration."""

    scene: Callable[[Config, StaticShapes], Scene]  # of all particles
    eval_scene: Callable[[Config, StaticShapes], Scene]  # of one particle, on white, for people
    tx: Callable[[Config], optax.GradientTransformation]
    # (config, resolution, aux or extras of renders, None at first) -> shapes
    choose_shapes: Callable[[Config, int, Any], StaticShapes]
    should_refine: Callable[[Config, int], bool]  # whether the scene is refined after so many steps
    refine: Callable[..., TrainState]  # (config, tx, key, state) -> state
    count: Callable[[Any], dict[str, int]]  # aux -> what a log says of its size
    # Of one particle, (theta, aux):
    export: Callable[[Path, Any, Any], str]  # writes the scene into a folder; says what it wrote
    mass: Callable[[Any, Any], tuple[np.ndarray, np.ndarray]]  # where there is something [n 3], and how much [n]
    surface: Callable[[Any, Any], Surface]  # densities and colours in space, for meshes
    exports_mesh: bool  # whether a run ends with a mesh


def scene_setup(config: Config) -> SceneSetup:
    """The kind of scene that a configuration names, in as many particles as it asks for."""
    one, n = SCENES[config.scene], config.particles
    if n == 1:
        return one

    def refine(config: Config, tx: optax.GradientTransformation, key: Key[Array, ""], state: TrainState) -> TrainState:
        # Moments have a row for each particle, the optimizer's counters are shared.
        rows = optax.tree_utils.tree_map_params(tx, lambda m: 0, state.opt_theta, transform_non_params=lambda x: None)
        axes = TrainState(step=None, theta=0, aux=0, psi=None, opt_theta=rows, opt_psi=None, skipped=None)
        alone = lambda key, state: one.refine(config, tx, key, state)  # noqa: E731
        return jax.vmap(alone, in_axes=(0, axes), out_axes=axes)(jax.random.split(key, n), state)

    return one._replace(scene=lambda config, shapes: ensemble(one.scene(config, shapes), n), refine=refine)


def unstack_particles(config: Config, tree: Any) -> list[Any]:
    """The share of each particle in theta or aux."""
    return [tree] if config.particles == 1 else [jax.tree.map(lambda x: x[i], tree) for i in range(config.particles)]  # noqa: B023


BACKGROUNDS = {
    "white-or-grey": gs.white_or_grey,
    "random": lambda key: jax.random.uniform(key, (3,)),
    "white": lambda key: jnp.ones(3),
    "black": lambda key: jnp.zeros(3),
}


# --- Gaussians --------------------------------------------------------------------------------------------------------------
INTERSECTIONS_PER_GAUSSIAN = 8  # tile intersections per slot to begin with, twice of what is typical at 64 to 128 px


ENOUGH = 100_000  # points to see from where they lie and how far they reach
SHAPES = {"ball": ball, "shell": shell}  # of what is there at first


def gaussian_scene(config: Config, shapes: StaticShapes, background: str | None = None) -> Scene:
    g = config.gaussians
    return gs.gaussians(
        height=shapes.resolution,
        width=shapes.resolution,
        intersections=shapes.capacity,
        capacity=g.capacity,
        count=g.init_count,
        points=first_points(config),
        size=g.init_scale,
        opacity=g.init_opacity,
        degree=g.sh_degree,
        statistic=g.refine.statistic,
        background=BACKGROUNDS[background or g.background],
    )


def first_points(config: Config) -> Callable[[Key[Array, ""], int], Start]:
    """Where the Gaussians are at first: a ball, a shell, or a file, which is read when they are made."""
    g = config.gaussians
    if g.init_type in SHAPES:
        return partial(SHAPES[g.init_type], radius=g.init_extent)
    return lambda key, count: points_of_file(config)[0]


def points_of_file(config: Config) -> tuple[Start, list[str]]:
    """What the Gaussians start from where `gaussians.init_type` is a file, and what a person should know of it, a line each."""
    g, camera = config.gaussians, config.camera
    if not Path(g.init_type).is_file():
        raise UserError(f"gaussians.init_type must be ball, shell or a file of points or splats, got {g.init_type}")
    points = read_points(g.init_type, max(g.init_count, ENOUGH), config.seed)
    if not len(points.columns["means"]):
        raise UserError(f"{g.init_type} holds no point that can be rendered")
    view = max(camera.extent) if camera.extent else max(camera.radius) * math.tan(math.radians(sum(camera.fov_y) / 4))
    columns, notes = fitted(points.columns, g.fit, view, g.init_extent)
    if points.total > g.init_count:
        n, room = min(points.total, MOST_GAUSSIANS), min(2 * points.total, MOST_GAUSSIANS)
        more = f"--gaussians.init-count {n}" + (f" --gaussians.capacity {room}" if room > g.capacity else "")
        notes.append(f"{g.init_count:,} of its {points.total:,} rows are drawn at random: pass {more} for more")
    if (degree := math.isqrt(columns["sh"].shape[1]) - 1 if "sh" in columns else 0) > g.sh_degree:
        notes.append(f"its colours depend on the view to degree {degree}: pass --gaussians.sh-degree {degree} to keep that")
    return from_points(columns, g.init_count, config.seed), [f"{g.init_type}: {note}" for note in (*points.notes, *notes)]


def notes_on_start(config: Config) -> list[str]:
    """What a person should know of what a run starts from, a line each."""
    from_file = config.scene == "gaussians" and config.gaussians.init_type not in SHAPES
    return points_of_file(config)[1] if from_file else []


def without_file(config: Config) -> Config:
    """The same scene, of the same shapes, without the file that it once started from, which may be gone."""
    return replace(config, gaussians=replace(config.gaussians, init_type="ball"))


def gaussian_optimizer(config: Config) -> optax.GradientTransformation:
    """Adam with one learning rate per parameter, all of them falling alike, and those of means by `means_decay` beside."""
    rates, o, means_decay = vars(config.gaussians.lr), config.optimizer, config.gaussians.means_decay
    falling = lambda share: optax.scale_by_schedule(optax.exponential_decay(1.0, config.steps, share))  # noqa: E731
    chain = [
        optax.scale_by_adam(o.b1, o.b2, o.eps),
        falling(o.decay),
        optax.stateless(lambda updates, _: {name: -rates[name] * update for name, update in updates.items()}),
    ]
    if means_decay < 1:  # checkpoints of runs without it hold no such counter
        chain.append(optax.masked(falling(means_decay), {name: name == "means" for name in rates}))
    return optax.chain(*chain)


def gaussian_shapes(config: Config, resolution: int, aux: Any) -> StaticShapes:
    """Room for the most intersections that a view has had, and a tenth more, in powers of two."""
    most = 0 if aux is None else int(np.max(aux["total"]))
    capacity = max(INTERSECTIONS_PER_GAUSSIAN * config.gaussians.capacity, round(1.1 * most))
    return StaticShapes(resolution, 1 << (capacity - 1).bit_length())


def gaussian_should_refine(config: Config, done: int) -> bool:
    r = config.gaussians.refine
    return r.every > 0 and done % r.every == 0 and r.start * config.steps <= done <= r.stop * config.steps


def gaussian_refine(config: Config, tx: optax.GradientTransformation, key: Key[Array, ""], state: TrainState) -> TrainState:
    r = config.gaussians.refine
    if r.kind == "relocate":
        return relocate(key, state, tx, r.prune_opacity, r.growth)
    return densify(key, state, tx, DensifyStrategy(r.grow_grad2d, r.fraction, r.grow_scale3d, r.prune_opacity, r.prune_scale3d))


def export_gaussians(folder: Path, theta: Any, aux: Any) -> str:
    alive = np.asarray(aux["alive"])
    splats = {name: np.asarray(x)[alive] for name, x in theta.items()}
    dropped = write_ply(folder / "scene.ply", splats)
    write_splat(folder / "scene.splat", splats)
    return f"scene.ply and scene.splat with {alive.sum() - dropped} Gaussians" + (
        f" ({dropped} that were not finite left out)" if dropped else ""
    )


def gaussian_mass(theta: Any, aux: Any) -> tuple[np.ndarray, np.ndarray]:
    """Means, and opacity times the area that a Gaussian shows at most."""
    alive = np.asarray(aux["alive"])
    area = np.exp(np.sort(np.asarray(theta["log_scales"]), 1)[:, 1:].sum(1))
    opacity = 1 / (1 + np.exp(-np.asarray(theta["opacity_logits"])))
    return np.asarray(theta["means"])[alive], (opacity * area)[alive]


# --- NeRF -------------------------------------------------------------------------------------------------------------------
FIELDS = {"tiny": radiance.TINY, "official": radiance.OFFICIAL}
NORMAL_EPS = 0.01  # world units
WALL = 10.0  # density that viewers take for solid, per world unit
BESIDE_LEARNED = {"learned": "white-or-grey", "learned-or-random": "random"}  # what views without the learned background show
MASS = 0.05  # a cell that stops less light is empty to a count
BUCKETS = 6  # rooms for samples: all, a half, a quarter, ...


def nerf_scene(config: Config, shapes: StaticShapes, for_eval: bool = False) -> Scene:
    n, behind = config.nerf, "white" if for_eval else config.nerf.background
    return radiance.nerf(
        height=shapes.resolution,
        width=shapes.resolution,
        capacity=shapes.capacity,
        field=FIELDS[n.size],
        samples=n.samples,
        stratified=not for_eval,
        normal_eps=NORMAL_EPS if ever_on(config.regularizers.orientation) and not for_eval else None,
        environment=behind in BESIDE_LEARNED,
        background=BACKGROUNDS[BESIDE_LEARNED.get(behind, behind)],
    )


def nerf_optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW with one learning rate per part of the field, all of them falling alike."""
    rates, o = vars(config.nerf.lr), config.optimizer
    return optax.chain(
        optax.scale_by_adam(o.b1, o.b2, o.eps),
        optax.add_decayed_weights(config.nerf.weight_decay),
        optax.scale_by_schedule(optax.exponential_decay(1.0, config.steps, o.decay)),
        optax.stateless(lambda updates, _: {name: scaled(-rates[name], update) for name, update in updates.items()}),
    )


def scaled(factor: float, tree: Any) -> Any:
    return jax.tree.map(lambda x: factor * x, tree)


def nerf_shapes(config: Config, resolution: int, aux: Any) -> StaticShapes:
    """Room for the most samples that a view has needed lately, and an eighth more; for half of all before the first step."""
    most = [] if aux is None else [int(np.max(aux[name])) for name in ("total", "last") if name in aux]
    every = config.nerf.samples * resolution**2
    rooms = [max(every >> i, 1) for i in range(BUCKETS)]
    return StaticShapes(
        resolution, rooms[1] if aux is None else min(capacity for capacity in rooms if capacity >= min(1.125 * max(most), every))
    )


def nerf_should_refine(config: Config, done: int) -> bool:
    return done % config.nerf.update_grid_every == 0


def nerf_refine(config: Config, tx: optax.GradientTransformation, key: Key[Array, ""], state: TrainState) -> TrainState:
    return state.replace(aux=radiance.update_occupancy_grid(key, FIELDS[config.nerf.size], state.theta, state.aux))


def field_of(aux: Any) -> radiance.FieldConfig:
    """The size of a field, which its grid tells."""
    return next(field for field in FIELDS.values() if field.cells == len(aux["density"]))


def export_nerf(folder: Path, theta: Any, aux: Any) -> str:
    splats = density_field.surfels(nerf_surface(theta, aux), WALL)
    write_ply(folder / "scene.ply", splats)
    write_splat(folder / "scene.splat", splats)
    return f"scene.ply and scene.splat with {len(splats['means'])} flat Gaussians on the field's surface, for viewers"


def nerf_surface(theta: Any, aux: Any) -> Surface:
    return density_field.of_field(field_of(aux), theta)


def nerf_mass(theta: Any, aux: Any) -> tuple[np.ndarray, np.ndarray]:
    """Middles of the occupancy cells, and the light that a cell stops at most."""
    held, field = np.asarray(aux["density"]), field_of(aux)
    middles = np.asarray(radiance.centres(field)).T
    mass = 1 - np.exp(-held.ravel() * 2 * field.bound / field.cells)
    return middles[mass > MASS], mass[mass > MASS]


SCENES: Mapping[str, SceneSetup] = {
    "gaussians": SceneSetup(
        gaussian_scene,
        partial(gaussian_scene, background="white"),
        gaussian_optimizer,
        gaussian_shapes,
        gaussian_should_refine,
        gaussian_refine,
        lambda aux: {"gaussians": int(np.sum(aux["alive"]))},
        export_gaussians,
        gaussian_mass,
        lambda theta, aux: density_field.of_gaussians(theta, np.asarray(aux["alive"])),
        exports_mesh=False,
    ),
    "nerf": SceneSetup(
        nerf_scene,
        partial(nerf_scene, for_eval=True),
        nerf_optimizer,
        nerf_shapes,
        nerf_should_refine,
        nerf_refine,
        lambda aux: {"samples": int(np.max(np.maximum(aux["total"], aux["last"])))},
        export_nerf,
        nerf_mass,
        nerf_surface,
        exports_mesh=True,
    ),
}
