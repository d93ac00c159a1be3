"""n separate images as one scene: view i shows particle i. For 2-D generation and editing, of latents or of pixels."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lods_jax.core.types import Camera, Render, Scene


def image_batch(start: Float[Array, "n h w c"]) -> Scene:
    """n separate images as one scene: view i shows image i, and a step has exactly n views.

    theta is {"x": [n h w c]}, unbounded, so that it shows how far an objective pushes.

    Args:
        start: the images [n h w c] at first.

    Returns:
        The scene. Its `render` raises ValueError for another number of views.
    """

    def init(key: Key[Array, ""]):
        del key
        return {"x": start}, {}

    def render(theta, aux, camera: Camera, keys: Key[Array, "b"], means2d_probe) -> Render:
        if len(keys) != len(theta["x"]):
            raise ValueError(f"{len(theta['x'])} particles need as many views, on one device, got {len(keys)}")
        one = jnp.ones_like(theta["x"][..., :1])
        return Render(theta["x"], one, one, {})

    return Scene(init, render, means2d_probe=lambda aux, b: {}, update_stats=lambda aux, means2d_grad, render: aux)


def pixels(height: int, width: int, start: float = 0.5) -> Scene:
    """One image as a scene, the same in every view.

    theta is {"rgb": [height width 3]}, unbounded, so that it shows how far an objective pushes.

    Args:
        height: pixels.
        width: pixels.
        start: the grey of every pixel at first.

    Returns:
        The scene.

    Examples:
        >>> scene = pixels(64, 64)
    """

    def init(key: Key[Array, ""]):
        del key
        return {"rgb": jnp.full((height, width, 3), start)}, {}

    def render(theta, aux, camera: Camera, keys: Key[Array, "b"], means2d_probe) -> Render:
        rgb = jnp.broadcast_to(theta["rgb"], (len(camera.view), height, width, 3))
        one = jnp.ones_like(rgb[..., :1])
        return Render(rgb, one, one, {})

    return Scene(init, render, means2d_probe=lambda aux, b: {}, update_stats=lambda aux, means2d_grad, render: aux)
