"""A scene of 3D Gaussians at fixed capacity: n slots, of which `alive` ones are drawn.

Shapes never change, so a step compiles once: refinement only rewrites slots. Notation: n slots, k = (degree + 1)^2 coefficients
of spherical harmonics per colour.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lods_jax.rendering.splat import rasterize
from lods_jax.types import Camera, Render, Scene

Y00 = 0.28209479177387814  # the constant spherical harmonic: rgb = 1/2 + Y00 sh_0


def ball(key: Key[Array, ""], count: int, radius: float = 0.5) -> Float[Array, "count 3"]:
    """Points uniform in a ball around the origin."""
    k_direction, k_radius = jax.random.split(key)
    direction = jax.random.normal(k_direction, (count, 3))
    direction = direction / jnp.linalg.norm(direction, axis=-1, keepdims=True)
    return radius * jax.random.uniform(k_radius, (count, 1)) ** (1 / 3) * direction


def white_or_grey(key: Key[Array, ""]) -> Float[Array, "3"]:
    """The backgrounds of the tabletop data set: white or an even grey, with equal odds."""
    u = jax.random.uniform(key, (2,))
    return jnp.where(u[0] < 0.5, 1.0, 0.3 + 0.6 * u[1]) * jnp.ones(3)


def gaussians(
    *,
    height: int,
    width: int,
    intersections: int,
    capacity: int = 4096,
    count: int = 2048,
    points: Callable[[Key[Array, ""], int], Float[Array, "count 3"]] = ball,
    size: float = 0.035,
    opacity: float = 0.1,
    degree: int = 0,
    background: Callable[[Key[Array, ""]], Float[Array, "3"]] = white_or_grey,
) -> Scene:
    """The scene for renders of height x width pixels.

    theta: means [n 3] world units, quats [n 4] wxyz, log_scales [n 3], opacity_logits [n], sh [n k 3].
    aux: alive [n] bool; for refinement, over the views in which a Gaussian was seen: grad [n] sum of the lengths of its
    screen-space gradient in normalised device units (the image is 2 wide), seen [n] number of views, radius [n] the largest
    on screen in pixels; total: the most tile intersections that a view had.

    Args:
      intersections: room for pairs of Gaussian and tile per view; the farthest are dropped beyond it (see aux["total"]).
      capacity, count: slots, and how many of them are alive at first. points: (key, count) -> their means.
      size: first standard deviation, world units. opacity: the first one. degree: 0 to 3, of the view-dependent colour.
      background: key -> rgb, drawn anew for every view.
    """
    if not 1 <= count <= capacity:
        raise ValueError(f"count must be in 1..capacity, got {count} of {capacity}")
    if not 0 <= degree <= 3:
        raise ValueError(f"degree must be in 0..3, got {degree}")
    if not (0 < opacity < 1 and size > 0):
        raise ValueError(f"opacity must be in (0, 1) and size positive, got {opacity} and {size}")

    def init(key: Key[Array, ""]):
        zeros = jnp.zeros(capacity)
        theta = {
            "means": jnp.zeros((capacity, 3)).at[:count].set(points(key, count)),
            "quats": jnp.tile(jnp.array([1.0, 0.0, 0.0, 0.0]), (capacity, 1)),
            "log_scales": jnp.full((capacity, 3), jnp.log(size)),
            "opacity_logits": jnp.full(capacity, jnp.log(opacity / (1 - opacity))),
            "sh": jnp.zeros((capacity, (degree + 1) ** 2, 3)),
        }
        alive = jnp.arange(capacity) < count
        return theta, {"alive": alive, "grad": zeros, "seen": zeros, "radius": zeros, "total": jnp.zeros((), jnp.int32)}

    def render(theta, aux, camera: Camera, keys: Key[Array, "b"], probe) -> Render:
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
            probe=probe["means2d"],
        )

    def probe(aux, b: int):
        return {"means2d": jnp.zeros((b, capacity, 2))}

    def observe(aux, g_probe, rendered: Render):
        # The gradient is of the mean over views: b times it is the view's own. Pixels -> normalised device units: half the width.
        b, seen = len(g_probe["means2d"]), rendered.extras["radii"] > 0
        half = jnp.array([width / 2, height / 2])
        grad = jnp.linalg.norm(b * g_probe["means2d"] * half[None, None], axis=-1)
        return aux | {
            "grad": aux["grad"] + jnp.sum(jnp.where(seen, grad, 0.0), 0),
            "seen": aux["seen"] + jnp.sum(seen, 0),
            "radius": jnp.maximum(aux["radius"], jnp.max(rendered.extras["radii"], 0)),
            "total": jnp.maximum(aux["total"], jnp.max(rendered.extras["total"])),
        }

    return Scene(init, render, probe, observe)
