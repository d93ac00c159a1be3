"""How z_t is made, where an objective does not leave it to random noise.

Each function here gives an `Objective.inversion`: (noise_schedule, eps_of, z, t, noise) -> (z_t, what takes the noise's place in
the residual), where eps_of(text, z_t, t) asks the frozen network. The schedule is the prior's, diffusion or flow matching.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lods_jax.core.noise_schedule import T, add_noise, eps_to_x0, x0_to_eps

Inversion = Callable[..., tuple[jax.Array, jax.Array]]


def at_later(shift: float) -> Inversion:
    """Random noise, in whose place stands what the prompt predicts of it at the later timestep t + shift (t - 20).

    Args:
        shift: as a share of t - 20; positive.

    Returns:
        The inversion of ASD.

    Raises:
        ValueError: `shift` is not positive.
    """
    later = shifted(shift)

    def inversion(noise_schedule, eps_of, z, t, noise):
        return add_noise(noise_schedule, z, noise, t), eps_of("prompt", add_noise(noise_schedule, z, noise, later(t)), later(t))

    return inversion


def along_path(steps: int, s: float, shift: float) -> Inversion:
    """The prediction at the later timestep t + shift (t - 20) of the DDIM path that begins at the noise takes its place.

    Guided by the prompt with the scale s, the path comes down from pure noise in equal steps. What is predicted at its end is the
    noise of z_t; in the residual stands what the prompt alone predicts of the same noise at the later timestep.

    The path begins at the last timestep at which something is left of the signal: where nothing is, a predicted noise says
    nothing of the clean latents (`eps_to_x0`), and the first step would lead to clean latents of 0.

    Args:
        steps: number of steps, at least 1.
        s: guidance scale.
        shift: as a share of t - 20; positive.

    Returns:
        The inversion of DSD.

    Raises:
        ValueError: `steps` is below 1, or `shift` is not positive.
    """
    check_steps(steps)
    later = shifted(shift)

    def inversion(noise_schedule, eps_of, z, t, noise):
        guided = lambda z_t, t: s * eps_of("prompt", z_t, t) + (1 - s) * eps_of("null", z_t, t)  # noqa: E731
        top = T - 2 if noise_schedule.ends_in_noise else T - 1
        above = jnp.maximum(top - later(t), 0)

        def step(i, z_t):
            now, then = top - above * i // steps, top - above * (i + 1) // steps
            guess = guided(z_t, now)
            return add_noise(noise_schedule, eps_to_x0(noise_schedule, guess, z_t, now), guess, then)

        predicted = guided(jax.lax.fori_loop(0, steps, step, noise), later(t))
        z_later = add_noise(noise_schedule, z, predicted, later(t))
        return add_noise(noise_schedule, z, predicted, t), eps_of("prompt", z_later, later(t))

    return inversion


def shifted(shift: float) -> Callable[[jax.Array], jax.Array]:
    """Timesteps that are a little later, at least by one, as long as there are any.

    Args:
        shift: as a share of t - 20; positive.

    Returns:
        The function t -> t + shift (t - 20).

    Raises:
        ValueError: `shift` is not positive.
    """
    if not shift > 0:
        raise ValueError(f"shift must be positive, got {shift}")
    return lambda t: jnp.clip(t + jnp.maximum(1, (shift * (t - 20)).astype(t.dtype)), 1, T - 1)


def ddim_inversion(steps: int, eps: Callable[..., jax.Array]) -> Inversion:
    """DDIM from z to z_t in equal steps (Song et al. 2021, eq. 13); the prediction of the last step takes the noise's place.

    Args:
        steps: number of steps, at least 1.
        eps: (eps_of, z_t, t) -> the noise to follow, as z_t.

    Returns:
        The inversion of ISM.

    Raises:
        ValueError: `steps` is below 1.
    """
    check_steps(steps)

    def inversion(noise_schedule, eps_of, z, t, noise):
        def step(i, carry):
            now, then = t * i // steps, t * (i + 1) // steps
            guess = eps(eps_of, carry[0], now)
            return add_noise(noise_schedule, eps_to_x0(noise_schedule, guess, carry[0], now), guess, then), guess

        return jax.lax.fori_loop(0, steps, step, (z, noise))  # one copy of the network, whatever the number of steps

    return inversion


def ddim_noise(steps: int, s: float) -> Inversion:
    """DDIM guided by the prompt with the scale -s; the noise that leads from z to z_t in one step takes the noise's place.

    Args:
        steps: number of steps, at least 1.
        s: guidance scale.

    Returns:
        The inversion of SDI.

    Raises:
        ValueError: `steps` is below 1.
    """

    def backwards(eps_of, z, t):
        y, null = eps_of("prompt", z, t), eps_of("null", z, t)
        return null - s * (y - null)

    invert = ddim_inversion(steps, backwards)

    def inversion(noise_schedule, eps_of, z, t, noise):
        z_t, _ = invert(noise_schedule, eps_of, z, t, noise)
        return z_t, x0_to_eps(noise_schedule, z, z_t, t)

    return inversion


def own_prediction(steps: int) -> Inversion:
    """The noise that the prompt predicts at the z_t that it makes itself, by a fixed point's iteration from random noise.

    Under flow matching a step is noise + (1 - sigma) (v - (noise - z)), as in the code of RFDS-Rev for Stable Diffusion 3. Its
    code for InstaFlow goes the whole way, 1 in place of 1 - sigma.

    Args:
        steps: number of steps, at least 1.

    Returns:
        The inversion of RFDS-Rev.

    Raises:
        ValueError: `steps` is below 1.
    """
    check_steps(steps)

    def inversion(noise_schedule, eps_of, z, t, noise):
        noise = jax.lax.fori_loop(0, steps, lambda i, noise: eps_of("prompt", add_noise(noise_schedule, z, noise, t), t), noise)
        return add_noise(noise_schedule, z, noise, t), noise

    return inversion


def check_steps(steps: int) -> None:
    """Refuses an inversion of no steps.

    Args:
        steps: number of steps.

    Raises:
        ValueError: it is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
