"""The diffusion process of Stable Diffusion: z_t = sqrt(alpha_bar_t) z + sqrt(1 - alpha_bar_t) noise, t in 0..999.

The schedule is `scaled_linear` from 0.00085 to 0.012 (Rombach et al. 2022): sqrt(beta) is linear in t.
eps, x0 and v are three names for one prediction (Salimans and Ho 2022, eq. 9 and appendix D): v = sqrt(ab) eps - sqrt(1-ab) x0.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

T = 1000
# Summed in float64 on the host: the float32 cumulative product is off by 3e-7 at t = 999.
ALPHA_BAR = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, T) ** 2).astype(np.float32)


def per_example(x: Float[Array, "b"], like: Float[Array, "b *d"]) -> Float[Array, "b *_"]:
    """x with trailing axes of size 1, so that it broadcasts against `like`."""
    return x.reshape(x.shape + (1,) * (like.ndim - x.ndim))


def signal_and_noise(t: Int[Array, "b"], like: Float[Array, "b *d"]) -> tuple[Array, Array]:
    """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), shaped to broadcast against `like`."""
    alpha_bar = per_example(jnp.asarray(ALPHA_BAR)[t], like)
    return jnp.sqrt(alpha_bar), jnp.sqrt(1 - alpha_bar)


def add_noise(z: Float[Array, "b *d"], noise: Float[Array, "b *d"], t: Int[Array, "b"]) -> Float[Array, "b *d"]:
    """Forward process: unit variance stays unit variance."""
    signal, sigma = signal_and_noise(t, z)
    return signal * z + sigma * noise


def velocity(z: Float[Array, "b *d"], noise: Float[Array, "b *d"], t: Int[Array, "b"]) -> Float[Array, "b *d"]:
    """The v-prediction target."""
    signal, sigma = signal_and_noise(t, z)
    return signal * noise - sigma * z


def v_to_eps(v: Float[Array, "b *d"], z_t: Float[Array, "b *d"], t: Int[Array, "b"]) -> Float[Array, "b *d"]:
    """Noise implied by a v-prediction."""
    signal, sigma = signal_and_noise(t, z_t)
    return signal * v + sigma * z_t


def eps_to_v(eps: Float[Array, "b *d"], z_t: Float[Array, "b *d"], t: Int[Array, "b"]) -> Float[Array, "b *d"]:
    """v-prediction implied by a noise prediction; amplifies its error by 15 at t = 999."""
    signal, sigma = signal_and_noise(t, z_t)
    return (eps - sigma * z_t) / signal


def eps_to_x0(eps: Float[Array, "b *d"], z_t: Float[Array, "b *d"], t: Int[Array, "b"]) -> Float[Array, "b *d"]:
    """Clean latents implied by a noise prediction; amplifies its error by 15 at t = 999."""
    signal, sigma = signal_and_noise(t, z_t)
    return (z_t - sigma * eps) / signal


def x0_to_eps(x0: Float[Array, "b *d"], z_t: Float[Array, "b *d"], t: Int[Array, "b"]) -> Float[Array, "b *d"]:
    """Noise implied by a prediction of the clean latents; amplifies its error by 34 at t = 0."""
    signal, sigma = signal_and_noise(t, z_t)
    return (z_t - signal * x0) / sigma


def score_weight(t: Int[Array, "b"]) -> Float[Array, "b"]:
    """w(t) = 1 - alpha_bar_t, the weight of DreamFusion (Poole et al. 2023) and LODS in latent space."""
    return 1 - jnp.asarray(ALPHA_BAR)[t]
