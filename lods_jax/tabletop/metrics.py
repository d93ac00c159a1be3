"""Figures for a generated object against the true one: what the classifier reads around it, its colours, its shape.

Image metrics take what `classifier.classify` read in renders of an orbit; shape metrics take points in world units and the
object's signed distance field.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lods_jax.core.cameras import VIEWS, orbit_camera, rays
from lods_jax.core.types import Camera
from lods_jax.tabletop.classifier import NONE, ClassifierOutput
from lods_jax.tabletop.objects import BOUND, signed_distance, trace

MIDDLE = np.full(4, 0.5, np.float32)  # the proportions of `dataset.render_caption`


def janus_index(read: ClassifierOutput, view: np.ndarray) -> float:
    """Share of the views away from the front that show a front: 0 for a true object, 1 for a face on every side.

    Images that read as no object count as no front.

    Args:
        read: by the classifier.
        view: the true views [n].

    Returns:
        The share; NaN without side or back views.
    """
    away = np.isin(view, [VIEWS.index("side"), VIEWS.index("back")])
    front = (read.view == VIEWS.index("front")) & (read.kind != NONE)
    return float(front[away].mean()) if away.any() else float("nan")


def kid(ours: Float[np.ndarray, "n d"], true: Float[np.ndarray, "m d"]) -> float:
    """Kernel inception distance (Binkowski et al. 2018) in the classifier's features: unbiased, also for a few dozen images.

    The squared maximum mean discrepancy under the kernel (x.y / d + 1)^3.

    Args:
        ours: features [n d].
        true: features [m d].

    Returns:
        About 0, or slightly below, for equal distributions.

    Raises:
        ValueError: there are fewer than 2 images on a side.
    """
    if len(ours) < 2 or len(true) < 2:
        raise ValueError(f"kid needs at least 2 images on each side, got {len(ours)} and {len(true)}")
    kernel = lambda a, b: (a.astype(np.float64) @ b.T / a.shape[1] + 1) ** 3  # noqa: E731
    off_diagonal_mean = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))  # noqa: E731
    return float(off_diagonal_mean(kernel(ours, ours)) + off_diagonal_mean(kernel(true, true)) - 2 * kernel(ours, true).mean())


def saturation(rgb: Float[np.ndarray, "*n 3"], weight: Float[np.ndarray, "*n"]) -> float:
    """Mean HSV saturation of the pixels, to compare with the true object's.

    Args:
        rgb: [... 3].
        weight: coverage [...].

    Returns:
        In [0, 1].
    """
    top = rgb.max(-1)
    value = np.where(top > 0, (top - rgb.min(-1)) / np.where(top > 0, top, 1), 0)
    return float((value * weight).sum() / weight.sum())


def surface_points(kind: str, n: int, camera: Camera | None = None, seed: int = 0) -> Float[np.ndarray, "n 3"]:
    """Points on the surface of the middle object that cameras see, drawn from their rays.

    Args:
        kind: of the object.
        n: number of points.
        camera: None for 24 cameras all around.
        seed: of the draw.

    Returns:
        [n 3].
    """
    camera = camera or _all_around(24)
    points, hit = _first_hits(kind, camera)
    points = np.asarray(points)[np.asarray(hit) > 0]
    return points[np.random.default_rng(seed).integers(len(points), size=n)]


def _all_around(n: int) -> Camera:
    """n cameras at the directions of a Fibonacci sphere: even, without clumps at the poles."""
    i = np.arange(n) + 0.5
    azimuth, elevation = (np.pi * (1 + 5**0.5) * i) % (2 * np.pi) - np.pi, np.arcsin(1 - 2 * i / n)
    as_array = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
    return orbit_camera(as_array(azimuth), as_array(elevation), jnp.full(n, 3.0), jnp.full(n, np.float32(0.6)))


@partial(jax.jit, static_argnames="kind")
def _first_hits(kind: str, camera: Camera) -> tuple[Float[Array, "b 64 64 3"], Float[Array, "b 64 64"]]:
    """Where the rays of 64 x 64 pixels end, and 1.0 where that is on the object."""
    origins, directions = rays(camera, 64, 64)
    t, hit = jax.lax.map(lambda ray: trace(kind, *ray, jnp.asarray(MIDDLE), steps=96), (origins, directions))
    return origins + t[..., None] * directions, hit


def chamfer(points: Float[np.ndarray, "n 3"], kind: str, camera: Camera | None = None) -> float:
    """Mean of the distance of our points to the true surface and of the true surface's points to ours.

    Args:
        points: ours [n 3], world units.
        kind: of the object.
        camera: limits the true points to those that it sees; None for all that can be seen from outside.

    Returns:
        World units.
    """
    inward = np.abs(np.asarray(signed_distance(kind, jnp.asarray(points), jnp.asarray(MIDDLE))))
    return float(0.5 * inward.mean() + 0.5 * _nearest(surface_points(kind, 4096, camera), points).mean())


def coverage(points: Float[np.ndarray, "n 3"], kind: str, radius: float = 0.05 * BOUND, camera: Camera | None = None) -> float:
    """Share of the true surface that has one of our points nearby.

    Args:
        points: ours [n 3], world units.
        kind: of the object.
        radius: that is nearby, world units.
        camera: limits the true surface to what it sees.

    Returns:
        The share.
    """
    return float((_nearest(surface_points(kind, 4096, camera), points) < radius).mean())


def distance_between(a: Float[np.ndarray, "n 3"], b: Float[np.ndarray, "m 3"]) -> float:
    """Mean of the distance of the points a to the nearest of b and of b to the nearest of a, world units; NaN without points."""
    return float(0.5 * _nearest(a, b).mean() + 0.5 * _nearest(b, a).mean()) if len(a) and len(b) else float("nan")


def _nearest(a: Float[np.ndarray, "n 3"], b: Float[np.ndarray, "m 3"]) -> Float[np.ndarray, "n"]:
    """Distance from each point of a to the nearest of b."""
    from scipy.spatial import cKDTree

    return cKDTree(b).query(a)[0]


def floaters(points: Float[np.ndarray, "n 3"], mass: Float[np.ndarray, "n"], cell: float = 0.1) -> float:
    """Share of the opacity mass outside the largest connected component of occupied cells.

    Cells with less than 1 % of the mass of the fullest count as empty.

    Args:
        points: [n 3] world units.
        mass: [n].
        cell: edge, world units.

    Returns:
        The share; NaN without mass.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    if not mass.sum() > 0:
        return float("nan")
    # Occupied cells as a list, not as a grid: one Gaussian that flew far away would make the grid too large for memory.
    cells, cell_of = np.unique(np.floor(points / cell), axis=0, return_inverse=True)
    held = np.bincount(cell_of.ravel(), mass)
    occupied = held > 0.01 * held.max()
    cells, n = cells[occupied], occupied.sum()
    i, j = cKDTree(cells).query_pairs(1.5, p=np.inf, output_type="ndarray").T  # the 26 cells around each
    _, part = connected_components(coo_array((np.ones(len(i)), (i, j)), (n, n)), directed=False)
    return float(1 - np.bincount(part, held[occupied]).max() / held.sum())
