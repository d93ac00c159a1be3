"""Regularizers of renders, per view: against fog, haze and floating scraps, and towards a reference image.

Each is (Render) -> [b]; the train step averages over views. The weights are relative to the residual of LODS.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lods_jax.core.math import normalize
from lods_jax.core.types import ReferenceImage, Render

Regularizer = Callable[[Render], Float[Array, "b"]]


def sparsity(render: Render) -> Float[Array, "b"]:
    """Mean of sqrt(opacity^2 + 0.01) over the pixels of each view, [b]: pulls empty space to be empty, in threestudio's form.

    Args:
        render: b views.

    Returns:
        One cost per view.
    """
    return jnp.mean(jnp.sqrt(render.opacity**2 + 0.01), (1, 2, 3))


def opaque(render: Render) -> Float[Array, "b"]:
    """Binary entropy of the opacity in nats: pushes every pixel to be either opaque or transparent.

    Args:
        render: b views; the opacity is clamped to [1e-3, 1 - 1e-3].

    Returns:
        One cost per view, the mean over pixels.
    """
    p = jnp.clip(render.opacity, 1e-3, 1 - 1e-3)
    return -jnp.mean(p * jnp.log(p) + (1 - p) * jnp.log1p(-p), (1, 2, 3))


def z_variance(render: Render) -> Float[Array, "b"]:
    """Mean variance of depth along the rays (HiFA; Zhu et al. 2024, eq. 10).

    Args:
        render: b views with `extras["z_var"]`, squared world units.

    Returns:
        One cost per view, the mean over the pixels with opacity above 0.5; 0 where there are none.
    """
    seen = (render.opacity > 0.5).astype(jnp.float32)
    # A masked mean, never a mean of the masked: an empty view is 0 / 1, not 0 / 0.
    return jnp.sum(render.extras["z_var"] * seen, (1, 2, 3)) / jnp.maximum(jnp.sum(seen, (1, 2, 3)), 1.0)


def orientation(render: Render) -> Float[Array, "b"]:
    """Penalty on visible normals that face away from the camera (Ref-NeRF; Verbin et al. 2022, eq. 11).

    Args:
        render: b views with `extras["orientation"]`, which the scene has summed along the rays.

    Returns:
        One cost per view, the mean over pixels.
    """
    return jnp.mean(render.extras["orientation"], (1, 2, 3))


def distortion(render: Render) -> Float[Array, "b"]:
    """How far the weights of a ray are spread along it (mip-NeRF 360; Barron et al. 2022, eq. 15).

    Args:
        render: b views with `extras["distortion"]`, world units.

    Returns:
        One cost per view, the mean over pixels.
    """
    return jnp.mean(render.extras["distortion"], (1, 2, 3))


REGULARIZERS: Mapping[str, Regularizer] = {
    "sparsity": sparsity,
    "opaque": opaque,
    "z_variance": z_variance,
    "orientation": orientation,
    "distortion": distortion,
}


def weighted_regularizers(schedules: Mapping[str, Callable[[Int[Array, ""]], Float[Array, ""]]]) -> Callable:
    """The named regularizers with weights that depend on the step.

    Args:
        schedules: {name of `REGULARIZERS`: step -> weight}.

    Returns:
        A function (render of b views, step) -> {name: weighted cost [b]}.

    Raises:
        ValueError: a regularizer is unknown.

    Examples:
        >>> costs = weighted_regularizers({"sparsity": lambda step: 0.5})
    """
    if unknown := sorted(set(schedules) - set(REGULARIZERS)):
        raise ValueError(f"unknown regularizer {unknown[0]}; there are {', '.join(REGULARIZERS)}")
    return lambda render, step: {name: weight(step) * REGULARIZERS[name](render) for name, weight in schedules.items()}


# --- costs of a reference image --------------------------------------------------------------------------------------------
def rgb_error(render: Render, image: ReferenceImage) -> Float[Array, "1"]:
    """Mean squared error of the colours; both images are on white.

    Args:
        render: of one view.
        image: of the same size.

    Returns:
        One cost, [1].
    """
    return jnp.mean((render.rgb - image.rgb[None]) ** 2, (1, 2, 3))


def mask_error(render: Render, image: ReferenceImage) -> Float[Array, "1"]:
    """Mean squared error between opacity and mask.

    Args:
        render: of one view.
        image: of the same size.

    Returns:
        One cost, [1].
    """
    return jnp.mean((render.opacity - image.mask[None]) ** 2, (1, 2, 3))


def depth_error(render: Render, image: ReferenceImage) -> Float[Array, "1"]:
    """1 minus the correlation of the depths, over the pixels where both show the object (Magic123; Qian et al. 2024, eq. 5).

    Args:
        render: of one view.
        image: of the same size, with a depth.

    Returns:
        One cost, [1], in [0, 2].
    """
    on = image.mask[None] * (render.opacity > 0.5)
    total = jnp.maximum(jnp.sum(on), 1.0)
    centred = lambda x: (x - jnp.sum(on * x) / total) * on  # noqa: E731
    a, b = centred(render.depth), centred(image.depth[None])
    return 1 - jnp.sum(a * b, (1, 2, 3)) / jnp.sqrt(jnp.sum(a**2) * jnp.sum(b**2) + 1e-8)


def normal_error(render: Render, image: ReferenceImage) -> Float[Array, "1"]:
    """Mean of 1 minus the cosine between the normals of the rendered depth and those of the image, where both show the object.

    Args:
        render: of one view.
        image: of the same size, with normals.

    Returns:
        One cost, [1], in [0, 2].
    """
    inner = lambda x: x[:, 1:-1, 1:-1]  # noqa: E731
    on = inner(image.mask[None] * (render.opacity > 0.5))
    cosine = jnp.sum(depth_normals(render.depth, image.camera.fov_y) * inner(image.normal[None]), -1, keepdims=True)
    return jnp.sum(on * (1 - cosine), (1, 2, 3)) / jnp.maximum(jnp.sum(on, (1, 2, 3)), 1.0)


def depth_normals(depth: Float[Array, "b h w 1"], fov_y: Float[Array, "b"]) -> Float[Array, "b h-2 w-2 3"]:
    """Unit normals of a depth map, by central differences of the points that it shows.

    Args:
        depth: along the optical axis [b h w 1], world units.
        fov_y: vertical field of view [b], radians.

    Returns:
        Normals [b h-2 w-2 3] in the frame of the camera: x right, y up, z towards the camera.
    """
    _, h, w, _ = depth.shape
    y, x = (g[None, ..., None] for g in jnp.meshgrid(jnp.arange(h) + 0.5 - h / 2, jnp.arange(w) + 0.5 - w / 2, indexing="ij"))
    scale = (2 * jnp.tan(fov_y / 2) / h)[:, None, None, None]
    points = jnp.concatenate([depth * scale * x, -depth * scale * y, -depth], -1)
    right = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]
    up = points[:, :-2, 1:-1] - points[:, 2:, 1:-1]
    return normalize(jnp.cross(right, up))


IMAGE_ERRORS: Mapping[str, Callable[[Render, ReferenceImage], Float[Array, "1"]]] = {
    "rgb": rgb_error,
    "mask": mask_error,
    "depth": depth_error,
    "normal": normal_error,
}


def image_errors(schedules: Mapping[str, Callable[[Int[Array, ""]], Float[Array, ""]]]) -> Callable:
    """The named costs of a reference image with weights that depend on the step.

    Args:
        schedules: {name of `IMAGE_ERRORS`: step -> weight}.

    Returns:
        A function (render of one view, `ReferenceImage`, step) -> {"image_NAME": weighted cost [1]}; it resizes the image to the
            render.
    """

    def costs(render: Render, image: ReferenceImage, step: Int[Array, ""]) -> dict[str, Array]:
        _, h, w, _ = render.rgb.shape
        sized = lambda x: x if x is None or x.shape[:2] == (h, w) else jax.image.resize(x, (h, w, x.shape[2]), "linear")  # noqa: E731
        image = image.replace(**{name: sized(getattr(image, name)) for name in ("rgb", "mask", "depth", "normal")})
        return {f"image_{name}": weight(step) * IMAGE_ERRORS[name](render, image) for name, weight in schedules.items()}

    return costs
