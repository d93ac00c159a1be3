"""The Gaussian prior answers with the score of its density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from lods_jax.core.noise_schedule import STABLE_DIFFUSION, eps_to_x0, flow_matching, from_betas, scaled_linear_betas
from lods_jax.core.types import Cond, Query
from lods_jax.priors.gaussian import gaussian

SIGMA = 0.3
PRIOR = gaussian({"": 0.2, "y": 1.0}, SIGMA)
TOKENS = PRIOR.embed({}, ["", "y"])
T = jnp.array([0, 100, 500, 999])
Z = jax.random.normal(jax.random.key(0), (4, 2, 2, 3))
Y = jnp.repeat(TOKENS[1:], 4, 0)
predict = jax.jit(PRIOR.predict)


def test_eps_is_minus_the_noise_level_times_the_score_of_the_density():
    """eps = -sqrt(1 - ab) grad log N(z_t; sqrt(ab) mu, ab sigma^2 + 1 - ab) (Song et al. 2021, "Score-based ...")."""

    def log_density(z, alpha_bar):
        return norm.logpdf(z, jnp.sqrt(alpha_bar) * 1.0, jnp.sqrt(alpha_bar * SIGMA**2 + 1 - alpha_bar)).sum()

    alpha_bar = jnp.asarray(STABLE_DIFFUSION.alpha_bar)[T]
    score = jax.vmap(jax.grad(log_density))(Z, alpha_bar)
    expected = -jnp.sqrt(1 - alpha_bar)[:, None, None, None] * score
    np.testing.assert_allclose(predict({}, {}, Z, T, Cond(Y)), expected, rtol=1e-5, atol=1e-6)


def test_embedding_holds_the_mean():
    assert TOKENS.shape == (2, 1, 1)
    np.testing.assert_allclose(TOKENS.ravel(), [0.2, 1.0])


def test_only_what_a_fitted_query_uses_can_be_learned():
    init = lambda *queries: set(PRIOR.init_psi({}, jax.random.key(0), TOKENS[0], queries))  # noqa: E731
    assert init() == set()
    assert init(Query("learned")) == {"embedding"}
    assert init(Query("null", lora=0.5)) == {"lora"}


def test_the_adapter_is_off_at_scale_zero_and_at_initialisation():
    psi = PRIOR.init_psi({}, jax.random.key(0), TOKENS[0], [Query("null", lora=1.0)])
    moved = jax.tree.map(lambda leaf: leaf + 0.7, psi)
    frozen = predict({}, {}, Z, T, Cond(Y))
    np.testing.assert_array_equal(predict({}, psi, Z, T, Cond(Y, lora=jnp.ones(4))), frozen)
    np.testing.assert_array_equal(predict({}, moved, Z, T, Cond(Y, lora=jnp.zeros(4))), frozen)
    shifted = predict({}, moved, Z, T, Cond(Y, lora=jnp.full(4, 0.5)))
    np.testing.assert_allclose(shifted, predict({}, {}, Z, T, Cond(Y + 0.35)), atol=1e-6)


def test_an_unknown_text_is_named():
    with pytest.raises(ValueError, match="knows no text 'z', only"):
        PRIOR.embed({}, ["y", "z"])


def test_a_negative_sigma_is_refused():
    with pytest.raises(ValueError, match="sigma must be at least 0, got -1"):
        gaussian({"": 0.0}, -1.0)


@pytest.mark.parametrize(
    "schedule", [flow_matching(3.0), from_betas(scaled_linear_betas(0.00085, 0.012), True)], ids=["flow", "zero snr"]
)
def test_where_the_process_ends_in_noise_the_mean_of_the_clean_latents_is_known_too(schedule):
    """It is what the noise implies while there is signal, and the mean of the text where there is none."""
    prior, asked = gaussian({"": 0.2, "y": 1.0}, SIGMA, schedule), ({}, {}, Z, T, Cond(Y))
    x0, implied = jax.jit(prior.predict_x0)(*asked), eps_to_x0(schedule, jax.jit(prior.predict)(*asked), Z, T)
    np.testing.assert_allclose(x0[:3], implied[:3], atol=2e-5)
    np.testing.assert_array_equal(x0[3], 1.0)
    assert PRIOR.predict_x0 is None
