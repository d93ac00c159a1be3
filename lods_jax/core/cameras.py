"""The one camera convention: world +z up and +x front; camera x right, y down, z forward; angles in radians.

Azimuth 0 looks at an object's front from +x and grows counter-clockwise seen from above; elevation 0 is the horizon.
Pixel (i, j) of an h x w image covers x in [j, j+1], y in [i, i+1]: its centre is at (j + 0.5, i + 0.5).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from lods_jax.core.math import normalize
from lods_jax.core.types import Camera

VIEWS = ("side", "front", "back", "overhead")  # rows of a prompt table; Camera.view indexes it


class Orbit(NamedTuple):
    """A distribution of cameras that look at the origin. Degrees here, because people write them; radians in `Camera`.

    Exactly one of `radius` and `extent` is given. An extent frames objects alike at every field of view.

    Attributes:
        elevation: lowest and highest, degrees.
        fov_y: smallest and largest vertical field of view, degrees.
        radius: smallest and largest distance to the origin, world units.
        extent: smallest and largest half-height of the visible plane through the origin, world units.
        overhead: share of cameras that are drawn from `overhead_elevation`.
        overhead_elevation: lowest and highest of these, degrees.
        front: half-width of the front and of the back sector, degrees of azimuth.
        above: elevation above which a view is overhead, degrees.
        elevation_draw: "sphere" for uniform over the sphere between the limits, or "threestudio" (see `threestudio_elevation`).
    """

    elevation: tuple[float, float] = (-10.0, 45.0)
    fov_y: tuple[float, float] = (40.0, 70.0)
    radius: tuple[float, float] | None = None
    extent: tuple[float, float] | None = None
    overhead: float = 0.0
    overhead_elevation: tuple[float, float] = (62.0, 88.0)
    front: float = 45.0
    above: float = 60.0
    elevation_draw: str = "sphere"


# The distribution that the tabletop prior is trained on, and so the one to distil it with.
TABLETOP = Orbit(elevation=(-5.0, 45.0), fov_y=(40.0, 50.0), extent=(0.76, 0.88), overhead=0.12)


def view_of(
    azimuth: Float[Array, "*b"], elevation: Float[Array, "*b"], front: float = 45.0, above: float = 60.0
) -> Int[Array, "*b"]:
    """The index into `VIEWS` that describes the direction of a camera.

    Limits are strict, and overhead wins over front and back.

    Args:
        azimuth: [...] radians.
        elevation: [...] radians.
        front: half-width of the front and of the back sector, degrees.
        above: elevation above which a view is overhead, degrees.

    Returns:
        Indices [...].

    Examples:
        >>> VIEWS[int(view_of(jnp.array(0.0), jnp.array(0.0)))]
        'front'
    """
    azimuth = jnp.abs(jnp.rad2deg(wrap(azimuth)))
    view = jnp.where(azimuth < front, VIEWS.index("front"), VIEWS.index("side"))
    view = jnp.where(azimuth > 180 - front, VIEWS.index("back"), view)
    return jnp.where(jnp.rad2deg(elevation) > above, VIEWS.index("overhead"), view)


def wrap(angle: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """The same angle in [-pi, pi), radians."""
    return (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi


def look_at(eye: Float[Array, "*b 3"], target: Float[Array, "*b 3"]) -> Float[Array, "*b 4 4"]:
    """Camera-to-world matrix of a camera at `eye` that looks at `target`, with world z up.

    Straight above or below the target `right` is undefined; it is y then, the limit of cameras at azimuth 0.

    Args:
        eye: positions [... 3], world units.
        target: points [... 3].

    Returns:
        Matrices [... 4 4].
    """
    forward = normalize(target - eye)
    right = jnp.stack([forward[..., 1], -forward[..., 0], jnp.zeros_like(forward[..., 0])], -1)
    vertical = jnp.sum(right**2, -1, keepdims=True) < 1e-12
    right = normalize(jnp.where(vertical, jnp.array([0.0, 1.0, 0.0]).reshape((1,) * (eye.ndim - 1) + (3,)), right))
    down = jnp.cross(forward, right)
    rotation = jnp.stack([right, down, forward, eye], -1)
    bottom = jnp.broadcast_to(jnp.array([0.0, 0.0, 0.0, 1.0]), (*rotation.shape[:-2], 1, 4))
    return jnp.concatenate([rotation, bottom], -2)


def direction(azimuth: Float[Array, "*b"], elevation: Float[Array, "*b"]) -> Float[Array, "*b 3"]:
    """Unit vector from the origin towards a camera.

    Args:
        azimuth: [...] radians.
        elevation: [...] radians.

    Returns:
        Vectors [... 3].

    Examples:
        >>> direction(jnp.array(0.0), jnp.array(0.0)).tolist()
        [1.0, 0.0, 0.0]
    """
    flat = jnp.cos(elevation)
    return jnp.stack([flat * jnp.cos(azimuth), flat * jnp.sin(azimuth), jnp.sin(elevation)], -1)


def orbit_camera(
    azimuth: Float[Array, "b"],
    elevation: Float[Array, "b"],
    radius: Float[Array, "b"],
    fov_y: Float[Array, "b"],
    orbit: Orbit = TABLETOP,
) -> Camera:
    """Cameras on spheres around the origin that look at it.

    Args:
        azimuth: [b] radians.
        elevation: [b] radians.
        radius: distances to the origin [b], world units.
        fov_y: vertical fields of view [b], radians.
        orbit: sets where front, back and overhead begin.

    Returns:
        b cameras.
    """
    eye = radius[:, None] * direction(azimuth, elevation)
    view = view_of(azimuth, elevation, orbit.front, orbit.above)
    return Camera(look_at(eye, jnp.zeros_like(eye)), fov_y, wrap(azimuth), elevation, radius, view)


def sample_orbit(keys: Key[Array, "b"], views: Int[Array, "b"], n: int, orbit: Orbit = TABLETOP, group: int = 1) -> Camera:
    """One random camera per key. The n views take their azimuths from n equal sectors, one each.

    A camera depends only on its key and view, and so not on how views are split over devices. Views of one group come with one
    key: their azimuths are 360 / group degrees apart, and everything else is equal, as in MVDream (Shi et al. 2024).

    Args:
        keys: one per view, from `random.group_keys` for groups of several.
        views: global indices of the views [b].
        n: number of views in all, a multiple of `group`.
        orbit: the distribution.
        group: number of views in a group; view i belongs to group i // group.

    Returns:
        b cameras.

    Raises:
        ValueError: the orbit has neither or both of radius and extent.
    """
    if (orbit.radius is None) == (orbit.extent is None):
        raise ValueError(f"orbit needs either radius or extent, got radius={orbit.radius}, extent={orbit.extent}")

    def one(key, sector):
        u = jax.random.uniform(key, (5,))
        limits = jnp.where(u[0] < orbit.overhead, jnp.array(orbit.overhead_elevation), jnp.array(orbit.elevation))
        low, high = jnp.sin(jnp.deg2rad(limits))
        fov_y = jnp.deg2rad(_between(orbit.fov_y, u[3]))
        radius = _between(orbit.radius, u[4]) if orbit.extent is None else _between(orbit.extent, u[4]) / jnp.tan(fov_y / 2)
        azimuth = 2 * jnp.pi * (sector + u[1]) / n - jnp.pi
        elevation = jnp.arcsin(low + (high - low) * u[2])
        if orbit.elevation_draw == "threestudio":
            coin = jax.random.uniform(jax.random.fold_in(key, 1))
            elevation = threestudio_elevation(limits, coin, u[2])
        return azimuth, elevation, radius, fov_y

    azimuth, elevation, radius, fov_y = jax.vmap(one)(keys, views % group * (n // group) + views // group)
    return orbit_camera(azimuth, elevation, radius, fov_y, orbit)


def threestudio_elevation(limits: Float[Array, "2"], coin: Float[Array, ""], u: Float[Array, ""]) -> Float[Array, ""]:
    """Elevation as threestudio, and with it the official LODS, draws it.

    Half of the draws are uniform in degrees. The other half are meant to be uniform over the sphere and are not: for limits of
    -10 and 45 degrees they lie in -6.4 to 30.

    Args:
        limits: lowest and highest [2], degrees.
        coin: uniform in [0, 1); chooses the half.
        u: uniform in [0, 1).

    Returns:
        One elevation, radians.
    """
    low, high = limits
    share = (low + (high - low) * u + 90) / 180
    return jnp.where(coin < 0.5, jnp.deg2rad(low + (high - low) * u), jnp.arcsin(2 * share - 1))


def turntable(n: int, elevation: float = 20.0, orbit: Orbit = TABLETOP) -> Camera:
    """n cameras at equal azimuths, the first at the front, with the mean field of view and the mean distance of the orbit.

    Args:
        n: number of cameras, at least 1.
        elevation: of all of them, degrees.
        orbit: gives field of view and distance.

    Returns:
        n cameras.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"turntable needs n >= 1 cameras, got {n}")
    fov_y = jnp.deg2rad(sum(orbit.fov_y) / 2)
    low, high = orbit.radius if orbit.extent is None else orbit.extent  # type: ignore[misc]  # one of the two is given
    radius = (low + high) / 2 / (1 if orbit.extent is None else jnp.tan(fov_y / 2))
    azimuth = jnp.arange(n) * (2 * jnp.pi / n)
    fill = lambda x: jnp.full(n, x, jnp.float32)  # noqa: E731
    return orbit_camera(azimuth, fill(jnp.deg2rad(elevation)), fill(radius), fill(fov_y), orbit)


