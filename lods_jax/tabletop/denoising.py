"""What U-Net and text tower of the tabletop prior are trained to say, and samples of them.

The U-Net predicts the velocity of z_t: by Stable Diffusion's schedule, or by flow matching.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lods_jax.core.noise_schedule import (
    STABLE_DIFFUSION,
    add_noise,
    draw_timesteps,
    flow_matching,
    network_time,
    v_to_eps,
    v_to_x0,
    velocity,
)
from lods_jax.priors import flax_networks as modules
from lods_jax.priors.ddim import ddim
from lods_jax.priors.multi_view import camera_vectors
from lods_jax.priors.sampling import CLIP, group_cameras
from lods_jax.tabletop.architectures import Networks, networks

FLOW_MATCHING = flow_matching()  # no time shift: the latents are 16 x 16


def predict_v(nets: Networks, params, z_t, t, tokens, views=1, camera=None, noise_schedule=STABLE_DIFFUSION):
    """The velocity that the U-Net predicts.

    Args:
        nets: the modules.
        params: of U-Net and text tower.
        z_t: noised latents [b h w c].
        t: timesteps [b].
        tokens: what the text tower says [b n w].
        views: number of views that are denoised together.
        camera: of each view, from `multi_view.camera_vectors` [b 16]; None for none.
        noise_schedule: that z_t is mixed by.

    Returns:
        [b h w c].
    """
    told = network_time(noise_schedule, t)
    return modules.predict_noise(nets.unet, params["unet"], z_t, told, tokens, (), views, camera)


def velocity_error(nets: Networks, params, z, t, ids, key, views=1, camera=None, noise_schedule=STABLE_DIFFUSION):
    """Mean squared error of the velocity.

    Args:
        nets: the modules.
        params: of U-Net and text tower.
        z: clean latents [b h w c].
        t: timesteps [b].
        ids: token ids [b n].
        key: of the noise, which differs from view to view.
        views: as for `predict_v`.
        camera: as for `predict_v`.
        noise_schedule: as for `predict_v`.

    Returns:
        A number.
    """
    noise, tokens = jax.random.normal(key, z.shape), modules.encode_text(nets.text, params["text"], ids)
    v = predict_v(nets, params, add_noise(noise_schedule, z, noise, t), t, tokens, views, camera, noise_schedule)
    return jnp.mean((v - velocity(noise_schedule, z, noise, t)) ** 2)


def unet_loss(nets: Networks, params, batch, key, noise_schedule=STABLE_DIFFUSION):
    """Mean squared error of the velocity at `draw_timesteps`.

    Args:
        nets: the modules.
        params: of U-Net and text tower.
        batch: latents and token ids.
        key: of timesteps and noise.
        noise_schedule: as for `predict_v`.

    Returns:
        The loss, and metrics.
    """
    z, ids = batch
    k_t, k_noise = jax.random.split(key)
    mse = velocity_error(nets, params, z, draw_timesteps(k_t, len(z)), ids, k_noise, noise_schedule=noise_schedule)
    return mse, {"loss": mse}


@partial(jax.jit, static_argnames=("size", "shape", "steps", "views", "flow"))
def sample_latents(
    size: int,
    params: Any,
    ids: jax.Array,
    null: jax.Array,
    key: jax.Array,
    s: jax.Array | float,
    shape: tuple[int, ...],
    steps: int,
    views: int = 1,
    flow: bool = False,
) -> jax.Array:
    """DDIM samples of token ids, with classifier-free guidance.

    Args:
        size: edge of the images, pixels.
        params: of U-Net and text tower.
        ids: of the captions [b n].
        null: of no text [b n].
        key: of the noise.
        s: guidance scale.
        shape: of one latent.
        steps: of DDIM.
        views: number of views of each sample, one after the other.
        flow: whether the U-Net was trained by flow matching.

    Returns:
        Latents [b*views h w c].
    """
    nets, schedule = networks(size, views), FLOW_MATCHING if flow else STABLE_DIFFUSION

    def converted(convert, z_t, t, cond):
        camera = None if views == 1 else camera_vectors(cond.camera)
        return convert(schedule, predict_v(nets, params, z_t, t, cond.tokens, views, camera, schedule), z_t, t)

    predict, predict_x0 = partial(converted, v_to_eps), partial(converted, v_to_x0) if flow else None
    tokens, nothing = (jnp.repeat(modules.encode_text(nets.text, params["text"], x), views, 0) for x in (ids, null))
    z_T = jax.random.normal(key, (len(tokens), *shape))
    camera = None if views == 1 else group_cameras(views, len(ids))
    options = {"s": s, "steps": steps, "clip": CLIP, "camera": camera}
    return ddim(predict, z_T, tokens, nothing, schedule, predict_x0=predict_x0, **options)
