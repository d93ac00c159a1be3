"""Penalties on renders, per view: what keeps a distilled scene from fog, haze and floating scraps.

Each is (Render) -> [b]; the train step averages over views. `objective` scale is that of LODS, and so are the weights.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lods_jax.types import Render

Penalty = Callable[[Render], Float[Array, "b"]]


def sparsity(render: Render) -> Float[Array, "b"]:
    """Mean sqrt(opacity^2 + 0.01): pulls empty space to be empty (threestudio's form)."""
    return jnp.mean(jnp.sqrt(render.opacity**2 + 0.01), (1, 2, 3))


def opaque(render: Render) -> Float[Array, "b"]:
    """Binary entropy of the opacity, in nats: pushes every pixel to be seen through or not. Clamped to [1e-3, 1 - 1e-3]."""
    p = jnp.clip(render.opacity, 1e-3, 1 - 1e-3)
    return -jnp.mean(p * jnp.log(p) + (1 - p) * jnp.log1p(-p), (1, 2, 3))


def z_variance(render: Render) -> Float[Array, "b"]:
    """Mean variance of depth along rays (HiFA; Zhu et al. 2024, eq. 10), over the pixels that show something; 0 where none do."""
    seen = (render.opacity > 0.5).astype(jnp.float32)
    # A masked mean, never a mean of the masked: an empty view is 0 / 1, not 0 / 0.
    return jnp.sum(render.extras["z_var"] * seen, (1, 2, 3)) / jnp.maximum(jnp.sum(seen, (1, 2, 3)), 1.0)


def orientation(render: Render) -> Float[Array, "b"]:
    """Weight of normals that face away from the camera (Ref-NeRF; Verbin et al. 2022, eq. 11), as the scene sums it up."""
    return jnp.mean(render.extras["orientation"], (1, 2, 3))


def distortion(render: Render) -> Float[Array, "b"]:
    """How far light is spread along rays (mip-NeRF 360; Barron et al. 2022, eq. 15), world units."""
    return jnp.mean(render.extras["distortion"], (1, 2, 3))


PENALTIES: Mapping[str, Penalty] = {
    "sparsity": sparsity,
    "opaque": opaque,
    "z_variance": z_variance,
    "orientation": orientation,
    "distortion": distortion,
}


def weighted(schedules: Mapping[str, Callable[[Int[Array, ""]], Float[Array, ""]]]) -> Callable:
    """(render, step) -> {name: weighted cost [b]} of the named penalties; a schedule maps the step to a weight."""
    if unknown := sorted(set(schedules) - set(PENALTIES)):
        raise ValueError(f"unknown penalty {unknown[0]}; there are {', '.join(PENALTIES)}")
    return lambda render, step: {name: weight(step) * PENALTIES[name](render) for name, weight in schedules.items()}
