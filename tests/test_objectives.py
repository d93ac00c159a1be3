"""Laws of the objectives, and agreement with the official PyTorch code on a tiny random Stable Diffusion."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.diffusion import add_noise, per_example, score_weight
from lods_jax.objectives import ask, csd, fit_loss, lods_embedding, score, sds
from lods_jax.priors.stable_diffusion import stable_diffusion
from lods_jax.types import Cond

OBJECTIVES = {"sds": sds, "csd": csd, "lods-embedding": lods_embedding}
SCALES = {"7p5": 7.5, "100": 100.0, "1000": 1000.0, "1e6": 1e6}
DATA = Path(__file__).parent / "data" / "lods_parity"
B, SHAPE = 2, (2, 4, 4, 4)


def normal(seed, shape=SHAPE):
    return jax.random.normal(jax.random.key(seed), shape)


def toy_predict(psi, z_t, t, cond):
    """A network of sorts: answers depend on every input, so that a wrong order of queries shows."""
    return jnp.tanh(z_t + cond.tokens.mean((1, 2))[:, None, None, None] + t[:, None, None, None] / 1000)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_perfect_denoiser_exerts_no_force(name):
    objective, noise = OBJECTIVES[name](), normal(0)
    residual = objective.residual(dict.fromkeys(objective.queries, noise), noise, jnp.zeros(B, jnp.int32))
    np.testing.assert_allclose(residual, 0.0, atol=1e-5)


@pytest.mark.parametrize("s", [1.0, 7.5, 100.0, 1e6])
def test_lods_at_initialisation_is_sds_over_s(s):
    y, null, noise, t = normal(0), normal(1), normal(2), jnp.zeros(B, jnp.int32)
    lods = lods_embedding(s).residual({"y": y, "a": null}, noise, t)
    published = sds(s, scale=1.0).residual({"y": y, "null": null}, noise, t) / s
    np.testing.assert_allclose(lods, published, atol=1e-5)
    np.testing.assert_allclose(lods, sds(s).residual({"y": y, "null": null}, noise, t), atol=1e-5)


def test_untrained_lods_at_infinite_guidance_is_csd():
    y, null, noise, t = normal(0), normal(1), normal(2), jnp.zeros(B, jnp.int32)
    lods = lods_embedding(float("inf")).residual({"y": y, "a": null}, noise, t)
    np.testing.assert_array_equal(lods, csd().residual({"y": y, "null": null}, noise, t))


@pytest.mark.parametrize("s", [1.0, 30.0, float("inf")])
def test_with_an_oracle_unconditional_branch_lods_is_sds_at_one(s):
    y, noise, t = normal(0), normal(2), jnp.zeros(B, jnp.int32)
    lods = lods_embedding(s).residual({"y": y, "a": noise}, noise, t)
    np.testing.assert_allclose(lods, sds(1.0).residual({"y": y, "null": normal(5)}, noise, t), atol=1e-6)


@pytest.mark.parametrize("factory", [sds, lods_embedding])
@pytest.mark.parametrize("s", [0.5, -1.0, float("nan")])
def test_guidance_below_one_is_refused(factory, s):
    with pytest.raises(ValueError, match="guidance needs s >= 1"):
        factory(s)


def test_asking_together_equals_asking_apart():
    queries = lods_embedding().queries | sds().queries
    texts = {"prompt": normal(3, (B, 5, 8)), "null": normal(4, (B, 5, 8))}
    psi, latents, t, noise = {"embedding": normal(5, (5, 8))}, {"render": normal(0)}, jnp.array([10, 900]), normal(1)
    together = ask(toy_predict, psi, queries, latents, texts, t, noise)
    for name, query in queries.items():
        apart = ask(toy_predict, psi, {name: query}, latents, texts, t, noise)[name]
        np.testing.assert_allclose(together[name], apart, atol=1e-6)


def test_each_view_draws_its_own_timestep_and_noise():
    """The force on a view depends on its own key alone, whoever else is in the batch."""
    keys, texts = jax.random.split(jax.random.key(0), 4), {"prompt": normal(3, (4, 5, 8)), "null": normal(4, (4, 5, 8))}
    z = normal(0, (4, 4, 4, 4))
    force = lambda i: score(  # noqa: E731
        sds(), toy_predict, {}, {"render": z[i]}, {k: v[i] for k, v in texts.items()}, (20, 980), keys[i]
    )
    np.testing.assert_allclose(force(np.arange(4))[2:], force(np.array([2, 3])), atol=1e-6)


def test_timesteps_fill_the_window_and_no_more():
    seen = []

    def predict(psi, z_t, t, cond):
        seen.append(np.asarray(t[:64]))
        return z_t

    texts = {name: jnp.zeros((64, 1, 1)) for name in ("prompt", "null")}
    for seed in range(4):
        keys = jax.random.split(jax.random.key(seed), 64)
        score(csd(), predict, {}, {"render": jnp.zeros((64, 1, 1, 1))}, texts, (5, 9), keys)
    assert set(np.concatenate(seen)) == {5, 6, 7, 8, 9}


def test_nothing_to_learn_costs_nothing():
    assert fit_loss({}, sds(), toy_predict, {"render": normal(0)}, {}, jax.random.split(jax.random.key(0), B)) == 0.0


def test_the_fit_teaches_psi_and_not_the_scene():
    texts, keys = {"prompt": jnp.zeros((B, 5, 8))}, jax.random.split(jax.random.key(0), B)
    loss = lambda psi, z: fit_loss(psi, lods_embedding(), toy_predict, {"render": z}, texts, keys)  # noqa: E731
    g_psi, g_z = jax.grad(loss, (0, 1))({"embedding": normal(5, (5, 8))}, normal(0))
    assert float(jnp.abs(g_psi["embedding"]).max()) > 0
    np.testing.assert_array_equal(g_z, 0.0)


def test_the_cotangent_is_the_gradient_of_the_surrogate_loss():
    z, force = normal(0), normal(1)
    surrogate = lambda z: 0.5 * jnp.sum((z - jax.lax.stop_gradient(z - force)) ** 2) / B  # noqa: E731
    np.testing.assert_allclose(jax.grad(surrogate)(z), force / B, atol=1e-6)


# --- parity: tests/priors/conftest.py tells what the arrays are ----------------------------------------------------------------
@pytest.fixture(scope="module")
def arrays():
    stored = np.load(DATA / "arrays.npz")
    return {k: jnp.asarray(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x) for k, x in stored.items()}


@pytest.mark.parametrize("s", SCALES)
def test_residuals_equal_the_official_code(arrays, s):
    """Tolerances: float32 against float64 is 3e-6 in PyTorch itself; SDS grows with s, so its tolerance is relative."""
    w, noise, t = per_example(score_weight(arrays["t"]), arrays["noise"]), arrays["noise"], arrays["t"]
    lods = lods_embedding(SCALES[s]).residual({"y": arrays["eps_cond"], "a": arrays["eps_alpha"]}, noise, t)
    np.testing.assert_allclose(w * lods, arrays[f"lods_emb_grad_{s}"], atol=2e-5)
    np.testing.assert_allclose(w * lods / len(noise), arrays[f"lods_emb_dlatents_{s}"], atol=2e-5)
    both = {"y": arrays["eps_cond"], "null": arrays["eps_uncond"]}
    expected = arrays[f"sds_grad_{s}"]
    relative = np.abs(w * sds(SCALES[s], scale=1.0).residual(both, noise, t) - expected).max() / np.abs(expected).max()
    assert relative < 3e-5
    np.testing.assert_allclose(w * csd().residual(both, noise, t), arrays["csd_grad"], atol=2e-5)


def test_the_fit_loss_and_its_gradient_equal_the_official_code(arrays):
    prior = stable_diffusion(DATA / "sd")
    weights = prior.init(jax.random.key(0))

    @jax.jit
    def loss(embedding, z, noise, t):
        queries, psi = {"a": lods_embedding().queries["a"]}, {"embedding": embedding}
        predict = lambda psi, *rest: prior.predict(weights, psi, *rest)  # noqa: E731
        return jnp.mean((ask(predict, psi, queries, {"render": z}, {}, t, noise)["a"] - noise) ** 2)

    with jax.default_matmul_precision("highest"):
        value, gradient = jax.value_and_grad(loss)(arrays["alpha"], arrays["latents"], arrays["noise_train"], arrays["t_train"])
    np.testing.assert_allclose(value, arrays["emb_loss"], rtol=1e-5)
    # The first layers of the gradient pass two attention blocks: relative to its maximum, 2e-5 is float32 rounding.
    np.testing.assert_allclose(gradient, arrays["emb_dalpha"], atol=2e-5 * float(jnp.abs(arrays["emb_dalpha"]).max()))


def test_noising_uses_the_same_schedule_as_the_official_code(arrays):
    np.testing.assert_allclose(add_noise(arrays["latents"], arrays["noise"], arrays["t"]), arrays["latents_noisy"], atol=1e-6)


def test_a_condition_is_mentioned_only_where_it_is_used():
    def predict(psi, z_t, t, cond: Cond):
        assert cond.lora is None
        assert cond.pose is None
        return z_t

    ask(predict, {}, csd().queries, {"render": normal(0)}, {k: normal(1, (B, 2, 2)) for k in ("prompt", "null")},
        jnp.zeros(B, jnp.int32), normal(2), pose=jnp.zeros((B, 16)))  # fmt: skip
