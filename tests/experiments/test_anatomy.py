"""The exact moments of residuals against draws of the noise, and what theory says of the figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.noise_schedule import STABLE_DIFFUSION, add_noise, score_weight
from lods_jax.distillation.objectives import OBJECTIVES, csd, dds, lods_lora, sds

D, N = 3, 4000


@pytest.fixture(scope="module")
def module(experiment):
    return experiment("anatomy")


@pytest.fixture(scope="module")
def gaussians(module):
    """Three Gaussians whose covariances are neither round nor alike."""
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(3, D, D))
    variances, axes = np.linalg.eigh(factors @ factors.transpose(0, 2, 1) + 0.1 * np.eye(D))
    return module.Gaussians(*(jnp.asarray(x, jnp.float32) for x in (rng.normal(size=(3, D)), variances, axes)))


@pytest.mark.parametrize("objective", [sds(7.5), csd(), dds(7.5)])
def test_moments_are_those_of_many_draws(module, gaussians, objective):
    """Residuals written out anew, with dense covariances, at one image under 4,000 draws of the noise."""
    z, reference, t = jnp.array([[0.5, -1.0, 0.3]]), jnp.array([0.2, 0.1, -0.4]), jnp.array(400)
    exact = module.moments(objective, False, gaussians, z, reference, t)
    noise = jax.random.normal(jax.random.key(0), (N, D))
    many = jnp.full(N, 400)
    latents = {"render": jnp.tile(z, (N, 1)), "reference": jnp.tile(reference[None], (N, 1))}
    weight = score_weight(STABLE_DIFFUSION, jnp.array([400]))[0]

    def eps(text, latent):
        i = module.index(text)
        cov = (gaussians.axes[i] * gaussians.variances[i][None]) @ gaussians.axes[i].T
        signal, sigma = jnp.sqrt(1 - weight), jnp.sqrt(weight)
        offset = add_noise(STABLE_DIFFUSION, latents[latent], noise, many) - signal * gaussians.mean[i][None]
        return sigma * jnp.linalg.solve(signal**2 * cov + sigma**2 * jnp.eye(D), offset.T).T

    e = {name: eps(query.text, query.latents)[:, None, None] for name, query in objective.queries.items()}
    drawn = weight * objective.residual(e, noise[:, None, None], many)[:, 0, 0]
    np.testing.assert_allclose(exact.mean[0], drawn.mean(0), atol=4 * float(drawn.std()) / N**0.5)
    np.testing.assert_allclose(exact.variance, drawn.var(0).sum(), rtol=0.1)


def figures(module, gaussians, objective, learned):
    found = jax.jit(lambda g, key: module.anatomy(objective, learned, g, key))(gaussians, jax.random.key(0))
    return {name: float(x["total"]) for name, x in found.items()}


def test_only_what_has_no_guidance_left_leaves_good_images_alone(module, gaussians):
    learned = figures(module, gaussians, lods_lora(100.0), True)
    assert learned["drift"] < 1e-5
    assert learned["cosine"] > 0.99999
    untrained, guided = figures(module, gaussians, lods_lora(100.0), False), figures(module, gaussians, sds(100.0), False)
    assert untrained == pytest.approx(guided, rel=1e-4)  # LODS before it has learned is SDS
    assert guided["drift"] > 0.1


def test_inversions_have_no_noise(module, gaussians):
    assert figures(module, gaussians, OBJECTIVES["sdi"](), False)["noise"] == 0


def test_the_dial_goes_up_with_rank_and_learning_rate(module, gaussians, monkeypatch):
    monkeypatch.setattr(module, "RATES", (1e-4, 1e-1))
    monkeypatch.setattr(module, "RANKS", (1, D))
    low, high = module.dial(gaussians, jax.random.key(0))
    assert low[1] > low[0]
    assert high[1] > low[1]
    assert high[1] == pytest.approx(1, abs=0.1)  # every direction, long enough: SDS at s = 1
