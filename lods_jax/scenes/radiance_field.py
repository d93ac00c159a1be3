"""A colour and a density at every point of a ball: a hash grid and two small networks (Mueller et al. 2022).

It has no view dependence. `scenes.nerf` renders it.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lods_jax.scenes.hash_encoding import encode, resolutions

CHUNK = 1 << 18  # points that are evaluated at once


class FieldConfig(NamedTuple):
    """Sizes of the field. `TINY` is for CPUs, `OFFICIAL` that of LODS and threestudio.

    Attributes:
        levels: of the hash grid.
        log2_rows: rows of each level's table, as a power of two.
        base: cells per edge of the coarsest level.
        finest: cells per edge of the finest level.
        hidden: width of the one hidden layer, of density and of colour.
        bound: radius of the ball that holds the scene, world units.
        sharpness: density = sharpness softplus(raw).
        blob: raw starts as blob (1 - r / blob_radius) (Poole et al. 2022; Lin et al. 2023).
        blob_radius: world units.
        cells: per edge of the occupancy grid.
    """

    levels: int = 8
    log2_rows: int = 14
    base: int = 16
    finest: int = 128
    hidden: int = 64
    bound: float = 0.8
    sharpness: float = 3.0
    blob: float = 5.0
    blob_radius: float = 0.5
    cells: int = 48


TINY = FieldConfig()
OFFICIAL = FieldConfig(levels=16, log2_rows=19, finest=4096, bound=1.0, sharpness=1.0, blob=10.0, cells=32)


def init_field(key: Key[Array, ""], field: FieldConfig) -> dict[str, Any]:
    """The parameters of a field: tables uniform in +-1e-4, layers without bias as in He et al. (2015).

    Args:
        key: consumed.
        field: its sizes.

    Returns:
        {"tables", "density", "color"}.
    """
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
    """Weights of linear layers without bias, as in He et al. (2015).

    Args:
        key: consumed.
        widths: of input, hidden layers and output.

    Returns:
        One matrix [in out] per layer.
    """
    keys = jax.random.split(key, len(widths) - 1)
    scale = jax.nn.initializers.he_uniform()
    return [scale(k, shape) for k, shape in zip(keys, pairwise(widths), strict=True)]


def layers(weights: list[Float[Array, "_ _"]], x: Float[Array, "n i"]) -> Float[Array, "n o"]:
    """Linear layers with ReLU between them.

    Args:
        weights: one matrix per layer.
        x: [n in].

    Returns:
        [n out].
    """
    for w in weights[:-1]:
        x = jax.nn.relu(x @ w)
    return x @ weights[-1]


def features(field: FieldConfig, tables: list, x: Float[Array, "3 n"]) -> Float[Array, "n d"]:
    """Hash-grid features of world points.

    Args:
        field: its sizes.
        tables: of the hash grid.
        x: world points by component [3 n].

    Returns:
        [n d].
    """
    return encode(tables, x / (2 * field.bound) + 0.5, resolutions(field.levels, field.base, field.finest))


def before_softplus(field: FieldConfig, theta: dict, x: Float[Array, "3 n"], encoded: Float[Array, "n d"]) -> Float[Array, "n"]:
    """The raw density, before softplus, with the blob that it starts from.

    Args:
        field: its sizes.
        theta: its parameters.
        x: world points by component [3 n].
        encoded: their features [n d].

    Returns:
        [n].
    """
    r = jnp.sqrt(jnp.sum(x * x, 0))
    return layers(theta["density"], encoded)[:, 0] + field.blob * (1 - r / field.blob_radius)


def density(field: FieldConfig, theta: dict, x: Float[Array, "3 n"]) -> Float[Array, "n"]:
    """Absorption per world unit; 0 outside the ball.

    Args:
        field: its sizes.
        theta: its parameters.
        x: world points by component [3 n].

    Returns:
        [n].
    """
    sigma = field.sharpness * jax.nn.softplus(before_softplus(field, theta, x, features(field, theta["tables"], x)))
    return jnp.where(jnp.sum(x * x, 0) < field.bound**2, sigma, 0.0)


def query_field(field: FieldConfig, theta: dict, x: Float[Array, "3 n"]) -> Float[Array, "n 4"]:
    """Density and colour at world points.

    Args:
        field: its sizes.
        theta: its parameters.
        x: world points by component [3 n].

    Returns:
        [n 4]: absorption per world unit, and RGB in [0, 1].
    """
    encoded = features(field, theta["tables"], x)
    sigma = field.sharpness * jax.nn.softplus(before_softplus(field, theta, x, encoded))
    return jnp.concatenate([sigma[:, None], jax.nn.sigmoid(layers(theta["color"], encoded))], 1)


def normals(field: FieldConfig, theta: dict, x: Float[Array, "3 n"], eps: float) -> Float[Array, "n 3"]:
    """Unit vectors against the gradient of the density, from four taps around each point; 0 where the density is flat.

    Args:
        field: its sizes.
        theta: its parameters.
        x: world points by component [3 n].
        eps: the taps are at a distance of sqrt(3) eps, world units.

    Returns:
        [n 3].
    """
    taps = jnp.array([(1.0, 1.0, 1.0), (1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (-1.0, -1.0, 1.0)])
    at = lambda tap: x + eps * tap[:, None]  # noqa: E731
    raw = jax.lax.map(lambda tap: before_softplus(field, theta, at(tap), features(field, theta["tables"], at(tap))), taps)
    slope = jnp.einsum("tn,tk->nk", raw, taps)
    # The double where of `core.math.normalize`, and a length below which a direction is noise.
    square = jnp.sum(slope**2, 1, keepdims=True)
    return jnp.where(square > 1e-12, -slope / jnp.sqrt(jnp.where(square > 1e-12, square, 1.0)), 0.0)


def in_chunks(evaluate: Callable[[Array], Array], x: Float[Array, "3 n"]) -> Float[Array, "n d"]:
    """Evaluates a function on at most CHUNK points at a time; the backward pass computes their activations again.

    A point of the official field takes a kilobyte of activations or more, and half of 512 samples along 256 x 256 rays are 17
    million.

    Args:
        evaluate: [3 m] -> [m d].
        x: points by component [3 n].

    Returns:
        [n d].
    """
    if x.shape[1] <= CHUNK:
        return evaluate(x)
    chunks = jnp.pad(x, ((0, 0), (0, -x.shape[1] % CHUNK))).reshape(3, -1, CHUNK)
    found = jax.lax.map(jax.checkpoint(evaluate, prevent_cse=False), jnp.moveaxis(chunks, 1, 0))
    return found.reshape(-1, found.shape[2])[: x.shape[1]]
