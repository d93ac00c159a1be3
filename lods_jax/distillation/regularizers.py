"""Penalties on renders, per view: what keeps a distilled scene from fog, haze and floating scraps, and true to a picture.

Each is (Render) -> [b]; the train step averages over views. `objective` scale is that of LODS, and so are the weights.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lods_jax.core.math import normalize
from lods_jax.core.types import Picture, Render

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


# --- a view of which there is a picture -------------------------------------------------------------------------------------
def rgb_error(render: Render, picture: Picture) -> Float[Array, "1"]:
    """Mean squared error of the colours; both are on white."""
    return jnp.mean((render.rgb - picture.rgb[None]) ** 2, (1, 2, 3))


def mask_error(render: Render, picture: Picture) -> Float[Array, "1"]:
    """Mean squared error of opacity and mask."""
    return jnp.mean((render.opacity - picture.mask[None]) ** 2, (1, 2, 3))


def depth_error(render: Render, picture: Picture) -> Float[Array, "1"]:
    """1 minus the correlation of the depths where both show the object (Magic123; Qian et al. 2024, eq. 5)."""
    on = picture.mask[None] * (render.opacity > 0.5)
    total = jnp.maximum(jnp.sum(on), 1.0)
    centred = lambda x: (x - jnp.sum(on * x) / total) * on  # noqa: E731
    a, b = centred(render.depth), centred(picture.depth[None])
    return 1 - jnp.sum(a * b, (1, 2, 3)) / jnp.sqrt(jnp.sum(a**2) * jnp.sum(b**2) + 1e-8)


def normal_error(render: Render, picture: Picture) -> Float[Array, "1"]:
    """Mean of 1 minus the cosine between the normals of the rendered depth and the picture's, where both show the object."""
    inner = lambda x: x[:, 1:-1, 1:-1]  # noqa: E731
    on = inner(picture.mask[None] * (render.opacity > 0.5))
    cosine = jnp.sum(depth_normals(render.depth, picture.camera.fov_y) * inner(picture.normal[None]), -1, keepdims=True)
    return jnp.sum(on * (1 - cosine), (1, 2, 3)) / jnp.maximum(jnp.sum(on, (1, 2, 3)), 1.0)


def depth_normals(depth: Float[Array, "b h w 1"], fov_y: Float[Array, "b"]) -> Float[Array, "b h-2 w-2 3"]:
    """Unit normals of a depth map, by central differences of the points that it shows: x right, y up, z towards the camera."""
    _, h, w, _ = depth.shape
    y, x = (g[None, ..., None] for g in jnp.meshgrid(jnp.arange(h) + 0.5 - h / 2, jnp.arange(w) + 0.5 - w / 2, indexing="ij"))
    scale = (2 * jnp.tan(fov_y / 2) / h)[:, None, None, None]
    points = jnp.concatenate([depth * scale * x, -depth * scale * y, -depth], -1)
    right = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]
    up = points[:, :-2, 1:-1] - points[:, 2:, 1:-1]
    return normalize(jnp.cross(right, up))


ERRORS: Mapping[str, Callable[[Render, Picture], Float[Array, "1"]]] = {
    "rgb": rgb_error,
    "mask": mask_error,
    "depth": depth_error,
    "normal": normal_error,
}


def against_picture(schedules: Mapping[str, Callable[[Int[Array, ""]], Float[Array, ""]]]) -> Callable:
    """(render of one view, picture, step) -> {"picture_NAME": weighted cost [1]}; the picture is brought to the render's size."""

    def costs(render: Render, picture: Picture, step: Int[Array, ""]) -> dict[str, Array]:
        _, h, w, _ = render.rgb.shape
        sized = lambda x: x if x is None or x.shape[:2] == (h, w) else jax.image.resize(x, (h, w, x.shape[2]), "linear")  # noqa: E731
        picture = picture.replace(**{name: sized(getattr(picture, name)) for name in ("rgb", "mask", "depth", "normal")})
        return {f"picture_{name}": weight(step) * ERRORS[name](render, picture) for name, weight in schedules.items()}

    return costs
