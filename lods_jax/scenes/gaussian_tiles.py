"""The tiles of an image: which ellipses reach each of them, and pixels tile by tile.

The work of one tile is less than what it costs XLA to start it, so G tiles advance in lock-step (`Pace`). A group ends with the
longest of its tiles, so tiles are grouped by length.

Notation: n Gaussians; tiles of P pixels in g groups of G; m slots for pairs of tile and ellipse (`capacity`);
the rank of a Gaussian is its place in the order of depth, 0 being the nearest.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lods_jax.core.devices import platform
from lods_jax.scenes.gaussian_projection import ALPHA_CUT, Ellipses

TILE_H, TILE_W, P = 8, 16, 128
STOP = 1e-4  # light that is not worth following any further


class Pace(NamedTuple):
    """How tiles advance.

    Attributes:
        lockstep: tiles that advance together, G. Images with fewer tiles than that are one group.
        chunk: ellipses per step, K.
        unrolled: whether the loop that passes these one by one is written out.
    """

    lockstep: int
    chunk: int
    unrolled: bool


# [G P] floats are 8 kB: light, sums and a row of alphas stay in the first-level cache.
ON_CPU = Pace(lockstep=16, chunk=16, unrolled=False)
# Each step starts a few kernels, one after the other, so there should be few and large ones. On an H200 a view of 50,000
# Gaussians at 512 px takes 2.8 ms like this, and 478 at the pace of a CPU. Not measured on a TPU, where a start costs too.
ON_ACCELERATOR = Pace(lockstep=512, chunk=32, unrolled=True)


def pace() -> Pace:
    """The pace for the platform that is traced for."""
    return ON_CPU if platform() == "cpu" else ON_ACCELERATOR


class Bins(NamedTuple):
    """The ellipses that reach each tile, `ranks[start:end]` from near to far. Empty tiles fill up the groups.

    Attributes:
        ranks: [m].
        start: [g G], tiles ordered by increasing length.
        end: [g G].
        tile: [g G], index of the tile in the image, row by row.
    """

    ranks: Array
    start: Array
    end: Array
    tile: Array


def bin_tiles(
    ellipses: Ellipses, opacities: Float[Array, "n"], height: int, width: int, capacity: int, lockstep: int
) -> tuple[Int[Array, "n"], Bins, Bool[Array, "n"], Int[Array, ""]]:
    """Lists the ellipses that reach each tile, nearest first.

    Slots are given out from near to far, so that the farthest ellipses are dropped when slots run out. Then one sort of words
    (tile, rank) orders them by tile: XLA on a CPU sorts words 5 times faster than keys with values.

    Args:
        ellipses: n of them.
        opacities: [n] in [0, 1].
        height: of the image, pixels.
        width: of the image, pixels.
        capacity: number of slots for pairs of a tile and an ellipse.
        lockstep: of the `Pace`.

    Returns:
        The order of depth [n] (rank -> Gaussian), the bins, which Gaussians reach a tile [n], and the number of pairs.

    Raises:
        ValueError: tiles times Gaussians exceed 2^31.
    """
    check_size(height, width, len(opacities))
    rows, columns = tile_grid(height, width)
    tiles, rank_bits = rows * columns, (len(opacities) - 1).bit_length()

    # alpha >= ALPHA_CUT inside an ellipse of this squared radius, in standard deviations, and nowhere else.
    reach = 2 * jnp.log(jnp.maximum(opacities / ALPHA_CUT, 1.0))
    left, right = _span(ellipses.x, jnp.sqrt(reach * ellipses.var_x), TILE_W, columns)
    top, bottom = _span(ellipses.y, jnp.sqrt(reach * ellipses.var_y), TILE_H, rows)
    count = jnp.where((reach > 0) & (ellipses.radius > 0), (right - left) * (bottom - top), 0)
    reaches = count > 0

    order = depth_order(ellipses.depth)
    count, left, top, breadth = count[order], left[order], top[order], (right - left)[order]
    start = jnp.cumsum(count) - count
    total = start[-1] + count[-1]
    slot = jnp.arange(capacity)
    # Gaussians without tiles start where their successor does: adding up the starts skips them.
    rank = jnp.cumsum(jnp.zeros(capacity, jnp.int32).at[start].add(1, mode="drop")) - 1
    within = slot - start[rank]
    row = within // jnp.maximum(breadth[rank], 1)
    tile = (top[rank] + row) * columns + left[rank] + within - row * breadth[rank]

    word = jnp.where(slot < total, tile << rank_bits | rank, tiles << rank_bits)
    word = jnp.sort(word.astype(jnp.uint32))
    bounds = jnp.searchsorted(word, jnp.arange(tiles + 1, dtype=jnp.uint32) << rank_bits).astype(jnp.int32)
    # The groups of a CPU are whole even where the image is smaller: so were they always, and old runs go on bit for bit.
    G = min(lockstep, max(tiles, ON_CPU.lockstep))
    empty = -tiles % G
    start, end = jnp.pad(bounds[:-1], (0, empty)), jnp.pad(bounds[1:], (0, empty))
    tile = jnp.argsort(end - start).reshape(-1, G)
    ranks = (word & ((1 << rank_bits) - 1)).astype(jnp.int32)
    return order, Bins(ranks, start[tile], end[tile], tile), reaches, total


def depth_order(depth: Float[Array, "n"]) -> Int[Array, "n"]:
    """argsort of positive numbers, stable, by sorts of single words.

    Positive floats order like their bits. A radix sort takes these from the last digit to the first, a digit being as many bits
    as a word has left beside the index: 2 sorts up to n = 65,536, 3 up to 2 million.

    Args:
        depth: [n], positive.

    Returns:
        Indices [n].

    Examples:
        >>> depth_order(jnp.array([2.0, 1.0, 3.0])).tolist()
        [1, 0, 2]
    """
    bits, index = lax.bitcast_convert_type(depth, jnp.uint32), jnp.arange(len(depth), dtype=jnp.uint32)
    index_bits = max(1, (len(depth) - 1).bit_length())
    order = index
    for digit in range(0, 31, 32 - index_bits):  # the sign bit is 0
        word = bits[order] >> digit << index_bits | index
        order = order[jnp.sort(word) & ((1 << index_bits) - 1)]
    return order.astype(jnp.int32)


def _span(mean: Float[Array, "n"], reach: Float[Array, "n"], size: int, tiles: int) -> tuple[Int[Array, "n"], Int[Array, "n"]]:
    """First tile that [mean - reach, mean + reach] touches along one axis, and the one after the last."""
    first = jnp.clip(jnp.floor((mean - reach) / size), 0, tiles)
    last = jnp.clip(jnp.floor((mean + reach) / size) + 1, 0, tiles)
    return first.astype(jnp.int32), last.astype(jnp.int32)


def check_size(height: int, width: int, gaussians: int) -> None:
    """Checks that a tile and a rank fit into one word.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        gaussians: number of them.

    Raises:
        ValueError: they do not.
    """
    rows, columns = tile_grid(height, width)
    if rows * columns << (gaussians - 1).bit_length() >= 2**31:
        raise ValueError(
            f"{height} x {width} pixels of {gaussians} Gaussians are too many: need {TILE_H} x {TILE_W} tiles times Gaussians "
            f"(their next power of two) < 2^31, got {rows * columns} tiles"
        )


def tile_grid(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of tiles that cover an image of this height and width, pixels.

    Examples:
        >>> tile_grid(64, 64)
        (8, 4)
    """
    return -(-height // TILE_H), -(-width // TILE_W)


def to_tiles(image: Float[Array, "h w c"], tile: Int[Array, "g G"]) -> Float[Array, "g c G P"]:
    """The pixels of an image, tile by tile; 0 outside the image and in the tiles that fill up the last group.

    Args:
        image: [h w c].
        tile: index of each tile [g G], from `Bins`.

    Returns:
        [g c G P].
    """
    (h, w, c), (rows, columns) = image.shape, tile_grid(*image.shape[:2])
    image = jnp.pad(image, ((0, rows * TILE_H - h), (0, columns * TILE_W - w), (0, 0)))
    tiles = image.reshape(rows, TILE_H, columns, TILE_W, c).transpose(0, 2, 4, 1, 3).reshape(-1, c, P)
    return jnp.pad(tiles, ((0, tile.size - len(tiles)), (0, 0), (0, 0)))[tile].swapaxes(1, 2)


def from_tiles(
    tiles: Float[Array, "g c G P"], tile: Int[Array, "g G"], height: int, width: int
) -> Float[Array, "{height} {width} c"]:
    """The inverse of `to_tiles`.

    Args:
        tiles: [g c G P].
        tile: index of each tile [g G], from `Bins`.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        [height width c].
    """
    c, (rows, columns) = tiles.shape[1], tile_grid(height, width)
    tiles = tiles.swapaxes(1, 2).reshape(-1, c, P)[jnp.argsort(tile.reshape(-1))[: rows * columns]]
    image = tiles.reshape(rows, columns, c, TILE_H, TILE_W).transpose(0, 3, 1, 4, 2)
    return image.reshape(rows * TILE_H, columns * TILE_W, c)[:height, :width]
