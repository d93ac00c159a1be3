"""The forward process keeps unit variance, and eps, x0 and v are one prediction under three names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.noise_schedule import (
    STABLE_DIFFUSION,
    T,
    add_noise,
    eps_to_v,
    eps_to_x0,
    flow_matching,
    from_betas,
    linear_betas,
    scaled_linear_betas,
    score_weight,
    signal_and_noise,
    v_to_eps,
    v_to_x0,
    velocity,
    x0_to_eps,
    x0_to_v,
)

ZERO_SNR = from_betas(scaled_linear_betas(0.00085, 0.012), zero_terminal_snr=True)
SCHEDULES = {"stable diffusion": STABLE_DIFFUSION, "linear": from_betas(linear_betas(1e-4, 0.02)), "zero snr": ZERO_SNR}
FLOWS = {"flow": flow_matching(), "flow, shift 3": flow_matching(3.0)}
ALL = jnp.arange(T)
# One example per timestep.
Z, NOISE = jax.random.normal(jax.random.key(0), (2, T, 4, 4, 4))


def test_alpha_bar_is_the_product_of_a_schedule_linear_in_the_root_of_beta():
    alpha_bar, low, high = 1.0, 0.00085**0.5, 0.012**0.5
    for t in range(T):
        alpha_bar *= 1 - (low + (high - low) * t / (T - 1)) ** 2
        np.testing.assert_allclose(STABLE_DIFFUSION.alpha_bar[t], alpha_bar, rtol=1e-7)


def test_the_last_step_of_stable_diffusion_keeps_some_signal():
    """sqrt(alpha_bar) = 0.068265 at t = 999 (Lin et al. 2024, "Common diffusion noise schedules", table 1)."""
    np.testing.assert_allclose(np.sqrt(STABLE_DIFFUSION.alpha_bar[-1]), 0.068265, atol=1e-6)


def test_the_linear_schedule_is_that_of_ddpm():
    """alpha_bar = 4.036e-5 at t = 999, from the product itself (Ho et al. 2020: a signal of 6e-3)."""
    product = np.prod([1 - (1e-4 + (0.02 - 1e-4) * t / 999) for t in range(T)])
    np.testing.assert_allclose(SCHEDULES["linear"].alpha_bar[-1], product, rtol=1e-6)
    np.testing.assert_allclose(product, 4.036e-5, rtol=1e-3)


def test_a_schedule_with_zero_terminal_snr_begins_the_same_and_ends_in_noise_alone():
    """Lin et al. 2024, algorithm 1: sqrt(alpha_bar) shifted to end at 0, scaled to begin as before; straight in between."""
    assert (ZERO_SNR.alpha_bar[-1], ZERO_SNR.sigma2[-1]) == (0, 1)
    np.testing.assert_allclose(ZERO_SNR.alpha_bar[0], STABLE_DIFFUSION.alpha_bar[0], rtol=1e-6)
    before, after = np.sqrt(STABLE_DIFFUSION.alpha_bar, dtype=np.float64), np.sqrt(ZERO_SNR.alpha_bar, dtype=np.float64)
    np.testing.assert_allclose(after, np.interp(before, before[[-1, 0]], [0, after[0]]), atol=1e-6)


@pytest.mark.parametrize("schedule", [*SCHEDULES.values(), *FLOWS.values()], ids=[*SCHEDULES, *FLOWS])
def test_signal_only_decreases(schedule):
    assert np.all(np.diff(schedule.alpha_bar) < 0)
    assert 0 <= schedule.alpha_bar[-1] < schedule.alpha_bar[0] < 1
    assert schedule.ends_in_noise == (schedule.alpha_bar[-1] == 0)


@pytest.mark.parametrize("schedule", FLOWS.values(), ids=FLOWS)
def test_signal_and_noise_of_flow_matching_sum_to_one(schedule):
    signal, noise_std = signal_and_noise(schedule, ALL, Z)
    np.testing.assert_allclose(signal + noise_std, 1.0, rtol=3e-7)
    np.testing.assert_allclose(velocity(schedule, Z, NOISE, ALL), NOISE - Z, atol=0)
    assert (schedule.alpha_bar[-1], schedule.sigma2[-1]) == (0, 1)


def test_a_time_shift_is_a_scale_of_the_ratio_of_noise_to_signal():
    """Esser et al. 2024, eq. 23: sigma / (1 - sigma) grows by the shift."""
    ratio = [np.sqrt(np.float64(x.sigma2[:-1]) / x.alpha_bar[:-1]) for x in FLOWS.values()]
    np.testing.assert_allclose(ratio[1], 3 * ratio[0], rtol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_squared_signal_and_noise_sum_to_one(schedule):
    signal, noise_std = signal_and_noise(schedule, ALL, Z)
    assert signal.shape == noise_std.shape == (T, 1, 1, 1)
    np.testing.assert_allclose(signal**2 + noise_std**2, 1.0, rtol=3e-7)
    np.testing.assert_allclose(score_weight(schedule, ALL), noise_std.ravel() ** 2, rtol=3e-7)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_add_noise_keeps_unit_variance(schedule):
    z, noise = jax.random.normal(jax.random.key(1), (2, 20, 10_000))
    z_t = add_noise(schedule, z, noise, jnp.arange(0, T, 50))
    np.testing.assert_allclose(np.var(z_t, 1), 1.0, atol=0.07)  # five standard errors of a variance of 10,000 values


@pytest.mark.parametrize("schedule", [*SCHEDULES.values(), *FLOWS.values()], ids=[*SCHEDULES, *FLOWS])
def test_velocity_noise_and_clean_latents_are_one_prediction(schedule):
    """From v both others follow at any signal, also where there is none."""
    z_t, v = add_noise(schedule, Z, NOISE, ALL), velocity(schedule, Z, NOISE, ALL)
    np.testing.assert_allclose(v_to_eps(schedule, v, z_t, ALL), NOISE, atol=2e-6)
    np.testing.assert_allclose(v_to_x0(schedule, v, z_t, ALL), Z, atol=2e-6)


@pytest.mark.parametrize(
    ("schedule", "atol"), [(STABLE_DIFFUSION, 2e-5), *[(flow, 2e-3) for flow in FLOWS.values()]], ids=["diffusion", *FLOWS]
)
def test_clean_latents_and_noise_are_one_prediction(schedule, atol):
    """float32 rounding is amplified by noise over signal, 15 at most, one way, and by signal over noise, 34, the other; by 1000
    and 3000 under flow matching. Without signal, noise says nothing of the rest."""
    z_t, last = add_noise(schedule, Z, NOISE, ALL), T - schedule.ends_in_noise
    v = velocity(schedule, Z, NOISE, ALL)
    np.testing.assert_allclose(eps_to_x0(schedule, NOISE, z_t, ALL)[:last], Z[:last], atol=atol)
    np.testing.assert_allclose(x0_to_eps(schedule, Z, z_t, ALL), NOISE, atol=atol)
    np.testing.assert_allclose(eps_to_v(schedule, NOISE, z_t, ALL)[:last], v[:last], atol=atol)
    np.testing.assert_allclose(x0_to_v(schedule, Z, z_t, ALL), v, atol=atol)


@pytest.mark.parametrize("schedule", [ZERO_SNR, *FLOWS.values()], ids=["zero snr", *FLOWS])
def test_what_noise_cannot_tell_without_signal_is_zero(schedule):
    z_t = add_noise(schedule, Z, NOISE, ALL)
    for convert in (eps_to_x0, eps_to_v):
        np.testing.assert_array_equal(convert(schedule, NOISE, z_t, ALL)[-1], 0.0)


@pytest.mark.parametrize("betas", [[0.1] * 10, [0.0] * T, [1.0] * T, [np.nan] * T])
def test_betas_out_of_range_are_refused(betas):
    with pytest.raises(ValueError, match="betas must be 1000 numbers between 0 and 1"):
        from_betas(np.array(betas))
