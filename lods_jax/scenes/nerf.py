"""A neural radiance field on a hash grid (Mueller et al. 2022), without view dependence, inside a ball.

Samples in empty cells of an occupancy grid, or behind a wall of full ones, are never evaluated: those that are left are packed
into a static number of slots, and beyond it the farthest are dropped (extras["total"] tells how many there were).
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from lods_jax.core.cameras import rays
from lods_jax.core.types import Camera, Render, Scene
from lods_jax.scenes.gaussians import white_or_grey
from lods_jax.scenes.hash_encoding import encode, resolutions
from lods_jax.scenes.volume_rendering import absorb, before, distortion, moments

HIDDEN = 7.0  # optical depth: a thousandth of the light comes from beyond it
NEAR = 0.05  # world units before the camera, where nothing is seen
CHUNK = 1 << 18  # samples that are evaluated at once


class FieldConfig(NamedTuple):
    """Sizes of the field. `TINY` is for CPUs, `OFFICIAL` that of LODS and threestudio."""

    levels: int = 8
    log2_rows: int = 14  # of each level's table
    base: int = 16  # cells an edge of the coarsest level
    finest: int = 128
    hidden: int = 64  # width of the one hidden layer, of density and of colour
    bound: float = 0.8  # radius of the ball that holds the scene, world units
    sharpness: float = 3.0  # density = sharpness softplus(raw)
    blob: float = 5.0  # raw starts as blob (1 - r / blob_radius) (Poole et al. 2022; Lin et al. 2023)
    blob_radius: float = 0.5
    cells: int = 48  # of the occupancy grid, an edge


TINY = FieldConfig()
OFFICIAL = FieldConfig(levels=16, log2_rows=19, finest=4096, bound=1.0, sharpness=1.0, blob=10.0, cells=32)


# --- the field --------------------------------------------------------------------------------------------------------------
def init_field(key: Key[Array, ""], field: FieldConfig) -> dict[str, Any]:
    """Tables uniform in +-1e-4, layers without bias as He et al. 2015."""
    k_tables, k_density, k_color = jax.random.split(key, 3)
    shape = (1 << field.log2_rows, 2)
    tables = [jax.random.uniform(k, shape, minval=-1e-4, maxval=1e-4) for k in jax.random.split(k_tables, field.levels)]
    width = 2 * field.levels
    return {
        "tables": tables,
        "density": init_layers(k_density, (width, field.hidden, 1)),
        "color": init_layers(k_color, (width, field.hidden, 3)),
    }


def init_layers(key: Key[Array, ""], widths: tuple[int, ...]) -> list[Float[Array, "_ _"]]:
    keys = jax.random.split(key, len(widths) - 1)
    scale = jax.nn.initializers.he_uniform()
    return [scale(k, shape) for k, shape in zip(keys, pairwise(widths), strict=True)]


def layers(weights: list[Float[Array, "_ _"]], x: Float[Array, "n i"]) -> Float[Array, "n o"]:
    """Linear layers with ReLU between."""
    for w in weights[:-1]:
        x = jax.nn.relu(x @ w)
    return x @ weights[-1]


def features(field: FieldConfig, tables: list, x: Float[Array, "3 n"]) -> Float[Array, "n d"]:
    return encode(tables, x / (2 * field.bound) + 0.5, resolutions(field.levels, field.base, field.finest))


def before_softplus(field: FieldConfig, theta: dict, x: Float[Array, "3 n"], encoded: Float[Array, "n d"]) -> Float[Array, "n"]:
    r = jnp.sqrt(jnp.sum(x * x, 0))
    return layers(theta["density"], encoded)[:, 0] + field.blob * (1 - r / field.blob_radius)


def density(field: FieldConfig, theta: dict, x: Float[Array, "3 n"]) -> Float[Array, "n"]:
    """Absorption per world unit at world points [3 n]; 0 outside the ball."""
    sigma = field.sharpness * jax.nn.softplus(before_softplus(field, theta, x, features(field, theta["tables"], x)))
    return jnp.where(jnp.sum(x * x, 0) < field.bound**2, sigma, 0.0)


def query_field(field: FieldConfig, theta: dict, x: Float[Array, "3 n"]) -> Float[Array, "n 4"]:
    """Density and colour in [0, 1] at world points."""
    encoded = features(field, theta["tables"], x)
    sigma = field.sharpness * jax.nn.softplus(before_softplus(field, theta, x, encoded))
    return jnp.concatenate([sigma[:, None], jax.nn.sigmoid(layers(theta["color"], encoded))], 1)


def normals(field: FieldConfig, theta: dict, x: Float[Array, "3 n"], eps: float) -> Float[Array, "n 3"]:
    """Unit vectors against the density's gradient, from four taps at distance sqrt(3) eps (0 where it has none)."""
    taps = jnp.array([(1.0, 1.0, 1.0), (1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (-1.0, -1.0, 1.0)])
    at = lambda tap: x + eps * tap[:, None]  # noqa: E731
    raw = jax.lax.map(lambda tap: before_softplus(field, theta, at(tap), features(field, theta["tables"], at(tap))), taps)
    slope = jnp.einsum("tn,tk->nk", raw, taps)
    # The double where of numerics.normalize, and a length below which a direction is noise.
    square = jnp.sum(slope**2, 1, keepdims=True)
    return jnp.where(square > 1e-12, -slope / jnp.sqrt(jnp.where(square > 1e-12, square, 1.0)), 0.0)


def in_chunks(evaluate: Callable[[Array], Array], x: Float[Array, "3 n"]) -> Float[Array, "n d"]:
    """evaluate(x), CHUNK points after CHUNK points where there are more; the backward pass makes their activations again.

    A point of the official field takes a kilobyte of them or more, and half of 512 samples along 256 x 256 rays are 17 million.
    """
    if x.shape[1] <= CHUNK:
        return evaluate(x)
    chunks = jnp.pad(x, ((0, 0), (0, -x.shape[1] % CHUNK))).reshape(3, -1, CHUNK)
    found = jax.lax.map(jax.checkpoint(evaluate, prevent_cse=False), jnp.moveaxis(chunks, 1, 0))
    return found.reshape(-1, found.shape[2])[: x.shape[1]]


# --- occupancy --------------------------------------------------------------------------------------------------------------
def centres(field: FieldConfig) -> Float[Array, "3 m"]:
    """World positions of the middles of the occupancy cells, m = cells^3."""
    line = ((jnp.arange(field.cells) + 0.5) / field.cells - 0.5) * 2 * field.bound
    return jnp.stack(jnp.meshgrid(line, line, line, indexing="ij")).reshape(3, -1)


def update_occupancy_grid(
    key: Key[Array, ""], field: FieldConfig, theta: dict, aux: dict, *, decay: float = 0.5, empty: float = 0.5
) -> dict[str, Any]:
    """aux with the occupancy of theta. A cell is occupied if it, or one of its 26 neighbours, has had a density above `empty`.

    A cell remembers the larger of what it held, times `decay`, and the density at a random point of it now (Mueller et al. 2022,
    appendix E). Neighbours count so that a surface can grow.
    """
    x = centres(field)
    cell = 2 * field.bound / field.cells
    now = density(field, theta, x + cell * (jax.random.uniform(key, x.shape) - 0.5)).reshape(aux["density"].shape)
    held = jnp.maximum(decay * aux["density"], now)
    return aux | {"density": held, "occupied": grown(held > empty), "last": aux["total"], "total": 0 * aux["total"]}


def grown(cells: Bool[Array, "c c c"]) -> Bool[Array, "c c c"]:
    """Cells and their 26 neighbours."""
    return jax.lax.reduce_window(cells, False, jax.lax.bitwise_or, (3, 3, 3), (1, 1, 1), "SAME")


# --- the scene --------------------------------------------------------------------------------------------------------------
def nerf(
    *,
    height: int,
    width: int,
    capacity: int,
    field: FieldConfig = TINY,
    samples: int = 64,
    stratified: bool = True,
    normal_eps: float | None = None,
    environment: bool = False,
    background: Callable[[Key[Array, ""]], Float[Array, "3"]] = white_or_grey,
) -> Scene:
    """The scene for renders of height x width pixels.

    theta: tables, density and color (`init_field`), and `environment` if there is one.
    aux: density [c c c] and occupied [c c c] bool of the occupancy grid (`refresh`); total: the most samples that a view
      needed since the last refresh, and last: between the two before.

    Args:
      capacity: samples per view that are evaluated; the farthest are dropped beyond it (see aux["total"]).
      samples: per ray through the whole ball. stratified: jittered within their interval, else at its middle.
      normal_eps: world units between the taps of normals, which come with extras["normal"] and ["orientation"]; None: without.
      environment: learn a background of the ray's direction, and show it in half of the views (as LODS does).
      background: key -> rgb, drawn anew for every view.
    """
    if samples < 1 or capacity < 1:
        raise ValueError(f"samples and capacity must be at least 1, got {samples} and {capacity}")
    step = 2 * field.bound / samples

    def init(key: Key[Array, ""]):
        k_field, k_environment, k_grid = jax.random.split(key, 3)
        theta = init_field(k_field, field)
        if environment:
            theta["environment"] = init_layers(k_environment, (9, 16, 16, 3))
        shape = (field.cells,) * 3
        aux = {"density": jnp.zeros(shape), "occupied": jnp.ones(shape, bool), "total": jnp.zeros((), jnp.int32)}
        aux["last"] = aux["total"]
        return theta, update_occupancy_grid(k_grid, field, theta, aux)

    def view(theta, aux, camera: Camera, key) -> Render:
        k_jitter, k_background = jax.random.split(key)
        origins, directions = (x.reshape(-1, 3).T[:, None] for x in rays(jax.tree.map(lambda x: x[None], camera), height, width))
        middle = -jnp.sum(origins * directions, 0)
        offsets = jnp.arange(samples)[:, None] + (
            jax.random.uniform(k_jitter, (samples, height * width)) if stratified else jnp.full((1, 1), 0.5)
        )
        along = middle - field.bound + step * offsets  # [s n]
        points = origins + along[None] * directions  # [3 s n]
        inside = (jnp.sum(points**2, 0) < field.bound**2) & (along > NEAR)
        cell = jnp.clip((points / (2 * field.bound) + 0.5) * field.cells, 0, field.cells - 1).astype(jnp.int32)
        active = inside & aux["occupied"][cell[0], cell[1], cell[2]]
        # Nor is what lies behind a wall, by half of what the grid remembers.
        thickness = jnp.where(active, aux["density"][cell[0], cell[1], cell[2]] * step, 0.0)
        active = active & (before(thickness) < 2 * HIDDEN)

        # Rows come front to back, so that what is beyond the capacity is farthest.
        packed = jnp.nonzero(active.ravel(), size=capacity, fill_value=active.size)[0]
        at = points.reshape(3, -1).at[:, packed].get(mode="fill", fill_value=0.0)
        found = in_chunks(lambda x: query_field(field, theta, x), at)
        unpack = lambda x: (  # noqa: E731
            jnp.zeros((active.size, x.shape[1])).at[packed].set(x, mode="drop", unique_indices=True, indices_are_sorted=True)
        )
        sigma, *rgb = jnp.moveaxis(unpack(found).reshape(*active.shape, 4), -1, 0)
        weights, passed = absorb(sigma, step)
        forward = jnp.sum(directions[:, 0] * camera.c2w[:3, 2, None], 0)
        opacity, depth, variance = moments(weights, along * forward[None])
        image = lambda x: x.reshape(height, width, 1)  # noqa: E731
        extras = {"total": jnp.sum(active), "z_var": image(variance)}
        extras["distortion"] = image(distortion(weights, along, step))
        if normal_eps is not None:
            unit = in_chunks(lambda x: normals(field, theta, x, normal_eps), at)
            unit = jnp.moveaxis(unpack(unit).reshape(*active.shape, 3), -1, 0)
            away = jnp.maximum(jnp.sum(unit * directions, 0), 0.0) ** 2
            extras["orientation"] = image(jnp.sum(jax.lax.stop_gradient(weights) * away, 0))
            extras["normal"] = jnp.sum(weights[None] * unit, 1).T.reshape(height, width, 3)
        behind = background(k_background)[None]
        if environment and "environment" in theta:
            learned = jax.nn.sigmoid(layers(theta["environment"], harmonics(directions[:, 0].T)))
            behind = jnp.where(jax.random.bernoulli(jax.random.fold_in(k_background, 1)), learned, behind)
        rgb = jnp.stack([jnp.sum(weights * channel, 0) for channel in rgb], -1) + passed[:, None] * behind
        return Render(rgb.reshape(height, width, 3), image(opacity), image(jnp.where(opacity > 0, depth, 0.0)), extras)

    def render(theta, aux, camera: Camera, keys: Key[Array, "b"], means2d_probe) -> Render:
        return jax.lax.map(lambda one: view(theta, aux, *one), (camera, keys))

    def update_stats(aux, means2d_grad, rendered: Render):
        return aux | {"total": jnp.maximum(aux["total"], jnp.max(rendered.extras["total"]))}

    return Scene(init, render, lambda aux, b: {}, update_stats, colors=("color", "environment"))


def harmonics(d: Float[Array, "n 3"]) -> Float[Array, "n 9"]:
    """Real spherical harmonics up to degree 2 of unit vectors, each up to a constant."""
    x, y, z = d.T
    return jnp.stack([jnp.ones_like(x), x, y, z, x * y, y * z, z * x, x * x - y * y, 3 * z * z - 1], 1)
