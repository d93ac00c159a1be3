"""3D Gaussian splatting (Kerbl et al. 2023) in plain JAX. `gaussian_rasterizer_reference` is its short and slow form.

  project     Gaussians in space -> ellipses on the image: arithmetic on [n] vectors, plain autodiff
  bin_tiles   ellipses -> for every tile of the image the ellipses that reach it, nearest first: integers, no gradient
  composite   tiles -> weighted sums of features, from front to back: a custom VJP that keeps no alpha

The work of one tile is less than what it costs XLA to start it. So G tiles advance in lock-step, K ellipses at a time,
on arrays [K G P]; a group ends with the longest of its tiles, hence tiles are grouped by length. How many of each depends on the
device (`gaussian_tiles.Pace`). On a GPU one kernel takes the place of `composite`, see `gaussian_segments`.

Notation: n Gaussians, b cameras, k coefficients of spherical harmonics, f features (red, green, blue, depth);
tiles of P pixels in g groups of G; m slots for pairs of a tile and an ellipse that reaches it (`capacity`);
rank    place of a Gaussian in the order of depth, 0 is the nearest
alpha   opacity exp(-(xx dx^2 + 2 xy dx dy + yy dy^2) / 2) of an ellipse at offset (dx, dy) from its mean, in pixels
light   transmittance: the share of light that has not been stopped yet, product of 1 - alpha
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lods_jax.core.devices import platform
from lods_jax.core.math import normalize
from lods_jax.core.types import Camera, Render
from lods_jax.scenes import gaussian_segments
from lods_jax.scenes.gaussian_projection import ALPHA_CAP, ALPHA_CUT, project
from lods_jax.scenes.gaussian_tiles import STOP, TILE_H, TILE_W, Bins, P, Pace, bin_tiles, from_tiles, pace, tile_grid, to_tiles

# Monomials 1, u, v, uu, uv, vv of the offset (u, v) from the centre of a tile. log alpha is a polynomial in them.
_V, _U = np.mgrid[:TILE_H, :TILE_W].reshape(2, P) + 0.5 - np.array([[TILE_H], [TILE_W]]) / 2
MONOMIALS = np.stack([np.ones(P), _U, _V, _U * _U, _U * _V, _V * _V]).astype(np.float32)


def rasterize(
    means: Float[Array, "n 3"],
    quats: Float[Array, "n 4"],
    scales: Float[Array, "n 3"],
    opacities: Float[Array, "n"],
    colors: Float[Array, "n 3"] | Float[Array, "n k 3"],
    background: Float[Array, "3"] | Float[Array, "b 3"],
    camera: Camera,
    *,
    height: int,
    width: int,
    capacity: int,
    means2d_probe: Float[Array, "b n 2"] | None = None,
    absolute_probe: Float[Array, "b n 2"] | None = None,
) -> Render:
    """Renders n Gaussians for b cameras, one camera after the other. Compile it with height, width and capacity static.

    It is differentiable in all arrays, the camera included.

    Args:
        means: [n 3] world units.
        quats: [n 4] wxyz, of any length.
        scales: standard deviations [n 3], world units.
        opacities: [n] in [0, 1].
        colors: rgb [n 3], or coefficients of spherical harmonics [n k 3] for `radiance`.
        background: rgb [3] or [b 3].
        camera: b cameras.
        height: of the image, pixels.
        width: of the image, pixels.
        capacity: number of pairs of a tile and an ellipse that reaches it; about 4 n for 64 x 64 pixels, 11 n for 512 x 512.
        means2d_probe: zeros [b n 2] that are added to the projected means in pixels, so that their cotangent is the screen-space
            gradient.
        absolute_probe: anything [b n 2], whose cotangent is the screen-space gradient with the absolute values of the pixels
            summed (AbsGS; Ye et al. 2024): at the middle of a part that is too large, pixels pull to both sides and cancel
            in the plain sum. None computes none.

    Returns:
        A render whose extras are "total" [b], the number of pairs (where it exceeds `capacity`, the farthest are missing from the
            image), and "radii" [b n], 3 standard deviations along the longer axis in pixels, 0 for what reaches no tile.

    Raises:
        ValueError: height, width or capacity is below 1.
    """
    if min(height, width, capacity) < 1:
        raise ValueError(f"rasterize needs height, width and capacity >= 1, got {height}, {width} and {capacity}")
    n, b, own_pace = len(means), len(camera.fov_y), pace()
    # The kernel of a GPU sums moments of pixels alone, from which absolute values cannot be had.
    with_kernel = platform() == "gpu" and absolute_probe is None

    # Recomputed in the backward pass, where its residuals would be a hundred numbers per Gaussian and camera.
    @partial(jax.checkpoint, prevent_cse=False)
    def project_view(c2w, fov_y, means2d_probe):
        ellipses = project(means, quats, scales, c2w, fov_y, height, width)
        ellipses = ellipses._replace(x=ellipses.x + means2d_probe[:, 0], y=ellipses.y + means2d_probe[:, 1])
        rgb = colors if colors.ndim == 2 else radiance(normalize(means - c2w[None, :3, 3]), colors)
        # Below the cut nothing is drawn; the logarithm must not see 0, where its gradient is infinite.
        log_opacity = jnp.log(jnp.maximum(opacities, ALPHA_CUT))
        shape = jnp.stack([*ellipses[:5], log_opacity], 1)
        return ellipses, jnp.concatenate([shape, rgb, ellipses.depth[:, None]], 1)

    def view(inputs) -> Render:
        c2w, fov_y, background, means2d_probe, absolute_probe = inputs
        ellipses, table = project_view(c2w, fov_y, means2d_probe)
        order, bins, reaches, total = bin_tiles(
            *lax.stop_gradient((ellipses, opacities)), height, width, capacity, own_pace.lockstep
        )
        table, absolute_probe = jax.tree.map(
            lambda rows: rows.at[order].get(mode="promise_in_bounds", unique_indices=True), (table, absolute_probe)
        )
        if with_kernel:
            pixels = gaussian_segments.composite(table, bins, height, width)
        else:
            pixels = composite(table, bins, height, width, own_pace, absolute_probe)
        rgb, depth, light = jnp.split(pixels, (3, 4), -1)
        opacity = 1 - light
        seen = opacity > 0
        return Render(
            rgb=rgb + light * background[None, None],
            opacity=opacity,
            depth=jnp.where(seen, depth / jnp.where(seen, opacity, 1.0), 0.0),
            extras={"total": total, "radii": jnp.where(reaches, ellipses.radius, 0.0)},
        )

    means2d_probe = jnp.zeros((b, n, 2)) if means2d_probe is None else means2d_probe
    background = jnp.broadcast_to(background, (b, 3))
    return lax.map(view, (camera.c2w, camera.fov_y, background, means2d_probe, absolute_probe))


# --- color ------------------------------------------------------------------------------------------------------------
def radiance(directions: Float[Array, "n 3"], coefficients: Float[Array, "n k 3"]) -> Float[Array, "n 3"]:
    """Colours of Gaussians in the directions they are seen in: 1/2 plus spherical harmonics, at least 0.

    Args:
        directions: unit vectors from the camera to the means [n 3].
        coefficients: [n k 3], k = 1, 4, 9 or 16 for degrees 0 to 3.

    Returns:
        rgb [n 3].

    Raises:
        ValueError: k is another number.
    """
    k = coefficients.shape[1]
    if k not in (1, 4, 9, 16):
        raise ValueError(f"spherical harmonics need k = 1, 4, 9 or 16 coefficients, got {k}")
    basis = spherical_harmonics(directions)[:, :k]
    return jnp.maximum(0.5 + jnp.sum(basis[..., None] * coefficients, 1), 0.0)


def spherical_harmonics(directions: Float[Array, "n 3"]) -> Float[Array, "n 16"]:
    """The real orthonormal basis of degrees 0 to 3, in the order and with the signs of Kerbl et al. (2023).

    Args:
        directions: unit vectors [n 3].

    Returns:
        [n 16].
    """
    x, y, z = directions[:, 0], directions[:, 1], directions[:, 2]
    xx, yy, zz = x * x, y * y, z * z
    # Unnormalised polynomials, and the integral of their square over the sphere as a multiple of pi.
    basis = [
        (jnp.ones_like(x), 4),
        (-y, 4 / 3),
        (z, 4 / 3),
        (-x, 4 / 3),
        (x * y, 4 / 15),
        (-y * z, 4 / 15),
        (3 * zz - 1, 16 / 5),
        (-x * z, 4 / 15),
        (xx - yy, 16 / 15),
        (-y * (3 * xx - yy), 32 / 35),
        (x * y * z, 4 / 105),
        (-y * (5 * zz - 1), 32 / 21),
        (z * (5 * zz - 3), 16 / 7),
        (-x * (5 * zz - 1), 32 / 21),
        (z * (xx - yy), 16 / 105),
        (-x * (xx - 3 * yy), 32 / 35),
    ]
    return jnp.stack([polynomial / math.sqrt(square * math.pi) for polynomial, square in basis], 1)


# --- from tiles to pixels ---------------------------------------------------------------------------------------------
@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def composite(
    table: Float[Array, "n c"],
    bins: Bins,
    height: int,
    width: int,
    pace: Pace,
    absolute_probe: Float[Array, "n 2"] | None = None,
) -> Float[Array, "{height} {width} c-5"]:
    """Sums of features over the ellipses of each pixel, weighted by the light they absorb; the last channel is the light left.

    Over a pixel, ellipse i, counted from the front, has alpha_i and features c_i. The light light_i = prod_{j<i} (1 - alpha_j)
    reaches it, and it absorbs w_i = alpha_i light_i. The pixel is S = sum_i w_i c_i, and light_end.

    Backward, for cotangents v of S and v_T of light_end, with behind_i = sum_{j>i} w_j (v . c_j) + v_T light_end:
      dc_i = w_i v,  dlog alpha_i = w_i (v . c_i) - behind_i alpha_i / (1 - alpha_i), or 0 where alpha is cut or capped.
    The image gives behind_0 = v . S + v_T light_end. So the backward pass is the forward loop again, front to back, and subtracts
    from `behind` what it passes. log alpha is a polynomial in the offset from the tile's centre. The moments of dlog alpha over
    the tile are the cotangents of its coefficients, which autodiff takes to the table.

    Autodiff alone refuses loops of dynamic length, and in static ones stores every alpha, P floats for each slot. Both passes
    leave a group of tiles at the same step, when less light than STOP is left in each of its unfinished tiles.

    Args:
        table: rows by rank [n c]: x, y, xx, xy, yy, log opacity, and c - 6 features.
        bins: the ellipses of each tile.
        height: of the image, pixels.
        width: of the image, pixels.
        pace: how tiles advance.
        absolute_probe: anything by rank [n 2]; its cotangent is sum_p |dlog alpha dlog alpha / d(x, y)| over the pixels p.

    Returns:
        [height width c-5].
    """
    return _composite_forward(table, bins, height, width, pace, absolute_probe)[0]


def _composite_forward(table, bins, height, width, pace, absolute_probe):
    f, G, K = table.shape[1] - 6, bins.tile.shape[1], pace.chunk

    def group(tiles):
        start, end, _ = tiles

        def unfinished(carry):
            step, light, _ = carry
            return jnp.any((start + K * step < end) & (jnp.max(light, -1) > STOP))

        def advance(carry):
            step, light, sums = carry
            _, alpha, features, _ = _chunk(table, bins.ranks, tiles, step, K)
            light, weights = lax.scan(
                lambda light, alpha: (light * (1 - alpha), light * alpha), light, alpha, unroll=pace.unrolled
            )
            return step + 1, light, sums + jnp.stack([jnp.sum(feature * weights, 0) for feature in features])

        steps, light, sums = lax.while_loop(unfinished, advance, (0, jnp.ones((G, P)), jnp.zeros((f, G, P))))
        return jnp.concatenate([sums, light[None]]), steps

    pixels, steps = lax.map(group, _groups(bins, width))
    return from_tiles(pixels, bins.tile, height, width), (table, bins, pixels, steps, absolute_probe)


def _composite_backward(height, width, pace, residuals, cotangent):
    table, bins, pixels, steps, absolute_probe = residuals
    c, G, K = table.shape[1], bins.tile.shape[1], pace.chunk
    cotangent = to_tiles(cotangent, bins.tile)

    def group(gradient, inputs):
        tiles, v, behind, steps = inputs
        v_features = jnp.moveaxis(v[:-1], 0, -1)

        def advance(carry):
            step, light, behind, gradient = carry
            rank, alpha, features, pull = _chunk(table, bins.ranks, tiles, step, K)

            def pass_one(carry, ellipse):
                (light, behind), (alpha, features) = carry, ellipse
                weight = light * alpha
                v_c = sum(feature * v_f for feature, v_f in zip(features, v[:-1], strict=True))
                behind = behind - weight * v_c
                slope = jnp.where(alpha < ALPHA_CAP, weight * v_c - behind * (alpha / (1 - alpha)), 0.0)
                return (light * (1 - alpha), behind), (weight, slope)

            (light, behind), (weights, slopes) = lax.scan(pass_one, (light, behind), (alpha, features), unroll=pace.unrolled)
            d_features = jnp.einsum("kgp,gpf->kgf", weights, v_features, precision="highest")
            rows = [pull(slopes), d_features]
            if absolute_probe is not None:
                rows.append(_absolute_pull(table.at[rank].get(mode="promise_in_bounds"), tiles[2], slopes))
            rows = jnp.concatenate(rows, -1)
            return step + 1, light, behind, gradient.at[rank].add(rows, mode="promise_in_bounds")

        carry = 0, jnp.ones((G, P)), behind, gradient
        return lax.while_loop(lambda carry: carry[0] < steps, advance, carry)[-1], None

    inputs = _groups(bins, width), cotangent, jnp.sum(cotangent * pixels, 1), steps
    empty = jnp.zeros_like(table) if absolute_probe is None else jnp.zeros((len(table), c + 2))
    gradient = lax.scan(group, empty, inputs)[0]
    return gradient[:, :c], None, None if absolute_probe is None else gradient[:, c:]


composite.defvjp(_composite_forward, _composite_backward)


def _chunk(table, ranks, tiles, step, K):
    """The next K ellipses of each tile of a group: ranks [K G], alphas [K G P], f features [K G 1] and a function,
    which pulls a cotangent of log alpha [K G P] back to the first six columns of the table [K G 6].
    """
    start, end, centre = tiles
    slot = start[None] + K * step + jnp.arange(K)[:, None]
    rank = ranks.at[jnp.minimum(slot, len(ranks) - 1)].get(mode="promise_in_bounds")
    rows = table.at[rank].get(mode="promise_in_bounds")

    def polynomial(rows):
        """Coefficients of log alpha in the MONOMIALS, [K G] each; past the end of a tile alpha is 0."""
        x, y, xx, xy, yy, log_opacity = jnp.moveaxis(rows, -1, 0)
        x, y = x - centre[None, :, 0], y - centre[None, :, 1]
        u, v = xx * x + xy * y, xy * x + yy * y
        return jnp.where(slot < end[None], log_opacity - (u * x + v * y) / 2, -jnp.inf), u, v, -xx / 2, -xy, -yy / 2

    coefficients, pull_polynomial = jax.vjp(polynomial, rows[..., :6])
    log_alpha = sum(c[..., None] * m for c, m in zip(coefficients, MONOMIALS[:, None, None], strict=True))
    alpha = jnp.where(log_alpha >= math.log(ALPHA_CUT), jnp.minimum(jnp.exp(log_alpha), ALPHA_CAP), 0.0)

    def pull(slopes):
        moments = jnp.matmul(slopes, MONOMIALS.T, precision="highest")
        return pull_polynomial(tuple(jnp.moveaxis(moments, -1, 0)))[0]

    return rank, alpha, jnp.split(rows[..., 6:], rows.shape[-1] - 6, -1), pull


def _absolute_pull(rows: Float[Array, "K G c"], centre: Float[Array, "G 2"], slopes: Float[Array, "K G P"]) -> Array:
    """sum_p |slopes dlog alpha / d(x, y)| for the means (x, y) of ellipses, [K G 2]."""
    x, y, xx, xy, yy = jnp.moveaxis(rows[..., :5, None], 2, 0)
    dx, dy = (MONOMIALS[i][None, None] + (centre[None, :, i - 1, None] - mean) for i, mean in ((1, x), (2, y)))
    return jnp.stack([jnp.sum(jnp.abs(slopes * d), -1) for d in (xx * dx + xy * dy, xy * dx + yy * dy)], -1)


def _groups(bins: Bins, width: int) -> tuple[Array, Array, Array]:
    """Start, end and centre in pixels of each tile: [g G], [g G], [g G 2]."""
    columns = tile_grid(1, width)[1]
    centre = jnp.stack([(bins.tile % columns + 0.5) * TILE_W, (bins.tile // columns + 0.5) * TILE_H], -1)
    return bins.start, bins.end, centre
