"""The rasterizer as Kerbl et al. (2023) define it: all Gaussians over all pixels, no tiles, no early stop.

The fast form is tested against this one, gradients by plain autodiff included. It shares with it the constants and the
spherical harmonics, and nothing else. Memory is b n h w floats: for small images.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from lods_jax.core.math import normalize
from lods_jax.core.quaternions import covariance
from lods_jax.core.types import Camera, Render
from lods_jax.scenes.gaussian_projection import ALPHA_CAP, ALPHA_CUT, FRUSTUM, LOW_PASS, NEAR
from lods_jax.scenes.gaussian_rasterizer import radiance


def rasterize_reference(
    means: Float[Array, "n 3"],
    quats: Float[Array, "n 4"],
    scales: Float[Array, "n 3"],
    opacities: Float[Array, "n"],
    colors: Float[Array, "n 3"] | Float[Array, "n k 3"],
    background: Float[Array, "b 3"],
    camera: Camera,
    *,
    height: int,
    width: int,
    means2d_probe: Float[Array, "b n 2"],
) -> Render:
    """`gaussian_rasterizer.rasterize` with unlimited capacity and without extras.

    Args:
        means: [n 3] world units.
        quats: [n 4] wxyz, of any length.
        scales: standard deviations [n 3], world units.
        opacities: [n] in [0, 1].
        colors: rgb [n 3], or coefficients of spherical harmonics [n k 3].
        background: rgb [b 3].
        camera: b cameras.
        height: of the image, pixels.
        width: of the image, pixels.
        means2d_probe: zeros [b n 2] that are added to the projected means.

    Returns:
        A render.
    """
    eye, w2c = camera.c2w[:, None, :3, 3], camera.c2w[:, :3, :3].swapaxes(1, 2)
    x, y, z = jnp.moveaxis(jnp.einsum("bij,bnj->bni", w2c, means[None] - eye), -1, 0)
    hidden = z < NEAR
    depth = jnp.where(hidden, 1.0, z)  # safe to divide by; what is hidden has alpha 0
    half_y = jnp.tan(camera.fov_y / 2)[:, None]
    half_x, focal = half_y * width / height, height / 2 / half_y
    mean = jnp.stack([width / 2 + focal * x / depth, height / 2 + focal * y / depth], -1) + means2d_probe

    # J W Sigma W^T J^T (eq. 5), with the point of linearisation kept close to the image.
    slope_x = jnp.clip(x / depth, -FRUSTUM * half_x, FRUSTUM * half_x)
    slope_y = jnp.clip(y / depth, -FRUSTUM * half_y, FRUSTUM * half_y)
    zero, one = jnp.zeros_like(depth), jnp.ones_like(depth)
    jacobian = jnp.stack([jnp.stack([one, zero, -slope_x], -1), jnp.stack([zero, one, -slope_y], -1)], -2)
    jacobian = (focal / depth)[..., None, None] * jacobian
    on_image = jnp.einsum("bnij,bjk,nkl,bml,bnom->bnio", jacobian, w2c, covariance(quats, scales), w2c, jacobian)
    conic = jnp.linalg.inv(on_image + LOW_PASS * jnp.eye(2)[None, None])

    y, x = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    offset = jnp.stack([x, y], -1)[None, None] - mean[:, :, None, None]  # [b n h w 2]
    power = jnp.einsum("bnhwi,bnij,bnhwj->bnhw", offset, conic, offset) / 2
    alpha = opacities[None, :, None, None] * jnp.exp(-power)
    nothing = (alpha < ALPHA_CUT) | hidden[:, :, None, None]
    alpha = jnp.where(nothing, 0.0, jnp.minimum(alpha, ALPHA_CAP))

    rgb = jnp.stack([colors if colors.ndim == 2 else radiance(d, colors) for d in normalize(means[None] - eye)])

    order = jnp.argsort(depth, 1)
    alpha = jnp.take_along_axis(alpha, order[:, :, None, None], 1)
    features = jnp.take_along_axis(jnp.concatenate([rgb, depth[..., None]], -1), order[..., None], 1)
    light = jnp.cumprod(jnp.concatenate([jnp.ones_like(alpha[:, :1]), 1 - alpha], 1), 1)
    sums = jnp.einsum("bnhw,bnf->bhwf", alpha * light[:, :-1], features)
    light = light[:, -1, ..., None]
    seen = light < 1
    depth = jnp.where(seen, sums[..., 3:] / jnp.where(seen, 1 - light, 1.0), 0.0)
    return Render(sums[..., :3] + light * background[:, None, None], 1 - light, depth, {})
