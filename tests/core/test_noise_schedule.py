"""The forward process keeps unit variance, and eps, x0 and v are one prediction under three names."""

import jax
import jax.numpy as jnp
import numpy as np

from lods_jax.core.noise_schedule import (
    ALPHA_BAR,
    T,
    add_noise,
    eps_to_x0,
    score_weight,
    signal_and_noise,
    v_to_eps,
    velocity,
    x0_to_eps,
)

ALL = jnp.arange(T)
# One example per timestep.
Z, NOISE = jax.random.normal(jax.random.key(0), (2, T, 4, 4, 4))
Z_T = add_noise(Z, NOISE, ALL)


def test_alpha_bar_is_the_product_of_a_schedule_linear_in_the_root_of_beta():
    alpha_bar, low, high = 1.0, 0.00085**0.5, 0.012**0.5
    for t in range(T):
        alpha_bar *= 1 - (low + (high - low) * t / (T - 1)) ** 2
        np.testing.assert_allclose(ALPHA_BAR[t], alpha_bar, rtol=1e-7)


def test_the_last_step_of_stable_diffusion_keeps_some_signal():
    """sqrt(alpha_bar) = 0.068265 at t = 999 (Lin et al. 2024, "Common diffusion noise schedules", table 1)."""
    np.testing.assert_allclose(np.sqrt(ALPHA_BAR[-1]), 0.068265, atol=1e-6)


def test_signal_only_decreases():
    assert np.all(np.diff(ALPHA_BAR) < 0)
    assert 0 < ALPHA_BAR[-1] < ALPHA_BAR[0] < 1


def test_squared_signal_and_noise_sum_to_one():
    signal, noise_std = signal_and_noise(ALL, Z)
    assert signal.shape == noise_std.shape == (T, 1, 1, 1)
    np.testing.assert_allclose(signal**2 + noise_std**2, 1.0, rtol=3e-7)
    np.testing.assert_allclose(score_weight(ALL), noise_std.ravel() ** 2, rtol=3e-7)


def test_add_noise_keeps_unit_variance():
    z, noise = jax.random.normal(jax.random.key(1), (2, 20, 10_000))
    z_t = add_noise(z, noise, jnp.arange(0, T, 50))
    np.testing.assert_allclose(np.var(z_t, 1), 1.0, atol=0.07)  # five standard errors of a variance of 10,000 values


def test_velocity_and_noise_are_one_prediction():
    np.testing.assert_allclose(v_to_eps(velocity(Z, NOISE, ALL), Z_T, ALL), NOISE, atol=2e-6)


def test_clean_latents_and_noise_are_one_prediction():
    """float32 rounding is amplified by sqrt((1 - ab) / ab) = 15 one way and by sqrt(ab / (1 - ab)) = 34 the other."""
    np.testing.assert_allclose(eps_to_x0(NOISE, Z_T, ALL), Z, atol=2e-5)
    np.testing.assert_allclose(x0_to_eps(Z, Z_T, ALL), NOISE, atol=2e-5)
