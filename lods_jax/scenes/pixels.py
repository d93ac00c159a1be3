"""The simplest scene: one image that every camera sees. For 2-D generation and for studying objectives without a renderer."""

import jax.numpy as jnp
from jaxtyping import Array, Key

from lods_jax.types import Camera, Render, Scene


def pixels(height: int, width: int, start: float = 0.5) -> Scene:
    """theta = {"rgb": [height width 3]}, unbounded, so that it shows how far an objective pushes; starts at grey `start`."""

    def init(key: Key[Array, ""]):
        del key
        return {"rgb": jnp.full((height, width, 3), start)}, {}

    def render(theta, aux, camera: Camera, keys: Key[Array, "b"], probe) -> Render:
        rgb = jnp.broadcast_to(theta["rgb"], (len(camera.view), height, width, 3))
        one = jnp.ones_like(rgb[..., :1])
        return Render(rgb, one, one, {})

    return Scene(init, render, probe=lambda aux, b: {}, observe=lambda aux, g_probe, render: aux)