def rays(camera: Camera, h: int, w: int) -> tuple[Float[Array, "b h w 3"], Float[Array, "b h w 3"]]:
    """Rays through the pixel centres, in world space. Pixels are square.

    Args:
        camera: b cameras.
        h: height, pixels.
        w: width, pixels.

    Returns:
        Origins [b h w 3] and unit directions [b h w 3].
    """
    y, x = (g[None] for g in jnp.meshgrid(jnp.arange(h) + 0.5, jnp.arange(w) + 0.5, indexing="ij"))
    scale = 2 * jnp.tan(camera.fov_y / 2)[:, None, None] / h
    local = jnp.stack([(x - w / 2) * scale, (y - h / 2) * scale, jnp.ones_like(x * scale)], -1)
    directions = normalize(jnp.einsum("bij,bhwj->bhwi", camera.c2w[:, :3, :3], local))
    return jnp.broadcast_to(camera.c2w[:, None, None, :3, 3], directions.shape), directions


def project(camera: Camera, points: Float[Array, "n 3"], h: int, w: int) -> tuple[Float[Array, "b n 2"], Float[Array, "b n"]]:
    """Projects world points into images.

    Args:
        camera: b cameras.
        points: [n 3] world units.
        h: height, pixels.
        w: width, pixels.

    Returns:
        Pixel coordinates (x, y) [b n 2], meaningful where the depth is positive; and depth along the optical axis [b n], world
            units.
    """
    offset = points[None] - camera.c2w[:, None, :3, 3]
    x, y, z = jnp.moveaxis(jnp.einsum("bji,bnj->bni", camera.c2w[:, :3, :3], offset), -1, 0)
    focal = (h / 2 / jnp.tan(camera.fov_y / 2))[:, None]
    safe = jnp.where(jnp.abs(z) > 1e-6, z, 1e-6)
    return jnp.stack([w / 2 + focal * x / safe, h / 2 + focal * y / safe], -1), z


def _between(limits: tuple[float, float], u: Array) -> Array:
    return limits[0] + (limits[1] - limits[0]) * u


def relative_pose(one: Camera, camera: Camera) -> Float[Array, "b 4"]:
    """The pose of cameras relative to another, as Zero-1-to-3 takes it (Liu et al. 2023).

    Args:
        one: the other, a single camera.
        camera: b cameras.

    Returns:
        [b 4]: polar angle in radians, sine and cosine of the azimuth, and distance in world units, each minus that of `one`.
    """
    turn = camera.azimuth - one.azimuth
    return jnp.stack([one.elevation - camera.elevation, jnp.sin(turn), jnp.cos(turn), camera.radius - one.radius], -1)
