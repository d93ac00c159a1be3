"""A scene of 3D Gaussians at fixed capacity: n slots, of which `alive` ones are drawn.

Shapes never change, so a step compiles once: refinement only rewrites slots. Notation: n slots, k = (degree + 1)^2 coefficients
of spherical harmonics per colour.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lods_jax.core.types import Camera, Render, Scene
from lods_jax.scenes.gaussian_init import Start, ball
from lods_jax.scenes.gaussian_rasterizer import rasterize

STATISTICS = ("mean-of-norms", "norm-of-sum", "mean-of-absolute")


def white_or_grey(key: Key[Array, ""]) -> Float[Array, "3"]:
    """A background colour [3] as in the tabletop data set, drawn with `key`: white or an even grey, with equal odds."""
    u = jax.random.uniform(key, (2,))
    return jnp.where(u[0] < 0.5, 1.0, 0.3 + 0.6 * u[1]) * jnp.ones(3)


def filtered(theta: dict[str, Array], std: float) -> dict[str, Array]:
    """Gaussians convolved with a small round one, so that none is thinner: Mip-Splatting's 3D filter (Yu et al. 2024, eq. 9).

    The mass stays the same, so that what was thinner than the filter gets fainter.

    Args:
        theta: with log_scales [n 3] and opacity_logits [n].
        std: standard deviation of the filter, world units; 0 changes nothing.

    Returns:
        theta with wider scales and lower opacities. Filters add up: one of std a and one of std b are one of sqrt(a^2 + b^2).
    """
    if std == 0:
        return theta
    log_scales = 0.5 * jnp.logaddexp(2 * theta["log_scales"], 2 * jnp.log(std))
    log_opacity = jax.nn.log_sigmoid(theta["opacity_logits"]) + jnp.sum(theta["log_scales"] - log_scales, -1)
    opacity_logits = log_opacity - jnp.log(-jnp.expm1(log_opacity))
    return theta | {"log_scales": log_scales, "opacity_logits": opacity_logits}


def gaussians(
    *,
    height: int,
    width: int,
    intersections: int,
    capacity: int = 4096,
    count: int = 2048,
    points: Callable[[Key[Array, ""], int], Start] = ball,
    size: float = 0.035,
    opacity: float = 0.1,
    degree: int = 0,
    statistic: str = "mean-of-norms",
    filter_std: float = 0.0,
    background: Callable[[Key[Array, ""]], Float[Array, "3"]] = white_or_grey,
) -> Scene:
    """A scene of 3D Gaussians at fixed capacity, rendered at height x width pixels.

    theta: means [n 3] world units, quats [n 4] wxyz, log_scales [n 3], opacity_logits [n], sh [n k 3]. aux: alive [n] bool;
    statistics for refinement over the views in which a Gaussian was seen: grad [n], the sum of the lengths of its screen-space
    gradient in normalised device units (the image is 2 wide), seen [n], the number of lengths, radius [n], the largest on screen
    in pixels; and total, the most tile intersections of a view.

    Args:
        height: of the renders, pixels.
        width: of the renders, pixels.
        intersections: capacity for pairs of Gaussian and tile per view; the farthest beyond it are dropped (see aux["total"]).
        capacity: number of slots.
        count: how many of them are alive at first.
        points: (key, count) -> {leaf of theta: first rows}: `ball`, `shell`, or the rows of `from_points`. Gaussians whose leaves
            it leaves out are round and grey, of this size and opacity.
        size: first standard deviation, world units.
        opacity: first opacity, in (0, 1).
        degree: of the spherical harmonics of colour, 0 to 3.
        statistic: the lengths that are summed. "mean-of-norms" are those of each view's gradient. "norm-of-sum" is one per step,
            of the gradient of the mean over the views, in which views that disagree cancel. "mean-of-absolute" are those of each
            view, with the absolute values of its pixels (AbsGS; Ye et al. 2024): thin and striped parts get more Gaussians.
        filter_std: of the 3D filter that theta is seen through (`filtered`), world units.
        background: key -> rgb [3], drawn for every view.

    Returns:
        The scene.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> scene = gaussians(height=64, width=64, intersections=2**16)
    """
    if not 1 <= count <= capacity:
        raise ValueError(f"count must be in 1..capacity, got {count} of {capacity}")
    if statistic not in STATISTICS:
        raise ValueError(f"statistic must be one of {', '.join(STATISTICS)}, got {statistic}")
    if not 0 <= degree <= 3:
        raise ValueError(f"degree must be in 0..3, got {degree}")
    if not (0 < opacity < 1 and size > 0):
        raise ValueError(f"opacity must be in (0, 1) and size positive, got {opacity} and {size}")

    def init(key: Key[Array, ""]):
        zeros = jnp.zeros(capacity)
        theta = {
            "means": jnp.zeros((capacity, 3)),
            "quats": jnp.tile(jnp.array([1.0, 0.0, 0.0, 0.0]), (capacity, 1)),
            "log_scales": jnp.full((capacity, 3), jnp.log(size), jnp.float32),
            "opacity_logits": jnp.full(capacity, jnp.log(opacity / (1 - opacity)), jnp.float32),
            "sh": jnp.zeros((capacity, (degree + 1) ** 2, 3)),
        }
        start = points(key, count)
        for name, first in start.items():
            first = first[:, : (degree + 1) ** 2] if name == "sh" else first
            theta[name] = theta[name].at[tuple(slice(n) for n in first.shape)].set(first)
        alive = jnp.arange(capacity) < len(start["means"])
        return theta, {"alive": alive, "grad": zeros, "seen": zeros, "radius": zeros, "total": jnp.zeros((), jnp.int32)}

    def render(theta, aux, camera: Camera, keys: Key[Array, "b"], means2d_probe) -> Render:
        theta = filtered(theta, filter_std)
        return rasterize(
            theta["means"],
            theta["quats"],
            jnp.exp(theta["log_scales"]),
            jax.nn.sigmoid(theta["opacity_logits"]) * aux["alive"],
            theta["sh"],
            jax.vmap(background)(keys),
            camera,
            height=height,
            width=width,
            capacity=intersections,
            means2d_probe=means2d_probe["means2d"],
            absolute_probe=means2d_probe.get("absolute"),
        )

    def means2d_probe(aux, b: int):
        zeros = jnp.zeros((b, capacity, 2))
        return {"means2d": zeros, "absolute": zeros} if statistic == "mean-of-absolute" else {"means2d": zeros}

    def update_stats(aux, means2d_grad, rendered: Render):
        # The gradient is of the mean over views: b times it is the view's own. Pixels -> normalised device units: half the width.
        b, seen = len(means2d_grad["means2d"]), rendered.extras["radii"] > 0
        half = jnp.array([width / 2, height / 2])
        if statistic != "norm-of-sum":
            pixels = means2d_grad["absolute" if statistic == "mean-of-absolute" else "means2d"]
            grad = jnp.linalg.norm(b * pixels * half[None, None], axis=-1)
        else:
            grad = jnp.linalg.norm(jnp.sum(means2d_grad["means2d"], 0) * half[None], axis=-1)[None]
            seen = jnp.any(seen, 0, keepdims=True)
        return aux | {
            "grad": aux["grad"] + jnp.sum(jnp.where(seen, grad, 0.0), 0),
            "seen": aux["seen"] + jnp.sum(seen, 0),
            "radius": jnp.maximum(aux["radius"], jnp.max(rendered.extras["radii"], 0)),
            "total": jnp.maximum(aux["total"], jnp.max(rendered.extras["total"])),
        }

    return Scene(init, render, means2d_probe, update_stats, colors=("sh",))
