"""A neural radiance field (`scenes.radiance_field`) as a scene: an occupancy grid that tells where it is empty, and its renderer.

Samples in empty cells of an occupancy grid, or behind a wall of full ones, are never evaluated: those that are left are packed
into a static number of slots, and beyond it the farthest are dropped (extras["total"] tells how many there were).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from lods_jax.core.cameras import rays
from lods_jax.core.types import Camera, Render, Scene
from lods_jax.scenes.gaussians import white_or_grey
from lods_jax.scenes.radiance_field import (
    TINY,
    FieldConfig,
    density,
    in_chunks,
    init_field,
    init_layers,
    layers,
    normals,
    query_field,
)
from lods_jax.scenes.volume_rendering import absorb, before, distortion, moments

HIDDEN = 7.0  # optical depth: a thousandth of the light comes from beyond it
NEAR = 0.05  # world units before the camera, where nothing is seen
TOGETHER = 1 << 25  # samples, empty ones too, that are held at once: a dense array of them takes 128 MiB


# --- occupancy --------------------------------------------------------------------------------------------------------------
def centres(field: FieldConfig) -> Float[Array, "3 m"]:
    """World positions of the centres of the cells of the occupancy grid.

    Args:
        field: its sizes.

    Returns:
        [3 cells^3].
    """
    line = ((jnp.arange(field.cells) + 0.5) / field.cells - 0.5) * 2 * field.bound
    return jnp.stack(jnp.meshgrid(line, line, line, indexing="ij")).reshape(3, -1)


def update_occupancy_grid(
    key: Key[Array, ""], field: FieldConfig, theta: dict, aux: dict, *, decay: float = 0.5, empty: float = 0.5
) -> dict[str, Any]:
    """Updates the occupancy grid to the field's density (Mueller et al. 2022, appendix E).

    A cell holds the larger of what it held times `decay` and the density at a random point of it now. It is occupied if it, or
    one of its 26 neighbours, exceeds `empty`. Neighbours count so that a surface can grow.

    Args:
        key: for the random points.
        field: its sizes.
        theta: its parameters.
        aux: of the scene.
        decay: in one update.
        empty: density up to which a cell is empty.

    Returns:
        The new aux.
    """
    x = centres(field)
    cell = 2 * field.bound / field.cells
    now = density(field, theta, x + cell * (jax.random.uniform(key, x.shape) - 0.5)).reshape(aux["density"].shape)
    held = jnp.maximum(decay * aux["density"], now)
    return aux | {"density": held, "occupied": grown(held > empty), "last": aux["total"], "total": 0 * aux["total"]}


def grown(cells: Bool[Array, "c c c"]) -> Bool[Array, "c c c"]:
    """Marks cells [c c c] and their 26 neighbours."""
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
    """A neural radiance field on a hash grid, rendered at height x width pixels.

    theta: tables, density and color (`init_field`), and `environment` if it is learned. aux: density [c c c] and occupied [c c c]
    bool of the occupancy grid; total, the most samples that a view needed since the last update of the grid; and last, the same
    between the two updates before.

    Args:
        height: of the renders, pixels.
        width: of the renders, pixels.
        capacity: samples per view that are evaluated; the farthest beyond it are dropped (see aux["total"]).
        field: sizes of the field.
        samples: per ray, through the whole ball.
        stratified: whether a sample is drawn within its interval, or lies at its middle.
        normal_eps: distance of the taps of normals, world units; None for no extras["normal"] and extras["orientation"].
        environment: whether a background that depends on the ray's direction is learned, and shown in half of the views, as in
            LODS.
        background: key -> rgb [3], drawn for every view.

    Returns:
        The scene.

    Raises:
        ValueError: `samples` or `capacity` is below 1.

    Examples:
        >>> scene = nerf(height=64, width=64, capacity=2**16)
    """
    if samples < 1 or capacity < 1:
        raise ValueError(f"samples and capacity must be at least 1, got {samples} and {capacity}")
    step = 2 * field.bound / samples
    parts = parts_of(height * width, samples)

    def init(key: Key[Array, ""]):
        k_field, k_environment, k_grid = jax.random.split(key, 3)
        theta = init_field(k_field, field)
        if environment:
            theta["environment"] = init_layers(k_environment, (9, 16, 16, 3))
        shape = (field.cells,) * 3
        aux = {"density": jnp.zeros(shape), "occupied": jnp.ones(shape, bool), "total": jnp.zeros((), jnp.int32)}
        aux["last"] = aux["total"]
        return theta, update_occupancy_grid(k_grid, field, theta, aux)

    def render_rays(
        theta, aux, camera: Camera, key, part: Int[Array, ""], origins: Float[Array, "3 n"], directions: Float[Array, "3 n"]
    ):
        """What a part of the rays of a view shows, {name: [n c]}, and the number of samples that it needed."""
        n = origins.shape[1]
        k_jitter, k_background = jax.random.split(key)
        k_jitter = k_jitter if parts == 1 else jax.random.fold_in(k_jitter, part)
        middle = -jnp.sum(origins * directions, 0, keepdims=True)
        offsets = jnp.arange(samples)[:, None] + (
            jax.random.uniform(k_jitter, (samples, n)) if stratified else jnp.full((1, 1), 0.5)
        )
        along = middle - field.bound + step * offsets  # [s n]
        points = origins[:, None] + along[None] * directions[:, None]  # [3 s n]
        inside = (jnp.sum(points**2, 0) < field.bound**2) & (along > NEAR)
        cell = jnp.clip((points / (2 * field.bound) + 0.5) * field.cells, 0, field.cells - 1).astype(jnp.int32)
        active = inside & aux["occupied"][cell[0], cell[1], cell[2]]
        # Nor is what lies behind a wall, by half of what the grid remembers.
        thickness = jnp.where(active, aux["density"][cell[0], cell[1], cell[2]] * step, 0.0)
        active = active & (before(thickness) < 2 * HIDDEN)

        # Rows come front to back, so that what is beyond the capacity is farthest.
        packed = jnp.nonzero(active.ravel(), size=-(-capacity // parts), fill_value=active.size)[0]
        # One number of a sample at a time: whole points of all samples, and rows of four, are what a large view would take.
        ray = jnp.where(packed < active.size, packed % n, n)
        take = lambda x, rows: x.at[rows].get(mode="fill", fill_value=0.0)  # noqa: E731
        distance = take(along.ravel(), packed)
        at = jnp.stack([take(origins[k], ray) + distance * take(directions[k], ray) for k in range(3)])
        found = in_chunks(lambda x: query_field(field, theta, x), at)

        def unpack(x: Float[Array, "m"]) -> Float[Array, "s n"]:
            where = jnp.zeros(active.size).at[packed]
            return where.set(x, mode="drop", unique_indices=True, indices_are_sorted=True).reshape(active.shape)

        sigma, *rgb = map(unpack, found.T)
        weights, passed = absorb(sigma, step)
        forward = jnp.sum(directions * camera.c2w[:3, 2, None], 0)
        opacity, depth, variance = moments(weights, along * forward[None])
        shown = {"opacity": opacity, "depth": jnp.where(opacity > 0, depth, 0.0), "z_var": variance}
        shown["distortion"] = distortion(weights, along, step)
        shown = {name: x[:, None] for name, x in shown.items()}
        if normal_eps is not None:
            unit = in_chunks(lambda x: normals(field, theta, x, normal_eps), at)
            unit = jnp.stack([*map(unpack, unit.T)])
            away = jnp.maximum(jnp.sum(unit * directions[:, None], 0), 0.0) ** 2
            shown["orientation"] = jnp.sum(jax.lax.stop_gradient(weights) * away, 0)[:, None]
            shown["normal"] = jnp.sum(weights[None] * unit, 1).T
        behind = background(k_background)[None]
        if environment and "environment" in theta:
            learned = jax.nn.sigmoid(layers(theta["environment"], harmonics(directions.T)))
            behind = jnp.where(jax.random.bernoulli(jax.random.fold_in(k_background, 1)), learned, behind)
        shown["rgb"] = jnp.stack([jnp.sum(weights * channel, 0) for channel in rgb], -1) + passed[:, None] * behind
        return shown, jnp.sum(active)

    def render(theta, aux, camera: Camera, keys: Key[Array, "b"], means2d_probe) -> Render:
        b = len(keys)
        # Neighbouring rays go to different parts, so that each needs about as many samples.
        own = [jnp.moveaxis(x.reshape(b, -1, parts, 3), 1, 3).reshape(b * parts, 3, -1) for x in rays(camera, height, width)]
        view, part = jnp.divmod(jnp.arange(b * parts), parts)
        render_part = partial(render_rays, theta, aux)
        if b * samples * height * width > TOGETHER:
            render_part = jax.checkpoint(render_part, prevent_cse=False)
        cameras = jax.tree.map(lambda x: x[view], camera)
        shown, total = jax.lax.map(lambda x: render_part(*x), (cameras, keys[view], part, *own))
        image = lambda x: jnp.moveaxis(x.reshape(b, parts, -1, x.shape[2]), 1, 2).reshape(b, height, width, -1)  # noqa: E731
        shown = jax.tree.map(image, shown)
        main = [shown.pop(name) for name in ("rgb", "opacity", "depth")]
        return Render(*main, shown | {"total": parts * jnp.max(total.reshape(b, parts), 1)})

    def update_stats(aux, means2d_grad, rendered: Render):
        return aux | {"total": jnp.maximum(aux["total"], jnp.max(rendered.extras["total"]))}

    return Scene(init, render, lambda aux, b: {}, update_stats, colors=("color", "environment"))


def parts_of(rays: int, samples: int) -> int:
    """In how many parts the rays of a view are rendered, one after the other; the backward pass renders each again.

    Args:
        rays: of a view.
        samples: of a ray.

    Returns:
        A power of two.

    Examples:
        >>> parts_of(256 * 256, 512), parts_of(512 * 512, 512)
        (1, 4)
    """
    parts = 1
    while rays // parts * samples > TOGETHER and rays % (2 * parts) == 0:
        parts *= 2
    return parts


def harmonics(d: Float[Array, "n 3"]) -> Float[Array, "n 9"]:
    """Real spherical harmonics up to degree 2, each up to a constant.

    Args:
        d: unit vectors [n 3].

    Returns:
        [n 9].
    """
    x, y, z = d.T
    return jnp.stack([jnp.ones_like(x), x, y, z, x * y, y * z, z * x, x * x - y * y, 3 * z * z - 1], 1)
