"""From Gaussians in space to ellipses on the image (EWA splatting, Zwicker et al. 2001; Kerbl et al. 2023).

Notation: n Gaussians; px is a pixel. Arithmetic is on one vector [n] per number: XLA on a CPU vectorises these, and not n small
matrices.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lods_jax.core.math import normalize

# The image model of Kerbl et al. (2023), which `gaussian_rasterizer_reference` shares.
LOW_PASS = 0.3  # px^2, added to the variances: no ellipse falls between pixels
ALPHA_CUT = 1 / 255  # a smaller alpha counts as 0, so that an ellipse ends somewhere
ALPHA_CAP = 0.99  # keeps 1 / (1 - alpha) small in the gradient
FRUSTUM = 1.3  # the projection is linearised no farther out than this, in half-widths of the image
NEAR = 0.01  # world units; what is nearer is hidden


class Ellipses(NamedTuple):
    """n Gaussians on the image, one vector [n] per number.

    Attributes:
        x: mean, px from the left edge.
        y: mean, px from the upper edge.
        xx: px^-2; the inverse covariance is `[[xx, xy], [xy, yy]]`.
        xy: px^-2.
        yy: px^-2.
        depth: along the optical axis, world units; 1 where hidden.
        var_x: px^2, variance along x; it and the next two carry no gradient.
        var_y: px^2, variance along y.
        radius: px, 3 standard deviations along the longer axis; 0 where hidden.
    """

    x: Array
    y: Array
    xx: Array
    xy: Array
    yy: Array
    depth: Array
    var_x: Array
    var_y: Array
    radius: Array


def project(
    means: Float[Array, "n 3"],
    quats: Float[Array, "n 4"],
    scales: Float[Array, "n 3"],
    c2w: Float[Array, "4 4"],
    fov_y: Float[Array, ""],
    height: int,
    width: int,
) -> Ellipses:
    """Gaussians as one camera sees them, with the projection linearised at their means (EWA; Zwicker et al. 2001).

    Args:
        means: [n 3] world units.
        quats: [n 4] wxyz, of any length.
        scales: standard deviations [n 3], world units.
        c2w: camera-to-world matrix [4 4].
        fov_y: vertical field of view, radians.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        Ellipses on the image.
    """
    offset = means - c2w[None, :3, 3]
    right, down, forward = c2w[:3, 0], c2w[:3, 1], c2w[:3, 2]
    x, y, z = (_dot(axis, offset.T) for axis in (right, down, forward))
    hidden = z < NEAR
    depth = jnp.where(hidden, 1.0, z)
    slope_x, slope_y, focal = x / depth, y / depth, height / 2 / jnp.tan(fov_y / 2)
    limit_x, limit_y = FRUSTUM * width / 2 / focal, FRUSTUM * height / 2 / focal
    inside_x, inside_y = jnp.clip(slope_x, -limit_x, limit_x), jnp.clip(slope_y, -limit_y, limit_y)

    # A small step d in the world goes (focal / depth) unit_x . d pixels to the right, and so on. Here the steps are one
    # standard deviation along each axis of the Gaussian; 1e9 pixels hold the fourth powers below within float32.
    unit_x = [right[i] - inside_x * forward[i] for i in range(3)]
    unit_y = [down[i] - inside_y * forward[i] for i in range(3)]
    pixels = focal / depth
    steps = [(axis, jnp.minimum(pixels * scale, 1e9)) for axis, scale in zip(_axes(quats), scales.T, strict=True)]
    px = [_dot(unit_x, axis) * length for axis, length in steps]
    py = [_dot(unit_y, axis) * length for axis, length in steps]

    var_x, var_y, cross = _dot(px, px) + LOW_PASS, _dot(py, py) + LOW_PASS, _dot(px, py)
    # The determinant by Lagrange's identity: of a thin ellipse, var_x var_y - cross^2 has no correct digit.
    minors = [px[i] * py[j] - px[j] * py[i] for i, j in ((0, 1), (1, 2), (2, 0))]
    per_det = 1 / (_dot(minors, minors) + LOW_PASS * (var_x + var_y - LOW_PASS))
    mean = width / 2 + focal * slope_x, height / 2 + focal * slope_y
    inverse = var_y * per_det, -cross * per_det, var_x * per_det

    var_x, var_y, cross = lax.stop_gradient((var_x, var_y, cross))
    longest = (var_x + var_y) / 2 + jnp.sqrt(((var_x - var_y) / 2) ** 2 + cross**2)
    return Ellipses(*mean, *inverse, depth, var_x, var_y, jnp.where(hidden, 0.0, 3 * jnp.sqrt(longest)))


def _axes(quats: Float[Array, "n 4"]) -> list[list[Array]]:
    """Columns of the rotation matrices, element by element; a quaternion of zeros is the identity."""
    w, x, y, z = normalize(quats).T
    return [
        [1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)],
        [2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)],
        [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)],
    ]


def _dot(a, b) -> Array:
    """Scalar product of triples of numbers or of [n] vectors, element by element."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
