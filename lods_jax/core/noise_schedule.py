"""Noise schedules: z_t = sqrt(alpha_bar_t) z + sqrt(sigma2_t) noise, t in 0..999.

A schedule belongs to a prior (`Prior.noise_schedule`), which was trained on it: whoever mixes noise for a prior does it with the
prior's own. It is a value of two tables, and every function here takes it first.

With signal a and noise level s, z_t = a z + s noise goes from z to the noise on one of two paths:
  diffusion      the arc a^2 + s^2 = 1, which preserves variance. v = a noise - s z (Salimans and Ho 2022, appendix D)
  flow matching  the straight line a + s = 1.                     v = noise - z     (Lipman et al. 2023, Liu et al. 2023)
Either v is the velocity of z_t along its path, by the angle arctan(s / a) or by s. eps, x0 and v are three names for one
prediction: from z_t and one of them the others follow. A point of the arc divided by a + s is one of the line, with the same eps:
both are one process in two coordinates.

Where there is no signal, eps says nothing of x0, and where there is no noise, x0 says nothing of eps. What cannot be told is then
a finite number, and 0 if the prediction is true.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

T = 1000  # timesteps of every prior; folders that say another number are refused


class NoiseSchedule(NamedTuple):
    """How much signal and noise z_t has, by timestep.

    Two tables and not one, because flow matching does not preserve variance. They hold variances, because alpha_bar is what
    papers and configs define, in float32 on the host: constants of a compiled step.

    Attributes:
        alpha_bar: variance of the signal [T]; 0 at the last timestep of flow matching, and with zero terminal SNR.
        sigma2: variance of the noise [T]; 1 - alpha_bar where variance is preserved.
        straight: whether z_t goes on the straight line of flow matching; it decides what v is.
    """

    alpha_bar: Float[np.ndarray, "T"]
    sigma2: Float[np.ndarray, "T"]
    straight: bool = False

    @property
    def ends_in_noise(self) -> bool:
        """Whether nothing is left of the signal at the last timestep."""
        return bool(self.alpha_bar[-1] == 0)


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


def flow_matching(shift: float = 1.0) -> NoiseSchedule:
    """The schedule of flow matching: z_t = (1 - sigma) z + sigma noise.

    sigma is (t + 1) / T, shifted in time towards the noise as high resolutions need it (Esser et al. 2024, eq. 23). These are the
    sigmas of diffusers' FlowMatchEulerDiscreteScheduler before `set_timesteps`: from 1 / T to 1, so that there is always some
    noise, and no signal at the last timestep.

    Args:
        shift: positive; 1 shifts nothing, and Stable Diffusion 3 has 3.

    Returns:
        The schedule.

    Raises:
        ValueError: `shift` is not positive and finite.

    Examples:
        >>> [round(float(x), 3) for x in flow_matching(3.0).sigma2[[0, 499, 999]] ** 0.5]
        [0.003, 0.75, 1.0]
    """
    if not 0 < shift < np.inf:
        raise ValueError(f"shift must be positive and finite, got {shift}")
    u = np.arange(1, T + 1) / T
    sigma = shift * u / (1 + (shift - 1) * u)
    return NoiseSchedule(((1 - sigma) ** 2).astype(np.float32), (sigma**2).astype(np.float32), straight=True)


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
    tables = schedule.alpha_bar, schedule.sigma2
    signal, noise_std = (jnp.sqrt(per_example(jnp.asarray(table)[t], like)) for table in tables)
    return signal, noise_std


def speed(schedule: NoiseSchedule, signal: Array, sigma: Array) -> tuple[Array | float, Array | float]:
    """What v counts noise and z by: v = p noise - q z. On both paths p signal + q sigma = 1.

    Args:
        schedule: of the prior.
        signal: from `signal_and_noise`.
        sigma: from `signal_and_noise`.

    Returns:
        p and q.
    """
    return (1.0, 1.0) if schedule.straight else (signal, sigma)


def divisor(x: Array) -> Array:
    """x, and 1 where x is 0, to divide by."""
    return jnp.where(x > 0, x, 1.0)


def network_time(schedule: NoiseSchedule, t: Int[Array, "b"]) -> Int[Array, "b"] | Float[Array, "b"]:
    """What a network is told of a timestep: t itself, and under flow matching 1000 sigma, which need not be whole.

    Args:
        schedule: of the prior.
        t: timesteps [b].

    Returns:
        [b].
    """
    return T * jnp.sqrt(jnp.asarray(schedule.sigma2)[t]) if schedule.straight else t


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
    """The target of v-prediction, and of flow matching.

    Args:
        schedule: of the prior.
        z: latents [b ...].
        noise: standard normal, like z.
        t: timesteps [b].

    Returns:
        sqrt(alpha_bar_t) noise - sqrt(sigma2_t) z; under flow matching noise - z.
    """
    p, q = speed(schedule, *signal_and_noise(schedule, t, z))
    return p * noise - q * z


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
    _, q = speed(schedule, signal, sigma)
    return signal * v + q * z_t


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
    _, q = speed(schedule, signal, sigma)
    return (eps - q * z_t) / divisor(signal)


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
    p, _ = speed(schedule, signal, sigma)
    return p * z_t - sigma * v


def x0_to_v(
    schedule: NoiseSchedule, x0: Float[Array, "b *d"], z_t: Float[Array, "b *d"], t: Int[Array, "b"]
) -> Float[Array, "b *d"]:
    """The v-prediction that a prediction of the clean latents implies, also where there is no signal.

    Args:
        schedule: of the prior.
        x0: prediction [b ...].
        z_t: noised latents, like x0.
        t: timesteps [b].

    Returns:
        v, like x0.
    """
    signal, sigma = signal_and_noise(schedule, t, z_t)
    p, _ = speed(schedule, signal, sigma)
    return (p * z_t - x0) / divisor(sigma)


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
    return (z_t - sigma * eps) / divisor(signal)


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
    return (z_t - signal * x0) / divisor(sigma)


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
    """w(t) = sigma2_t, the weight of DreamFusion (Poole et al. 2023) and of LODS in latent space: 1 - alpha_bar_t in diffusion.

    Args:
        schedule: of the prior.
        t: timesteps [b], 0 to 999.

    Returns:
        Weights [b] in (0, 1].

    Examples:
        >>> [round(float(w), 3) for w in score_weight(STABLE_DIFFUSION, jnp.array([0, 999]))]
        [0.001, 0.995]
    """
    return jnp.asarray(schedule.sigma2)[t]


def velocity_weight(schedule: NoiseSchedule, t: Int[Array, "b"]) -> Float[Array, "b"]:
    """1 / sqrt(alpha_bar_t): a residual of noises times this is the residual of velocities.

    The coefficients of a residual sum to 0, so that z_t cancels in e = sqrt(alpha_bar_t) v + q z_t.

    Args:
        schedule: of the prior.
        t: timesteps [b], 0 to 999.

    Returns:
        Weights [b]; 1 where there is no signal, and where a residual of noises is 0.
    """
    return 1 / divisor(jnp.sqrt(jnp.asarray(schedule.alpha_bar)[t]))
