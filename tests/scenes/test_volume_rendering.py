"""Laws of volume rendering: conservation of light, independence of how a ray is cut, closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lods_jax.scenes.volume_rendering import absorb, before, distortion, moments

DENSITIES = arrays(np.float32, (9, 3), elements=st.floats(0, 1e4, width=32))


@given(DENSITIES)
def test_absorbed_and_transmitted_light_is_one(density):
    weights, passed = absorb(jnp.asarray(density), 0.1)
    np.testing.assert_allclose(weights.sum(0) + passed, 1, atol=1e-5)
    assert np.isfinite(weights).all()
    assert (np.asarray(weights) >= 0).all()


def test_light_is_conserved_in_fog_before_a_wall():
    weights, passed = absorb(jnp.array([[0.3], [0.3], [1e6], [0.3]]), 1.0)
    np.testing.assert_allclose(weights[:, 0], [1 - np.exp(-0.3), np.exp(-0.3) - np.exp(-0.6), np.exp(-0.6), 0], rtol=1e-6)
    assert passed[0] == 0


@given(DENSITIES)
def test_cutting_intervals_changes_nothing(density):
    weights, passed = absorb(jnp.asarray(density), 0.1)
    cut, cut_passed = absorb(jnp.repeat(jnp.asarray(density), 4, 0), 0.025)
    np.testing.assert_allclose(cut.reshape(9, 4, 3).sum(1), weights, atol=1e-5)
    np.testing.assert_allclose(cut_passed, passed, atol=1e-5)


def test_even_fog_is_beer_lambert_and_its_mean_depth_the_closed_form():
    sigma, n = 2.0, 4000
    at = (jnp.arange(n)[:, None] + 0.5) / n
    weights, passed = absorb(jnp.full((n, 1), sigma), 1 / n)
    opacity, mean, variance = moments(weights, at)
    total = 1 - np.exp(-sigma)
    first = (1 - (1 + sigma) * np.exp(-sigma)) / sigma / total
    second = (2 - (sigma**2 + 2 * sigma + 2) * np.exp(-sigma)) / sigma**2 / total
    np.testing.assert_allclose([opacity[0], passed[0]], [total, 1 - total], rtol=1e-4)
    np.testing.assert_allclose([mean[0], variance[0]], [first, second - first**2], rtol=1e-3)


def test_nothing_seen_has_no_depth():
    opacity, mean, variance = moments(jnp.zeros((4, 2)), jnp.ones((4, 2)))
    assert not np.any([opacity, mean, variance])


def test_distortion_is_the_double_sum():
    rng = np.random.default_rng(0)
    w, t, step = rng.uniform(size=(7, 2)), np.sort(rng.uniform(size=(7, 2)), 0), 0.1
    want = [
        sum(w[i, r] * w[j, r] * abs(t[i, r] - t[j, r]) for i in range(7) for j in range(7)) + (w[:, r] ** 2).sum() * step / 3
        for r in range(2)
    ]
    np.testing.assert_allclose(distortion(jnp.asarray(w, jnp.float32), jnp.asarray(t, jnp.float32), step), want, rtol=1e-5)


@pytest.mark.parametrize("s", [1, 5])
def test_before_is_the_exclusive_running_sum(s):
    x = np.random.default_rng(0).normal(size=(s, 3)).astype(np.float32)
    np.testing.assert_allclose(before(jnp.asarray(x)), np.cumsum(x, 0) - x, atol=1e-6)
