"""DDIM (Song et al. 2021, eq. 12 with eta = 0) with classifier-free guidance (Ho and Salimans 2022)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lods_jax.core.noise_schedule import ALPHA_BAR, T, eps_to_x0
from lods_jax.core.types import Cond


def ddim(
    predict: Callable[..., jax.Array],
    z: Float[Array, "b h w c"],
    tokens: Float[Array, "b n d"],
    null: Float[Array, "b n d"],
    *,
    s: Float[Array, ""] | float = 3.0,
    steps: int = 25,
    clip: float | None = None,
) -> Float[Array, "b h w c"]:
    """Samples clean latents from Gaussian noise.

    Args:
        predict: (z_t, t [b], Cond) -> eps, such as a prior's `predict` with its weights and psi bound.
        z: standard normal noise [b h w c].
        tokens: text-encoder output of the prompt [b n d].
        null: text-encoder output of the negative prompt [b n d].
        s: guidance scale; 1 samples p(z | prompt).
        steps: number of evenly spaced timesteps from 999 down, 1 to 1000.
        clip: bound on |x0| in every step, None for no bound. Guidance at high noise can leave the range of the latents for good.

    Returns:
        Clean latents [b h w c].

    Raises:
        ValueError: `steps` is out of range.
    """
    if not 1 <= steps <= T:
        raise ValueError(f"steps must be in 1..{T}, got {steps}")
    times = jnp.linspace(T - 1, 0, steps + 1).round().astype(jnp.int32)
    both = jnp.concatenate([tokens, null])

    def step(i, z):
        t = jnp.full(2 * len(z), times[i])
        eps_y, eps_null = jnp.split(predict(jnp.concatenate([z, z]), t, Cond(both)), 2)
        x0 = eps_to_x0(eps_null + s * (eps_y - eps_null), z, t[: len(z)])
        if clip is not None:
            x0 = jnp.clip(x0, -clip, clip)
        alpha_bar = jnp.asarray(ALPHA_BAR)[times[i]]
        # The last step lands on alpha_bar = 1: the clean latents themselves.
        alpha_next = jnp.where(i == steps - 1, 1.0, jnp.asarray(ALPHA_BAR)[times[i + 1]])
        eps = (z - jnp.sqrt(alpha_bar) * x0) / jnp.sqrt(1 - alpha_bar)
        return jnp.sqrt(alpha_next) * x0 + jnp.sqrt(1 - alpha_next) * eps

    return jax.lax.fori_loop(0, steps, step, z)
