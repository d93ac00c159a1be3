"""Noise schedules: z_t = sqrt(alpha_bar_t) z + sqrt(sigma2_t) noise, t in 0..999.

A schedule belongs to a prior (`Prior.noise_schedule`), which was trained on it: whoever mixes noise for a prior does it with the
prior's own. It is a value of two tables, and every function here takes it first.

eps, x0 and v are three names for one prediction (Salimans and Ho 2022, eq. 9 and appendix D): v = sqrt(ab) eps - sqrt(1-ab) x0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

T = 1000  # timesteps of every prior; folders that say another number are refused


class NoiseSchedule(NamedTuple):
    """How much signal and noise z_t has, by timestep.

    Two tables and not one: a process that does not preserve variance, as that of flow matching, is a schedule too. They hold
    variances, because alpha_bar is what papers and configs define, in float32 on the host: constants of a compiled step.

    Attributes:
        alpha_bar: variance of the signal [T]; 0 at the last timestep of a schedule with zero terminal SNR.
        sigma2: variance of the noise [T]; 1 - alpha_bar where variance is preserved.
    """

    alpha_bar: Float[np.ndarray, "T"]
    sigma2: Float[np.ndarray, "T"]


def linear_betas(start: float, end: float) -> Float[np.ndarray, "T"]:
    """Betas that are linear in t (DDPM; Ho et al. 2020).

    Args:
        start: beta at t = 0.
        end: beta at t = 999.

    Returns:
        [T] in float64.
    """
    return np.linspace(start, end, T)


def scaled_linear_betas(start: float, end: float) -> Float[np.ndarray, "T"]:
    """Betas whose square roots are linear in t (Stable Diffusion; Rombach et al. 2022).

    Args:
        start: beta at t = 0.
        end: beta at t = 999.

    Returns:
        [T] in float64.
    """
    return np.linspace(start**0.5, end**0.5, T) ** 2


def from_betas(betas: Float[np.ndarray, "T"], zero_terminal_snr: bool = False) -> NoiseSchedule:
    """The schedule that preserves variance and adds noise of variance beta_t in step t.

    Args:
        betas: [T], each between 0 and 1.
        zero_terminal_snr: whether sqrt(alpha_bar) is shifted and scaled so that it begins where it did and ends at 0 (Lin et al.
            2024, algorithm 1).

    Returns:
        The schedule.

    Raises:
        ValueError: the betas are not T numbers between 0 and 1.
    """
    betas = np.asarray(betas, np.float64)
    if betas.shape != (T,) or not ((betas > 0) & (betas < 1)).all():
        raise ValueError(f"betas must be {T} numbers between 0 and 1")
    # In float64 on the host: the float32 cumulative product is off by 3e-7 at t = 999.
    alpha_bar = np.cumprod(1 - betas)
    if zero_terminal_snr:
        root = np.sqrt(alpha_bar)
        alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    alpha_bar = alpha_bar.astype(np.float32)
    return NoiseSchedule(alpha_bar, 1 - alpha_bar)


STABLE_DIFFUSION = from_betas(scaled_linear_betas(0.00085, 0.012))  # versions 1 and 2, but for 2.1-unclip and fine-tunes


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


def signal_and_noise(schedule: NoiseSchedule, t: Int[Array, "b"], like: Float[Array, "b *d"]) -> tuple[Array, Array]:
    """The factors of signal and noise, sqrt(alpha_bar_t) and sqrt(sigma2_t), shaped to broadcast against `like`.

    Args:
        schedule: of the prior.
        t: timesteps [b], 0 to 999.
        like: an array [b ...].

    Returns:
        The two factors, each [b 1 ... 1].
    """
    signal, noise_std = (jnp.sqrt(per_example(jnp.asarray(table)[t], like)) for table in schedule)
    return signal, noise_std


def add_noise(
    schedule: NoiseSchedule, z: Float[Array, "b *d"], noise: Float[Array, "b *d"], t: Int[Array, "b"]
) -> Float[Array, "b *d"]:
    """z_t, the latents noised to timestep t. Where variance is preserved, unit variance stays unit variance.

    Args:
        schedule: of the prior.
        z: latents [b ...].
        noise: standard normal, like z.
        t: timesteps [b].

    Returns:
        sqrt(alpha_bar_t) z + sqrt(sigma2_t) noise.
    """
    signal, sigma = signal_and_noise(schedule, t, z)
    return signal * z + sigma * noise


def velocity(
    schedule: NoiseSchedule, z: Float[Array, "b *d"], noise: Float[Array, "b *d"], t: Int[Array, "b"]
) -> Float[Array, "b *d"]:
    """The target of v-prediction (Salimans and Ho 2022).

    Args:
        schedule: of the prior.
        z: latents [b ...].
        noise: standard normal, like z.
        t: timesteps [b].

    Returns:
        sqrt(alpha_bar_t) noise - sqrt(sigma2_t) z.
    """
    signal, sigma = signal_and_noise(schedule, t, z)
    return signal * noise - sigma * z


def v_to_eps(
    schedule: NoiseSchedule, v: Float[Array, "b *d"], z_t: Float[Array, "b *d"], t: Int[Array, "b"]
) -> Float[Array, "b *d"]:
    """The noise that a v-prediction implies.

    Args:
        schedule: of the prior.
        v: prediction [b ...].
        z_t: noised latents, like v.
        t: timesteps [b].

    Returns:
        eps, like v.
    """
    signal, sigma = signal_and_noise(schedule, t, z_t)
    return signal * v + sigma * z_t


def eps_to_v(
    schedule: NoiseSchedule, eps: Float[Array, "b *d"], z_t: Float[Array, "b *d"], t: Int[Array, "b"]
) -> Float[Array, "b *d"]:
    """The v-prediction that a noise prediction implies. Stable Diffusion's schedule amplifies its error by 15 at t = 999.

    Args:
        schedule: of the prior.
        eps: prediction [b ...].
        z_t: noised latents, like eps.
        t: timesteps [b].

    Returns:
        v, like eps.
    """
    signal, sigma = signal_and_noise(schedule, t, z_t)
    return (eps - sigma * z_t) / signal


def v_to_x0(
    schedule: NoiseSchedule, v: Float[Array, "b *d"], z_t: Float[Array, "b *d"], t: Int[Array, "b"]
) -> Float[Array, "b *d"]:
    """The clean latents that a v-prediction implies, at any signal.

    Args:
        schedule: of the prior.
        v: prediction [b ...].
        z_t: noised latents, like v.
        t: timesteps [b].

    Returns:
        x0, like v.
    """
    signal, sigma = signal_and_noise(schedule, t, z_t)
    return signal * z_t - sigma * v


def eps_to_x0(
    schedule: NoiseSchedule, eps: Float[Array, "b *d"], z_t: Float[Array, "b *d"], t: Int[Array, "b"]
) -> Float[Array, "b *d"]:
    """The clean latents that a noise prediction implies. Stable Diffusion's schedule amplifies its error by 15 at t = 999.

    Where there is no signal, eps says nothing of them: see `Prior.predict_x0`.

    Args:
        schedule: of the prior.
        eps: prediction [b ...].
        z_t: noised latents, like eps.
        t: timesteps [b].

    Returns:
        x0, like eps.
    """
    signal, sigma = signal_and_noise(schedule, t, z_t)
    return (z_t - sigma * eps) / signal


def x0_to_eps(
    schedule: NoiseSchedule, x0: Float[Array, "b *d"], z_t: Float[Array, "b *d"], t: Int[Array, "b"]
) -> Float[Array, "b *d"]:
    """The noise that a prediction of the clean latents implies. Stable Diffusion's schedule amplifies its error by 34 at t = 0.

    Args:
        schedule: of the prior.
        x0: prediction [b ...].
        z_t: noised latents, like x0.
        t: timesteps [b].

    Returns:
        eps, like x0.
    """
    signal, sigma = signal_and_noise(schedule, t, z_t)
    return (z_t - signal * x0) / sigma


def draw_timesteps(key: Key[Array, ""], n: int) -> Int[Array, "n"]:
    """Timesteps to train a network at, one from each of n equal strata, their density growing as sqrt(t).

    Args:
        key: consumed.
        n: number of timesteps.

    Returns:
        [n], rising.
    """
    u = (jnp.arange(n) + jax.random.uniform(key, (n,))) / n
    return jnp.minimum(T * u ** (2 / 3), T - 1).astype(jnp.int32)


def score_weight(schedule: NoiseSchedule, t: Int[Array, "b"]) -> Float[Array, "b"]:
    """w(t) = 1 - alpha_bar_t, the weight of DreamFusion (Poole et al. 2023) and of LODS in latent space.

    Args:
        schedule: of the prior.
        t: timesteps [b], 0 to 999.

    Returns:
        Weights [b] in (0, 1).

    Examples:
        >>> [round(float(w), 3) for w in score_weight(STABLE_DIFFUSION, jnp.array([0, 999]))]
        [0.001, 0.995]
    """
    return jnp.asarray(schedule.sigma2)[t]
