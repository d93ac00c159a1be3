"""Multi-resolution hash encoding (Mueller et al. 2022, section 3) with a custom VJP.

Level l is a grid of resolution_l cells an edge. Its corner features lie in a table of S rows: one row per corner where they fit,
else at the hash of the corner. A point's feature is the trilinear mean of its cell's eight corners, levels one after the other.

The backward pass computes indices and weights again and adds one row per corner and point into its level's own table: a list of
tables, because gradients through `tables[l]` of one stacked array cost a pass over all of them per level.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

PRIMES = (1, 2654435761, 805459861)
Tables = list[Float[Array, "S f"]]


def resolutions(levels: int, base: int, finest: int) -> tuple[int, ...]:
    """Cells per edge of each level, a geometric series (Mueller et al. 2022, eq. 2 and 3).

    Args:
        levels: number of levels.
        base: cells of the coarsest.
        finest: cells of the finest.

    Returns:
        One number per level.

    Examples:
        >>> resolutions(4, 16, 128)
        (16, 32, 64, 128)
    """
    growth = (finest / base) ** (1 / max(levels - 1, 1))
    return tuple(int(np.floor(base * growth**level + 1e-6)) for level in range(levels))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def encode(tables: Any, x: Float[Array, "3 n"], cells: tuple[int, ...]) -> Float[Array, "n d"]:
    """Features of points in the unit cube; differentiable in tables and points.

    The backward pass computes indices and weights again and adds one row per corner and point.

    Args:
        tables: one table [S f] per level, S a power of two.
        x: points by component [3 n]; outside the cube they are extrapolated from the cell at its border.
        cells: per edge of each level, from `resolutions`.

    Returns:
        [n d], d = levels times f.
    """
    parts = []
    for table, resolution in zip(tables, cells, strict=True):
        rows, weights, _ = corners(x, resolution, len(table))
        parts.append(sum(_rows(table, i) * w[:, None] for i, w in zip(rows, weights, strict=True)))
    return jnp.concatenate(parts, 1)


def _forward(tables, x, cells):
    return encode(tables, x, cells), (tables, x)


def _backward(cells, saved, g):
    tables, x = saved
    g_tables, g_x = [], jnp.zeros_like(x)
    for level, (table, resolution) in enumerate(zip(tables, cells, strict=True)):
        rows, weights, slopes = corners(x, resolution, len(table))
        part = g[:, level * table.shape[1] : (level + 1) * table.shape[1]]
        g_table = jnp.zeros_like(table)
        for i, w, slope in zip(rows, weights, slopes, strict=True):
            g_table = g_table.at[i].add(part * w[:, None], mode="promise_in_bounds")
            # Not computed where nobody asks for the gradient of positions: XLA drops it.
            g_x += jnp.sum(_rows(table, i) * part, 1)[None] * slope
        g_tables.append(g_table)
    return g_tables, g_x


encode.defvjp(_forward, _backward)


def corners(
    x: Float[Array, "3 n"], resolution: int, size: int
) -> tuple[list[Int[Array, "n"]], list[Float[Array, "n"]], list[Float[Array, "3 n"]]]:
    """The eight corners of each point's cell.

    Args:
        x: points by component [3 n].
        resolution: cells per edge.
        size: rows of the table.

    Returns:
        Eight each of: rows of the table [n], trilinear weights [n], and the gradients of the weights by x [3 n].
    """
    at = x * resolution
    low = jnp.clip(jnp.floor(at), 0, resolution - 1)
    up, corner = at - low, low.astype(jnp.uint32)
    dense = (resolution + 1) ** 3 <= size
    strides = (1, resolution + 1, (resolution + 1) ** 2) if dense else PRIMES
    terms = [[(corner[k] + np.uint32(bit)) * np.uint32(strides[k]) for bit in (0, 1)] for k in range(3)]
    shares = [[1 - up[k], up[k]] for k in range(3)]
    rows, weights, slopes = [], [], []
    for a, b, c in np.ndindex(2, 2, 2):
        i, j, k = terms[0][a], terms[1][b], terms[2][c]
        rows.append(((i + j + k if dense else i ^ j ^ k) & np.uint32(size - 1)).astype(jnp.int32))
        u, v, w = shares[0][a], shares[1][b], shares[2][c]
        weights.append(u * v * w)
        slopes.append(resolution * jnp.stack([(2 * a - 1) * v * w, u * (2 * b - 1) * w, u * v * (2 * c - 1)]))
    return rows, weights, slopes


def _rows(table: Array, i: Array) -> Array:
    return table.at[i].get(mode="promise_in_bounds")
