"""Noise that stays as it is over the steps of a run: functions for `Objective.noise`.

A score with a new noise in every step is that of all its noises at once, and ends where their mean leads. With one noise a run
follows one path of the probability flow, as a sampler does, and another seed follows another.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from lods_jax.core.cameras import rays
from lods_jax.core.types import Camera, Render

SAMPLES = 8  # of a latent pixel's surface, along each side
CUBE = 1024  # voxels along each side of the cube that repeats


def one_noise(keys: Key[Array, "b"], z: Float[Array, "b h w c"], render: Render, camera: Camera) -> Float[Array, "b h w c"]:
    """One noise for all views of a particle and all steps of a run (Xu et al. 2024, "Diverse score distillation").

    Args:
        keys: one per view, that of its particle.
        z: latents of the renders, for their shape.
        render: left aside.
        camera: left aside.

    Returns:
        Standard normal, the same in every view of a particle.
    """
    return jax.vmap(lambda key: jax.random.normal(key, z.shape[1:]))(keys)


def surface_noise(keys: Key[Array, "b"], z: Float[Array, "b h w c"], render: Render, camera: Camera) -> Float[Array, "b h w c"]:
    """Noise that lies on the surface: views of one surface point see one noise (Yan et al. 2025, section 3.3).

    Space is filled with white noise, one value for each voxel. A latent pixel has the sum of the values of the voxels that its
    piece of the surface meets, over its standard deviation: exactly standard normal, and independent of its neighbours but for
    the voxels on their border. The background has a noise of its own in the picture. The paper's code integrates a noise on
    three planes over the projected pixel; a voxel needs no rasterizer.

    Args:
        keys: one per view, that of its particle.
        z: latents of the renders, for their shape.
        render: depth and opacity say where the surface is.
        camera: b cameras.

    Returns:
        Standard normal.
    """
    b, h, w, c = z.shape
    seen = surface_voxels(render, camera, SAMPLES * h, SAMPLES * w, voxel=2 / (SAMPLES * w))
    tiles = seen.reshape(b, h, SAMPLES, w, SAMPLES).transpose(0, 1, 3, 2, 4).reshape(b, h, w, SAMPLES**2)
    value = lambda key, voxel: jax.random.normal(jax.random.fold_in(key, voxel), (c,))  # noqa: E731
    in_view = jax.vmap(value, (None, 0))
    total = jax.vmap(in_view)(keys, tiles.reshape(b, -1)).reshape(*tiles.shape, c).sum(-2)
    # A voxel that n samples meet adds n^2 to the variance: the number of pairs of samples in one voxel.
    variance = jnp.sum(tiles[..., :, None] == tiles[..., None, :], (-2, -1))
    return total / jnp.sqrt(variance)[..., None]


def surface_voxels(render: Render, camera: Camera, h: int, w: int, voxel: float) -> Int[Array, "b h w"]:
    """The voxel in which each of h x w rays meets the surface.

    Args:
        render: its depth and opacity, of any size.
        camera: b cameras.
        h: number of rays from top to bottom.
        w: number of rays from left to right.
        voxel: edge, world units.

    Returns:
        A number for each voxel, the same in every view; they repeat at a distance of CUBE voxels. For a ray that meets nothing, a
            number of its place in the picture.
    """
    b = len(render.depth)
    depth, opacity = (jax.image.resize(x, (b, h, w, 1), "nearest") for x in (render.depth, render.opacity))
    origins, directions = rays(camera, h, w)
    forward = camera.c2w[:, None, None, :3, 2]
    points = origins + depth / jnp.sum(directions * forward, -1, keepdims=True) * directions  # depth is along the optical axis
    x, y, z = jnp.moveaxis(jnp.floor(points / voxel).astype(jnp.int32) % CUBE, -1, 0)
    behind = CUBE**3 + jnp.arange(h * w).reshape(1, h, w)
    return jnp.where(opacity[..., 0] > 0.5, x + CUBE * (y + CUBE * z), behind)
