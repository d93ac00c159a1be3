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
    """x [b] with trailing axes of size 1, so that it broadcasts against `like` [b ...].

    Args:
        x: one number per example.
        like: the array to broadcast against.

    Returns:
        x as [b 1 ... 1].

    Examples:
        >>> per_example(jnp.ones(2), jnp.ones((2, 8, 8, 4))).shape
        (2, 1, 1, 1)
    """
    return x.reshape(x.shape + (1,) * (like.ndim - x.ndim))


def signal_and_noise(t: Int[Array, "b"], like: Float[Array, "b *d"]) -> tuple[Array, Array]:
    """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), shaped to broadcast against `like`.

    Args:
        t: timesteps [b], 0 to 999.
        like: an array [b ...].

    Returns:
        The two factors, each [b 1 ... 1].
    """
    alpha_bar = per_example(jnp.asarray(ALPHA_BAR)[t], like)
    return jnp.sqrt(alpha_bar), jnp.sqrt(1 - alpha_bar)


def add_noise(z: Float[Array, "b *d"], noise: Float[Array, "b *d"], t: Int[Array, "b"]) -> Float[Array, "b *d"]:
    """z_t, the latents noised to timestep t. Unit variance stays unit variance.

    Args:
        z: latents [b ...].
        noise: standard normal, like z.
        t: timesteps [b].

    Returns:
        sqrt(alpha_bar_t) z + sqrt(1 - alpha_bar_t) noise.
    """
    signal, sigma = signal_and_noise(t, z)
    return signal * z + sigma * noise


def velocity(z: Float[Array, "b *d"], noise: Float[Array, "b *d"], t: Int[Array, "b"]) -> Float[Array, "b *d"]:
    """The target of v-prediction (Salimans and Ho 2022).

    Args:
        z: latents [b ...].
        noise: standard normal, like z.
        t: timesteps [b].

    Returns:
        sqrt(alpha_bar_t) noise - sqrt(1 - alpha_bar_t) z.
    """
    signal, sigma = signal_and_noise(t, z)
    return signal * noise - sigma * z


def v_to_eps(v: Float[Array, "b *d"], z_t: Float[Array, "b *d"], t: Int[Array, "b"]) -> Float[Array, "b *d"]:
    """The noise that a v-prediction implies.

    Args:
        v: prediction [b ...].
        z_t: noised latents, like v.
        t: timesteps [b].

    Returns:
        eps, like v.
    """
    signal, sigma = signal_and_noise(t, z_t)
    return signal * v + sigma * z_t


def eps_to_v(eps: Float[Array, "b *d"], z_t: Float[Array, "b *d"], t: Int[Array, "b"]) -> Float[Array, "b *d"]:
    """The v-prediction that a noise prediction implies. It amplifies the error by 15 at t = 999.

    Args:
        eps: prediction [b ...].
        z_t: noised latents, like eps.
        t: timesteps [b].

    Returns:
        v, like eps.
    """
    signal, sigma = signal_and_noise(t, z_t)
    return (eps - sigma * z_t) / signal


def eps_to_x0(eps: Float[Array, "b *d"], z_t: Float[Array, "b *d"], t: Int[Array, "b"]) -> Float[Array, "b *d"]:
    """The clean latents that a noise prediction implies. It amplifies the error by 15 at t = 999.

    Args:
        eps: prediction [b ...].
        z_t: noised latents, like eps.
        t: timesteps [b].

    Returns:
        x0, like eps.
    """
    signal, sigma = signal_and_noise(t, z_t)
    return (z_t - sigma * eps) / signal


def x0_to_eps(x0: Float[Array, "b *d"], z_t: Float[Array, "b *d"], t: Int[Array, "b"]) -> Float[Array, "b *d"]:
    """The noise that a prediction of the clean latents implies. It amplifies the error by 34 at t = 0.

    Args:
        x0: prediction [b ...].
        z_t: noised latents, like x0.
        t: timesteps [b].

    Returns:
        eps, like x0.
    """
    signal, sigma = signal_and_noise(t, z_t)
    return (z_t - signal * x0) / sigma


def score_weight(t: Int[Array, "b"]) -> Float[Array, "b"]:
    """w(t) = 1 - alpha_bar_t, the weight of DreamFusion (Poole et al. 2023) and of LODS in latent space.

    Args:
        t: timesteps [b], 0 to 999.

    Returns:
        Weights [b] in (0, 1).

    Examples:
        >>> [round(float(w), 3) for w in score_weight(jnp.array([0, 999]))]
        [0.001, 0.995]
    """
    return 1 - jnp.asarray(ALPHA_BAR)[t]
