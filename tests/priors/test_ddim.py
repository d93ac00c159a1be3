"""DDIM is a map from noise to data: with the score of a Gaussian that map is known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.noise_schedule import STABLE_DIFFUSION, flow_matching, from_betas, scaled_linear_betas
from lods_jax.priors.ddim import ddim
from lods_jax.priors.gaussian import gaussian

SIGMA = 0.5
PRIOR = gaussian({"": -0.3, "y": 0.8}, SIGMA)
NULL, Y = PRIOR.embed({}, ["", "y"])
Z = jax.random.normal(jax.random.key(0), (512, 2, 2, 1))


@partial(jax.jit, static_argnames=("steps", "clip"))
def sample(tokens, null, s, steps=100, clip=None):
    rows = [jnp.broadcast_to(row[None], (len(Z), 1, 1)) for row in (tokens, null)]
    return ddim(partial(PRIOR.predict, {}, {}), Z, *rows, PRIOR.noise_schedule, s=s, steps=steps, clip=clip)


def flow(mean):
    """Where the probability flow of N(mean, sigma^2) takes Z: as many standard deviations from the mean as it was."""
    alpha_bar = STABLE_DIFFUSION.alpha_bar[-1]
    return mean + SIGMA * (Z - np.sqrt(alpha_bar) * mean) / np.sqrt(alpha_bar * SIGMA**2 + 1 - alpha_bar)


def test_the_exact_score_of_a_gaussian_leads_to_that_gaussian():
    """The sampler starts from N(0, 1) and not from N(sqrt(ab) mu, ...): the mean keeps 3 % of that error (0.03 mu)."""
    samples = sample(Y, NULL, 1.0)
    np.testing.assert_allclose(samples.mean(), 0.8, atol=0.06)  # 0.03 as above, and three standard errors
    np.testing.assert_allclose(samples.std(), SIGMA, atol=0.03)


def test_ddim_follows_the_probability_flow_and_its_error_falls_with_the_step():
    """A first-order solver: the largest error over 2,048 values is 0.13 in 50 steps, 0.02 in 500."""
    coarse, fine = (np.abs(sample(Y, NULL, 1.0, steps) - flow(0.8)).max() for steps in (50, 500))
    assert coarse < 0.15
    assert fine < 0.2 * coarse


@pytest.mark.parametrize(
    "schedule",
    [from_betas(scaled_linear_betas(0.00085, 0.012), zero_terminal_snr=True), flow_matching(), flow_matching(3.0)],
    ids=["zero snr", "flow", "flow, shift 3"],
)
def test_without_terminal_signal_the_sampler_starts_where_the_process_ends(schedule):
    """No error of the mean is left, as there is with Stable Diffusion's own schedule: N(0, 1) is what z_t is at t = 999."""
    prior = gaussian({"": -0.3, "y": 0.8}, SIGMA, schedule)
    rows = [jnp.broadcast_to(row[None], (len(Z), 1, 1)) for row in (Y, NULL)]
    predict, predict_x0 = (partial(f, {}, {}) for f in (prior.predict, prior.predict_x0))
    samples = jax.jit(lambda: ddim(predict, Z, *rows, schedule, s=1.0, steps=500, predict_x0=predict_x0))()
    np.testing.assert_allclose(samples, 0.8 + SIGMA * Z, atol=0.02)  # the probability flow; 0.02 as above in 500 steps


def test_guidance_by_one_is_no_guidance():
    np.testing.assert_allclose(sample(Y, NULL, 1.0), sample(Y, Y, 7.5), atol=1e-5)


def test_guidance_between_two_gaussians_samples_the_extrapolated_one():
    """Scores of equal covariance combine into the score of N(mu_null + s (mu_y - mu_null), sigma^2)."""
    extrapolated = NULL + 3.0 * (Y - NULL)
    np.testing.assert_allclose(sample(Y, NULL, 3.0), sample(extrapolated, extrapolated, 1.0), atol=1e-4)


def test_clip_bounds_the_samples():
    assert np.abs(sample(Y, NULL, 7.5)).max() > 2
    np.testing.assert_array_less(np.abs(sample(Y, NULL, 7.5, clip=1.0)), 1 + 1e-6)


@pytest.mark.parametrize("steps", [0, 1001])
def test_an_impossible_number_of_steps_is_refused(steps):
    with pytest.raises(ValueError, match=rf"steps must be in 1..1000, got {steps}"):
        sample(Y, NULL, 1.0, steps)
