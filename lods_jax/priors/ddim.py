"""DDIM (Song et al. 2021, eq. 12 with eta = 0) with classifier-free guidance (Ho and Salimans 2022).

Each step keeps the estimates of clean latents and noise, and mixes them anew for the next timestep. On the straight line of flow
matching that is Euler's step along the velocity: z_t + (sigma' - sigma) v = (1 - sigma') x0 + sigma' eps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lods_jax.core.noise_schedule import NoiseSchedule, T, eps_to_x0, x0_to_eps
from lods_jax.core.types import Cond


def ddim(
    predict: Callable[..., jax.Array],
    z: Float[Array, "b h w c"],
    tokens: Float[Array, "b n d"],
    null: Float[Array, "b n d"],
    noise_schedule: NoiseSchedule,
    *,
    s: Float[Array, ""] | float = 3.0,
    steps: int = 25,
    clip: float | None = None,
    predict_x0: Callable[..., jax.Array] | None = None,
    camera: Float[Array, "b 16"] | None = None,
) -> Float[Array, "b h w c"]:
    """Samples clean latents from Gaussian noise.

    Args:
        predict: (z_t, t [b], Cond) -> eps, such as a prior's `predict` with its weights and psi bound.
        z: standard normal noise [b h w c].
        tokens: text-encoder output of the prompt [b n d].
        null: text-encoder output of the negative prompt [b n d].
        noise_schedule: of the prior.
        s: guidance scale; 1 samples p(z | prompt).
        steps: number of evenly spaced timesteps from 999 down, 1 to 1000.
        clip: bound on |x0| in every step, None for no bound. Guidance at high noise can leave the range of the latents for good.
        predict_x0: a prior's own, if it has one; asked in place of `predict`.
        camera: camera-to-world matrices [b 16], for a prior of several views.

    Returns:
        Clean latents [b h w c].

    Raises:
        ValueError: `steps` is out of range.
    """
    if not 1 <= steps <= T:
        raise ValueError(f"steps must be in 1..{T}, got {steps}")
    times = jnp.linspace(T - 1, 0, steps + 1).round().astype(jnp.int32)
    cond = Cond(jnp.concatenate([tokens, null]), camera=None if camera is None else jnp.tile(camera, (2, 1)))
    alpha_bar, sigma2 = jnp.asarray(noise_schedule.alpha_bar), jnp.asarray(noise_schedule.sigma2)

    def guided_x0(z, t):
        # Guidance is the same combination of two eps or of two x0: each is linear in the other at one t and z_t.
        y, unconditional = jnp.split((predict_x0 or predict)(jnp.concatenate([z, z]), jnp.full(2 * len(z), t), cond), 2)
        guided = unconditional + s * (y - unconditional)
        return guided if predict_x0 else eps_to_x0(noise_schedule, guided, z, jnp.full(len(z), t))

    def step(i, z):
        now, then = times[i], times[i + 1]
        x0 = guided_x0(z, now)
        if clip is not None:
            x0 = jnp.clip(x0, -clip, clip)
        eps = x0_to_eps(noise_schedule, x0, z, jnp.full(len(z), now))
        # The last step lands on signal alone: the clean latents themselves.
        last = i == steps - 1
        return jnp.sqrt(jnp.where(last, 1.0, alpha_bar[then])) * x0 + jnp.sqrt(jnp.where(last, 0.0, sigma2[then])) * eps

    return jax.lax.fori_loop(0, steps, step, z)
