"""Compositing on a GPU: a Pallas kernel in which each tile walks its own ellipses. Its values are those of `gaussian_rasterizer`.

The pairs of a tile and an ellipse are sorted by tile, so that a tile's rows are a segment. They are gathered in front of the
kernel, which then reads them in order and keeps light and sums of its pixels in registers; the way back writes a gradient row for
each pair, and autodiff of the gather adds these up. No tile waits for a longer one, and nothing is launched inside a loop.

Notation as in `gaussian_rasterizer`: tiles of P pixels in g groups of G, m slots for pairs, f features.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from lods_jax.scenes.gaussian_projection import ALPHA_CAP, ALPHA_CUT
from lods_jax.scenes.gaussian_tiles import STOP, TILE_H, TILE_W, Bins, P, from_tiles, tile_grid

# On an H200, 4 rows and 1 warp were the fastest of 4 and 8 rows, 1, 2 and 4 warps.
CHUNK = 4  # rows that are read at once, before they are used
WARPS = 1  # of 32 threads for a tile: four pixels a thread share what is read, and no sum over pixels leaves the warp


def composite(table: Float[Array, "n c"], bins: Bins, height: int, width: int) -> Float[Array, "{height} {width} c-5"]:
    """Sums of features over the ellipses of each pixel, weighted by the light they absorb; the last channel is the light left.

    Args:
        table: rows by rank [n c]: x, y, xx, xy, yy, log opacity, and c - 6 features.
        bins: the ellipses of each tile.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        [height width c-5].
    """
    rows = table.at[bins.ranks].get(mode="promise_in_bounds")
    rows = jnp.pad(rows, ((0, CHUNK), (0, 0)))  # the last segment is read in whole chunks too
    flat = [x.reshape(-1) for x in (bins.start, bins.end, bins.tile)]
    pixels = segments(rows, *flat, tile_grid(height, width)[1])
    return from_tiles(pixels.reshape(*bins.tile.shape, -1, P).swapaxes(1, 2), bins.tile, height, width)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def segments(
    rows: Float[Array, "m c"], start: Int[Array, "t"], end: Int[Array, "t"], tile: Int[Array, "t"], columns: int
) -> Float[Array, "t c-5 P"]:
    """The pixels of t tiles, each from its segment of rows.

    Args:
        rows: of the pairs, sorted by tile and from near to far.
        start: of each segment.
        end: of each segment.
        tile: index of each tile in the image.
        columns: of tiles.

    Returns:
        Sums of features and the light left [t c-5 P].
    """
    return _forward(rows, start, end, tile, columns)[0]


def _forward(rows, start, end, tile, columns):
    t, f = len(start), rows.shape[1] - 6
    shapes = jax.ShapeDtypeStruct((t, f + 1, P), rows.dtype), jax.ShapeDtypeStruct((t,), jnp.int32)
    pixels, stop = _call(partial(_walk, columns=columns), t, shapes)(start, end, tile, rows)
    return pixels, (rows, pixels, start, stop, tile)


def _backward(columns, residuals, cotangent):
    rows, pixels, start, stop, tile = residuals
    behind = jnp.sum(cotangent * pixels, 1)
    empty = jnp.zeros_like(rows)  # what no tile reaches has no gradient
    kernel = partial(_walk_back, columns=columns)
    call = _call(kernel, len(start), jax.ShapeDtypeStruct(rows.shape, rows.dtype), input_output_aliases={6: 0})
    return call(start, stop, tile, rows, cotangent, behind, empty), None, None, None


segments.defvjp(_forward, _backward)


def _call(kernel, t: int, shapes, **options):
    """A kernel over t tiles."""
    parameters = triton.CompilerParams(num_warps=WARPS, num_stages=1)
    interpret = jax.default_backend() != "gpu"  # slow, for tests
    return pl.pallas_call(kernel, shapes, grid=(t,), compiler_params=parameters, interpret=interpret, **options)


def _walk(start_ref, end_ref, tile_ref, rows_ref, pixels_ref, stop_ref, *, columns: int):
    """One tile, from front to back, until all its light is stopped."""
    i, f = pl.program_id(0), rows_ref.shape[1] - 6
    end, x, y = end_ref[i], *_pixels(tile_ref[i], columns)

    def unfinished(carry):
        slot, light, _ = carry
        return (slot < end) & (jnp.max(light) > STOP)

    def advance(carry):
        slot, light, sums = carry
        for k, row in enumerate(_rows(rows_ref, slot)):
            alpha = _alpha(row, x, y, slot + k < end)[0]
            weight = light * alpha
            sums = [total + weight * feature for total, feature in zip(sums, row[6:], strict=True)]
            light = light * (1 - alpha)
        return slot + CHUNK, light, sums

    dark = [jnp.zeros(P, jnp.float32) for _ in range(f)]
    slot, light, sums = lax.while_loop(unfinished, advance, (start_ref[i], jnp.ones(P, jnp.float32), dark))
    for j, channel in enumerate([*sums, light]):
        pixels_ref[i, j, :] = channel
    stop_ref[i] = jnp.minimum(slot, end)


def _walk_back(start_ref, stop_ref, tile_ref, rows_ref, v_ref, behind_ref, _, gradient_ref, *, columns: int):
    """The same walk again, which writes the gradient of each row: see `gaussian_rasterizer.composite` for its formulas."""
    i, f = pl.program_id(0), rows_ref.shape[1] - 6
    stop, x, y = stop_ref[i], *_pixels(tile_ref[i], columns)
    v = [v_ref[i, j, :] for j in range(f)]

    def advance(carry):
        slot, light, behind = carry
        for k, row in enumerate(_rows(rows_ref, slot)):
            inside = slot + k < stop
            alpha, dx, dy = _alpha(row, x, y, inside)
            weight = light * alpha
            v_c = sum(feature * v_f for feature, v_f in zip(row[6:], v, strict=True))
            behind = behind - weight * v_c
            slope = jnp.where(alpha < ALPHA_CAP, weight * v_c - behind * (alpha / (1 - alpha)), 0.0)
            light = light * (1 - alpha)
            xx, xy, yy = row[2:5]
            sx, sy = slope * dx, slope * dy
            to_x, to_y = jnp.sum(sx), jnp.sum(sy)
            own = [xx * to_x + xy * to_y, xy * to_x + yy * to_y]
            own += [-jnp.sum(sx * dx) / 2, -jnp.sum(sx * dy), -jnp.sum(sy * dy) / 2, jnp.sum(slope)]
            own += [jnp.sum(weight * v_f) for v_f in v]
            for j, value in enumerate(own):  # beyond the end are the rows of the next tile
                triton.store(gradient_ref.at[slot + k, np.int32(j)], value, mask=inside)
        return slot + CHUNK, light, behind

    lax.while_loop(lambda carry: carry[0] < stop, advance, (start_ref[i], jnp.ones(P, jnp.float32), behind_ref[i, :]))


def _pixels(tile, columns: int) -> tuple[Array, Array]:
    """Centres of the pixels of a tile."""
    lane = lax.broadcasted_iota(jnp.int32, (P,), 0)
    x = (tile % columns) * TILE_W + lane % TILE_W
    y = (tile // columns) * TILE_H + lane // TILE_W
    return x.astype(jnp.float32) + 0.5, y.astype(jnp.float32) + 0.5


def _rows(rows_ref, slot) -> list[list[Array]]:
    """The next rows, number by number."""
    return [[rows_ref[slot + k, j] for j in range(rows_ref.shape[1])] for k in range(CHUNK)]


def _alpha(row: Sequence[Array], x: Array, y: Array, inside: Array) -> tuple[Array, Array, Array]:
    """Alpha of an ellipse at the pixels of a tile, 0 for what is not `inside` the segment, and the offsets from its mean."""
    dx, dy = x - row[0], y - row[1]
    log_alpha = row[5] - (row[2] * dx * dx + row[4] * dy * dy) / 2 - row[3] * dx * dy
    alpha = jnp.where(log_alpha >= math.log(ALPHA_CUT), jnp.minimum(jnp.exp(log_alpha), ALPHA_CAP), 0.0)
    return jnp.where(inside, alpha, 0.0), dx, dy
