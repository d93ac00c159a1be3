"""A scene as density and colour at every point of space, for meshes and viewers."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy import ndimage
from scipy.spatial.transform import Rotation

from lods_jax.scenes.radiance_field import FieldConfig
from lods_jax.scenes.radiance_field import query_field as query_nerf
from lods_jax.scenes.spherical_harmonics import Y00


class Surface(NamedTuple):
    """A scene as a density and a colour at every point of the cube [-bound, bound]^3.

    Attributes:
        bound: half the edge of the cube, world units.
        query_field: points [n 3] -> density and RGB in [0, 1], [n 4].
    """

    bound: float
    query_field: Callable[[Float[np.ndarray, "n 3"]], Float[np.ndarray, "n 4"]]


def of_field(field: FieldConfig, theta: dict) -> Surface:
    """The density field of a NeRF; its density is absorption per world unit.

    Args:
        field: sizes of the NeRF.
        theta: its parameters.

    Returns:
        The density field.
    """
    return Surface(field.bound, partial(in_chunks, 1 << 16, partial(query_rows, field, theta)))


@partial(jax.jit, static_argnums=0)  # theta is an argument: one compilation serves all fields of a size
def query_rows(field: FieldConfig, theta: dict, x: Float[Array, "m 3"]) -> Float[Array, "m 4"]:
    """`nerf.query_field` at points in rows.

    Args:
        field: sizes of the NeRF.
        theta: its parameters.
        x: points [m 3].

    Returns:
        Density and RGB [m 4].
    """
    return query_nerf(field, theta, x.T)


def of_gaussians(theta: dict, alive: Bool[np.ndarray, "n"], bound: float = 0.9) -> Surface:
    """The density field of Gaussian splats: the sum of opacity exp(-d^2 / 2), d being the distance in standard deviations.

    The colour is the mean under the same weights. Nothing is fitted; a level for the surface is chosen by eye.

    Args:
        theta: parameters of `scenes.gaussians`.
        alive: the Gaussians to count.
        bound: half the edge of the cube, world units.

    Returns:
        The density field.
    """
    means, quats, scales, logits, sh = (
        np.asarray(theta[name])[alive] for name in ("means", "quats", "log_scales", "opacity_logits", "sh")
    )
    axes = Rotation.from_quat(quats, scalar_first=True).as_matrix()  # columns
    whiten = np.swapaxes(axes, 1, 2) / np.exp(scales)[:, :, None]  # x - mean into standard deviations
    offset = np.einsum("gij,gj->ig", whiten, means)
    whiten, offset = jnp.asarray(whiten.reshape(-1, 3), jnp.float32), jnp.asarray(offset, jnp.float32)
    opacity, rgb = jax.nn.sigmoid(jnp.asarray(logits)), jnp.clip(0.5 + Y00 * jnp.asarray(sh[:, 0]), 0, 1)

    @jax.jit
    def query_field(x: Float[Array, "m 3"]) -> Float[Array, "m 4"]:
        away = (x @ whiten.T).reshape(len(x), -1, 3) - offset.T
        weight = opacity * jnp.exp(-jnp.sum(away**2, 2) / 2)
        total = jnp.sum(weight, 1, keepdims=True)
        return jnp.concatenate([total, weight @ rgb / jnp.maximum(total, 1e-12)], 1)

    return Surface(bound, partial(in_chunks, 1 << 11, query_field))


def in_chunks(size: int, query_field: Callable, x: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n _"]:
    """Evaluates a function on chunks of points, with one compilation whatever their number.

    Args:
        size: points per chunk.
        query_field: [size 3] -> [size d].
        x: points [n 3].

    Returns:
        [n d].
    """
    padded = np.zeros((max(-(-len(x) // size), 1) * size, 3), np.float32)
    padded[: len(x)] = x
    parts = [np.asarray(query_field(jnp.asarray(part))) for part in padded.reshape(-1, size, 3)]
    return np.concatenate(parts)[: len(x)]


def grid(surface: Surface, points: int) -> Float[np.ndarray, "g g g"]:
    """Densities on a regular grid over the cube, borders included.

    Args:
        surface: the density field.
        points: per edge.

    Returns:
        [points points points] by x, y and z.
    """
    return surface.query_field(places(surface.bound, points))[:, 0].reshape((points,) * 3)


def places(bound: float, points: int) -> Float[np.ndarray, "n 3"]:
    """The points of a regular grid over the cube, borders included.

    Args:
        bound: half the edge of the cube.
        points: per edge.

    Returns:
        [points^3 3], x slowest.
    """
    line = np.linspace(-bound, bound, points, dtype=np.float32)
    return np.stack(np.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)


def surfels(surface: Surface, level: float, points: int = 96) -> dict[str, np.ndarray]:
    """Flat opaque Gaussians on the surface at a level of the density, without small loose parts.

    Args:
        surface: the density field.
        level: density from which a grid cell is solid.
        points: of the grid, per edge.

    Returns:
        Columns for `ply.write_ply`.
    """
    values = grid(surface, points)
    solid = largest(values > level)
    shell = solid & ~ndimage.binary_erosion(solid)
    cell = 2 * surface.bound / (points - 1)
    means = places(surface.bound, points)[shell.ravel()]
    # Along the logarithm, which is straighter than a density that grows tenfold within a cell.
    slope = np.stack(np.gradient(ndimage.gaussian_filter(np.log(values + 1e-3), 1.0)), -1)[shell]
    outward = -slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-9)
    # The rotation of z into the normal, as a half-way quaternion; a half turn about x where they are opposite.
    quats = np.stack([1 + outward[:, 2], -outward[:, 1], outward[:, 0], np.zeros(len(means), np.float32)], 1)
    quats[outward[:, 2] < -0.9999] = (0, 1, 0, 0)
    return {
        "means": means,
        "quats": (quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32),
        "log_scales": np.log(np.tile(np.float32([0.7, 0.7, 0.2]) * cell, (len(means), 1))),
        "opacity_logits": np.full(len(means), 4.0, np.float32),
        "sh": ((surface.query_field(means)[:, 1:] - 0.5) / Y00)[:, None].astype(np.float32),
    }


def largest(solid: Bool[np.ndarray, "g g g"], share: float = 0.02) -> Bool[np.ndarray, "g g g"]:
    """Removes the connected parts that have fewer than a share of the largest one's cells.

    Args:
        solid: the cells.
        share: of the largest part.

    Returns:
        The other cells.
    """
    parts, _ = ndimage.label(solid)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0  # what is not solid
    return (sizes >= share * sizes.max())[parts] & solid
