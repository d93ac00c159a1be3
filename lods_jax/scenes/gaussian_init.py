"""The first Gaussians of a scene: in a ball, on a shell, or from a file."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from scipy.spatial import cKDTree

from lods_jax.scenes.spherical_harmonics import Y00

INSIDE = 0.75  # of the points at least must lie in the view, or a file is fitted
SPECK = 0.05  # of the view's radius at least
MIDDLE = 0.02, 0.98  # quantiles between which a cloud is measured: single points far away do not count
Start = dict[str, Float[Array, "m ..."]]  # the first m Gaussians: means, and any other leaf of theta


class Placed(NamedTuple):
    """Rows of a file, placed where cameras look.

    Attributes:
        columns: {name: [n ...]}.
        notes: for the user, a line each: what was done, and what can be done about it.
    """

    columns: dict[str, Float[np.ndarray, "n ..."]]
    notes: list[str]


def ball(key: Key[Array, ""], count: int, radius: float = 0.5) -> Start:
    """Points uniform in a ball around the origin.

    Args:
        key: consumed.
        count: number of points.
        radius: world units.

    Returns:
        {"means": [count 3]}.
    """
    k_direction, k_radius = jax.random.split(key)
    return {"means": jax.random.uniform(k_radius, (count, 1)) ** (1 / 3) * shell(k_direction, count, radius)["means"]}


def shell(key: Key[Array, ""], count: int, radius: float = 0.5) -> Start:
    """Points uniform on a sphere around the origin.

    Args:
        key: consumed.
        count: number of points.
        radius: world units.

    Returns:
        {"means": [count 3]}.
    """
    direction = jax.random.normal(key, (count, 3))
    return {"means": radius * direction / jnp.linalg.norm(direction, axis=-1, keepdims=True)}


def fitted(columns: dict[str, Float[np.ndarray, "n ..."]], fit: str, view: float, radius: float) -> Placed:
    """Centres and scales a point cloud or splats, so that cameras see them.

    Args:
        columns: means [n 3], and whatever else there is of log_scales and other leaves.
        fit: "always", "never", or "auto" for files that lie outside the view or are tiny in it.
        view: distance from the origin up to which cameras see, world units.
        radius: that nearly all of the points lie within afterwards, world units.

    Returns:
        The rows, means in float32, and notes on what lies outside the view.
    """
    means = np.asarray(columns["means"], np.float64)
    middle = np.quantile(means, MIDDLE, axis=0).mean(0)
    extent = float(np.quantile(np.linalg.norm(means - middle, axis=1), MIDDLE[1]))
    inside = float(np.mean(np.linalg.norm(means, axis=1) <= view))
    seen = inside >= INSIDE and (extent >= SPECK * view or extent == 0)
    scale, notes = radius / extent if extent > 0 else 1.0, []
    if extent == 0 and len(means) > 1:
        notes.append(f"all of its {len(means):,} points lie at one place")
    where = f"{inside:.0%} of the points lie within {view:.2g} of the origin, where cameras look; they extend {extent:.3g}"
    if fit == "never" or (fit == "auto" and seen):
        if not seen:
            notes.append(f"{where}: pass --gaussians.fit auto to centre and scale them")
        means, scale = means.astype(np.float32), 1.0
    else:
        means = ((means - middle) * scale).astype(np.float32)
        place = ", ".join(f"{x:.8g}" for x in middle)
        notes += [f"{where}: centred from ({place}) and scaled by {scale:.3g} (--gaussians.fit never leaves them)"]
    columns = dict(columns) | {"means": means}
    if "log_scales" in columns:
        columns["log_scales"] = columns["log_scales"] + np.float32(np.log(scale))
        if extent > 0 and np.median(columns["log_scales"].max(1)) > np.log(2 * scale * extent):
            notes.append("most of the Gaussians are larger than all of the scene: scale_* must be logarithms")
    return Placed(columns, notes)


def from_points(columns: dict[str, Float[np.ndarray, "n ..."]], count: int, seed: int = 0) -> Start:
    """The start from splats or from a point cloud: at most `count` of its rows, chosen at random.

    Without sizes, a Gaussian is as large as the mean distance to its three nearest neighbours at other places (Kerbl et al. 2023,
    section 5.1).

    Args:
        columns: means [n 3], and whatever there is of quats, log_scales, opacity_logits and sh, or rgb [n 3] in [0, 1].
        count: largest number of Gaussians.
        seed: of the choice.

    Returns:
        {leaf of theta: first rows}.
    """
    n = len(columns["means"])
    rows = np.sort(np.random.default_rng(seed).permutation(n)[:count])
    start = {name: np.asarray(value)[rows] for name, value in columns.items()}
    if "rgb" in start:
        start["sh"] = (start.pop("rgb")[:, None] - 0.5) / Y00
    if "log_scales" not in start:
        places, which = np.unique(start["means"], axis=0, return_inverse=True)
        if len(places) > 1:
            distance, _ = cKDTree(places).query(places, k=range(2, min(4, len(places)) + 1))
            start["log_scales"] = np.tile(np.log(np.maximum(distance.mean(1), 1e-7))[which.reshape(-1), None], 3)
    return {name: jnp.asarray(value, jnp.float32) for name, value in start.items()}
