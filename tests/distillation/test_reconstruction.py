"""Laws of the x0-reconstruction form with rescaled guidance, and MVDream's arithmetic written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.noise_schedule import STABLE_DIFFUSION, add_noise, signal_and_noise
from lods_jax.distillation.objectives import lods_embedding, lods_lora, sds
from lods_jax.distillation.reconstruction import rescaled
from lods_jax.distillation.scores import Denoiser, draw, score, score_of

V, B, SHAPE = 4, 8, (8, 2, 2, 3)
T = jnp.repeat(jnp.array([120, 870]), V)
DENOISER = Denoiser(lambda *asked: None, STABLE_DIFFUSION, V)
FORMS = pytest.mark.parametrize("make", [sds, lods_embedding, lods_lora])


def normal(seed):
    return jax.random.normal(jax.random.key(seed), SHAPE)


Z, NOISE = normal(0), normal(1)
NOISED = {"render": add_noise(STABLE_DIFFUSION, Z, NOISE, T)}


def told(objective, eps):
    """The score of two groups of four views."""
    return score_of(objective, DENOISER, dict(zip(objective.queries, eps, strict=True)), Z, NOISED, NOISE, T)


@FORMS
def test_a_perfect_denoiser_exerts_no_force(make):
    np.testing.assert_allclose(told(make(s=50.0, x0_rescale=0.5), (NOISE, NOISE)), 0.0, atol=1e-3)  # 50 times the rounding of x0


@FORMS
def test_without_rescaling_it_is_the_residual_of_noises_under_another_weight(make):
    """(sigma / alpha) in place of w(t)."""
    eps = normal(2), normal(3)
    signal, sigma = signal_and_noise(STABLE_DIFFUSION, T, Z)
    residual = make(s=50.0).residual(dict(zip(make().queries, eps, strict=True)), NOISE, T)
    np.testing.assert_allclose(told(make(s=50.0, x0_rescale=0.0), eps), sigma / signal * residual, rtol=1e-3, atol=1e-3)


def test_it_is_the_loss_of_mvdream():
    """As the code of MVDream for threestudio computes it, group by group, with the unbiased deviation of PyTorch."""
    eps, s, share = (np.asarray(normal(2)), np.asarray(normal(3))), 50.0, 0.5
    signal, sigma = (np.asarray(x) for x in signal_and_noise(STABLE_DIFFUSION, T, Z))
    z_t, expected = np.asarray(NOISED["render"]), []
    for group in np.split(np.arange(B), B // V):
        x0 = lambda e, rows=group: (z_t[rows] - sigma[rows] * e[rows]) / signal[rows]  # noqa: E731
        guided, prompted = x0(eps[1] + s * (eps[0] - eps[1])), x0(eps[0])
        factor = (prompted.std(ddof=1) + 1e-8) / (guided.std(ddof=1) + 1e-8)
        expected.append(np.asarray(Z)[group] - (share * factor * guided + (1 - share) * guided))
    found = told(sds(s=s, scale=1.0, x0_rescale=share), map(jnp.asarray, eps))
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-4, atol=1e-3)


def test_rescaled_in_full_a_group_has_the_deviation_of_its_prompt():
    guided, prompted = 7 * normal(4), normal(5) * jnp.arange(1.0, B + 1).reshape(B, 1, 1, 1)
    deviations = lambda x: np.asarray(x).reshape(B // V, -1).std(1)  # noqa: E731
    np.testing.assert_allclose(deviations(rescaled(guided, prompted, 1.0, V)), deviations(prompted), rtol=1e-5)
    np.testing.assert_array_equal(rescaled(guided, prompted, 0.0, V), guided)


@pytest.mark.parametrize("make", [lods_embedding, lods_lora])
def test_lods_at_its_start_is_sds_divided_by_s(make):
    eps = normal(2), normal(3)
    np.testing.assert_allclose(
        told(make(s=50.0, x0_rescale=0.5), eps), told(sds(s=50.0, scale=1.0, x0_rescale=0.5), eps) / 50, rtol=1e-4, atol=1e-4
    )


def test_a_step_takes_it():
    """`score` draws, asks and forms it: the same number as from its parts."""
    keys, objective = jax.random.split(jax.random.key(0), B), sds(s=3.0, x0_rescale=0.5)
    ask = lambda psi, z_t, t, cond: jnp.tanh(z_t + cond.tokens.mean((1, 2))[:, None, None, None])  # noqa: E731
    texts = {"prompt": jnp.ones((B, 2, 3)), "null": jnp.zeros((B, 2, 3))}
    t, noise = draw(keys, Z, (20, 980), V)
    z_t = add_noise(STABLE_DIFFUSION, Z, noise, t)
    eps = {"y": jnp.tanh(z_t + 1), "null": jnp.tanh(z_t)}
    expected = score_of(objective, DENOISER, eps, Z, {"render": z_t}, noise, t)
    found = score(objective, DENOISER._replace(predict=ask), {}, {"render": Z}, texts, (20, 980), keys)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"s": float("inf"), "x0_rescale": 0.5}, "x0_rescale needs a finite guidance scale, got inf"),
        ({"s": 50.0, "x0_rescale": 1.5}, r"x0_rescale must lie in 0\.\.1, got 1\.5"),
    ],
)
def test_what_cannot_be_rescaled_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        lods_embedding(**options)
