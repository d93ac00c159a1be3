"""Laws of the objectives. Those that hold for every objective run over the registry: a new row is tested as it is added."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.errors import UserError
from lods_jax.core.noise_schedule import STABLE_DIFFUSION, add_noise, flow_matching, score_weight, signal_and_noise
from lods_jax.core.types import Cond
from lods_jax.distillation.objectives import (
    OBJECTIVES,
    asd,
    csd,
    dds,
    ism,
    lods_embedding,
    lods_lora,
    nfsd,
    sdi,
    sds,
    sds_bridge,
    vsd,
)
from lods_jax.distillation.registry import make_objective
from lods_jax.distillation.scores import Denoiser, denoising_loss, predict_noise, predictions_at, score
from lods_jax.priors.gaussian import gaussian

B, SHAPE = 2, (2, 4, 4, 4)


def normal(seed, shape=SHAPE):
    return jax.random.normal(jax.random.key(seed), shape)


def toy_predict(psi, z_t, t, cond):
    """A network of sorts: answers depend on every input, so that a wrong order of queries shows."""
    return jnp.tanh(z_t + cond.tokens.mean((1, 2))[:, None, None, None] + t[:, None, None, None] / 1000)


TOY = Denoiser(toy_predict, STABLE_DIFFUSION)


# --- laws of every objective ------------------------------------------------------------------------------------------------
every = pytest.mark.parametrize("name", OBJECTIVES)


def predictions(objective):
    return {query: normal(i) for i, query in enumerate(objective.queries)}


@every
def test_an_objective_says_whether_its_inversion_leaves_the_random_noise_aside(name):
    """A reward weighs noises: it needs an objective under which two of them lead to two scores."""
    objective, t = OBJECTIVES[name](), jnp.full(B, 500)
    texts = {query.text: normal(7, (B, 1, 4)) for query in objective.queries.values()} | {
        text: normal(i, (B, 1, 4)) for i, text in enumerate(("prompt", "null"))
    }
    latents = {"render": normal(1), "reference": normal(2)}
    psi = {"embedding": normal(3, (1, 4))}
    z_t = [
        predictions_at(objective, TOY, psi, latents, texts, t, normal(seed), jnp.zeros((B, 16)))[1]["render"] for seed in (4, 5)
    ]
    assert objective.leaves_noise_aside == np.array_equal(*z_t)
    assert objective.draws_noise == (not objective.leaves_noise_aside and objective.noise is None)


@every
def test_a_perfect_denoiser_exerts_no_force(name):
    objective, noise = OBJECTIVES[name](), normal(0)
    residual = objective.residual(dict.fromkeys(objective.queries, noise), noise, jnp.full(B, 500))
    np.testing.assert_allclose(residual, 0.0, atol=1e-5)


@every
def test_residuals_are_linear_in_predictions_and_noise(name):
    objective, noise, t = OBJECTIVES[name](), normal(99), jnp.array([100, 700])
    e = predictions(objective)
    twice = objective.residual({k: 2 * x for k, x in e.items()}, 2 * noise, t)
    np.testing.assert_allclose(twice, 2 * objective.residual(e, noise, t), rtol=1e-5, atol=1e-5)


@every
def test_every_prediction_that_is_paid_for_is_used(name):
    objective, noise, t = OBJECTIVES[name](), normal(99), jnp.array([100, 700])
    e = predictions(objective)
    for query in e:
        changed = objective.residual(e | {query: e[query] + 1}, noise, t) - objective.residual(e, noise, t)
        assert float(jnp.abs(changed).max()) > 1e-6, query


@every
def test_what_is_fitted_is_asked_and_can_learn(name):
    objective = OBJECTIVES[name]()
    if objective.trained_query is None:
        return
    query = objective.queries[objective.trained_query]
    assert query.text == "learned" or query.lora > 0
    assert query.latents == "render"


@every
def test_its_paper_and_its_equation_are_named(name):
    assert "et al. 20" in inspect.getdoc(OBJECTIVES[name])


@every
def test_guidance_does_not_change_the_scale(name):
    """With the default `scale` a residual at s = 1000 is as large as at s = 10, within a factor of two."""
    if "s" not in inspect.signature(OBJECTIVES[name]).parameters:
        return
    e, t = predictions(OBJECTIVES[name]()), jnp.full(B, 500)
    size = lambda s: float(jnp.std(OBJECTIVES[name](s=s).residual(e, normal(99), t)))  # noqa: E731
    assert 0.5 < size(1000.0) / size(10.0) < 2


SINGLE = {"": 0.2, "y": 1.0, "now": 0.5}
PRIOR = gaussian(SINGLE)


def PREDICT(psi, *rest):
    return PRIOR.predict({}, psi, *rest)


@every
def test_the_fit_moves_its_own_leaf_and_the_score_moves_none(name):
    """On a prior in closed form whose adapter is a shift of the tokens."""
    objective, prior = OBJECTIVES[name](), gaussian(SINGLE)
    texts = {key: prior.embed({}, [text] * B) for key, text in one_pixel_texts().items()}
    fitted = [objective.queries[objective.trained_query]] if objective.trained_query else []
    psi = prior.init_psi({}, jax.random.key(0), texts["null"][0], fitted)
    assert set(psi) == ({"embedding"} if fitted and fitted[0].text == "learned" else {"lora"} if fitted else set())
    predict = lambda psi, *rest: prior.predict({}, psi, *rest)  # noqa: E731
    latents, keys = {"render": normal(0), "reference": normal(1)}, jax.random.split(jax.random.key(0), B)
    pose = jnp.ones((B, 16))
    gradient = jax.grad(
        lambda psi: denoising_loss(psi, objective, Denoiser(predict, STABLE_DIFFUSION), latents, texts, keys, pose)
    )(psi)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(gradient))
    force = score(objective, Denoiser(predict, STABLE_DIFFUSION), psi, latents, texts, (20, 980), keys, pose)
    assert force.shape == SHAPE
    assert bool(jnp.isfinite(force).all())


def one_pixel_texts():
    return {"prompt": "y", "plain": "y", "null": "", "empty": "", "source": "now"}


# --- how they are related ---------------------------------------------------------------------------------------------------
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


def test_vsd_is_lods_at_infinite_guidance_with_a_conditioned_branch():
    y, q, noise, t = normal(0), normal(1), normal(2), jnp.zeros(B, jnp.int32)
    ours = vsd(1.0).residual({"y": y, "null": normal(3), "q": q}, noise, t)
    np.testing.assert_allclose(ours, lods_lora(float("inf")).residual({"y": y, "a": q}, noise, t), atol=1e-6)
    assert vsd().queries["q"].pose
    assert not vsd(pose=0).queries["q"].pose


def test_dds_is_lods_whose_unconditional_branch_answers_on_the_reference():
    y, y0, noise, t = normal(0), normal(1), normal(2), jnp.zeros(B, jnp.int32)
    ours = dds(1.0).residual({"y": y, "null": normal(3), "y0": y0, "null0": normal(4)}, noise, t)
    np.testing.assert_allclose(ours, lods_embedding(float("inf")).residual({"y": y, "a": y0}, noise, t), atol=1e-6)


def test_an_identical_pair_exerts_no_force_in_dds():
    texts = {name: normal(3, (B, 5, 8)) for name in ("prompt", "source")} | {"null": normal(4, (B, 5, 8))}
    latents = {"render": normal(0), "reference": normal(0)}
    keys = jax.random.split(jax.random.key(0), B)
    np.testing.assert_allclose(score(dds(), TOY, {}, latents, texts, (20, 980), keys), 0, atol=1e-6)


def test_nfsd_without_a_negative_prompt_is_csd_above_200():
    y, null, noise = normal(0), normal(1), normal(2)
    ours = nfsd(scale=1 / 7.5).residual({"y": y, "empty": null, "null": null}, noise, jnp.array([100, 700]))
    np.testing.assert_allclose(ours[1], csd().residual({"y": y, "null": null}, noise, None)[1], atol=1e-5)
    assert float(jnp.abs(ours[0] - (y - null)[0]).max()) > 0.05


def test_the_bridge_is_csd_from_another_text():
    y, source = normal(0), normal(1)
    ours = sds_bridge().residual({"y": y, "source": source}, normal(2), None)
    np.testing.assert_allclose(ours, csd().residual({"y": y, "null": source}, None, None), atol=1e-5)


# --- inversions -------------------------------------------------------------------------------------------------------------
def exact(text, z_t, t, sigma=0.5, schedule=STABLE_DIFFUSION):
    """eps of a Gaussian prior, as a function of (text, z_t, t)."""
    prior = gaussian(SINGLE, sigma, schedule)
    tokens = prior.embed({}, [one_pixel_texts()[text]] * len(z_t))
    return prior.predict({}, {}, z_t, t, Cond(tokens))


@pytest.mark.parametrize("schedule", [STABLE_DIFFUSION, flow_matching()], ids=["diffusion", "flow"])
def test_a_fine_inversion_follows_the_exact_flow(schedule):
    """For a Gaussian the probability flow is affine: (z_t - signal mu) keeps its ratio to the marginal's standard deviation."""
    z, t = 0.2 + 0.5 * normal(0), jnp.array([300, 900])
    z_t, _ = ism(steps=250).inversion(schedule, partial(exact, schedule=schedule), z, t, jnp.zeros_like(z))

    signal, noise = signal_and_noise(schedule, t, z)
    expected = signal * 0.2 + jnp.sqrt(signal**2 * 0.25 + noise**2) * (z - 0.2) / 0.5
    np.testing.assert_allclose(z_t, expected, atol=0.05)


def test_the_noise_of_sdi_leads_to_its_latents_in_one_step():
    z, t = normal(0), jnp.array([300, 900])
    z_t, noise = sdi().inversion(STABLE_DIFFUSION, exact, z, t, jnp.zeros_like(z))
    np.testing.assert_allclose(add_noise(STABLE_DIFFUSION, z, noise, t), z_t, atol=1e-5)


def test_inversions_draw_no_noise():
    z, t = normal(0), jnp.array([300, 900])
    for objective in (ism(), sdi()):
        a, b = (objective.inversion(STABLE_DIFFUSION, exact, z, t, normal(seed)) for seed in (1, 2))
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])


def test_an_inversion_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="steps must be at least 1"):
        ism(steps=0)


def mean_force(objective, value):
    """w(t) residual at latents of one value on a Gaussian prior, over all timesteps; linear in the noise, whose mean is 0."""
    t = jnp.arange(20, 951)
    z = jnp.full((len(t), 1, 1, 1), value)
    z_t, noise = add_noise(STABLE_DIFFUSION, z, 0 * z, t), 0 * z
    if objective.inversion:
        z_t, noise = objective.inversion(STABLE_DIFFUSION, exact, z, t, noise)
    e = {name: exact(query.text, z_t, t) for name, query in objective.queries.items()}
    return float(jnp.mean(score_weight(STABLE_DIFFUSION, t)[:, None, None, None] * objective.residual(e, noise, t)))


def test_without_guidance_asd_rests_where_sds_rests_and_leads_there_with_less_force():
    """The mean of the prompt is 1. Both predictions are of one network and nearly cancel."""
    assert mean_force(asd(1.0), 1.0) == pytest.approx(0, abs=1e-6)
    for value in (0.0, 3.0):
        assert 0 < mean_force(asd(1.0), value) / mean_force(sds(1.0), value) < 0.25


def test_asd_asks_later_with_the_same_noise():
    asked = []

    def eps_of(text, z_t, t):
        asked.append((text, z_t, t))
        return z_t

    z, noise, t = normal(0), normal(1), jnp.array([20, 520])
    z_t, _ = asd(shift=0.1).inversion(STABLE_DIFFUSION, eps_of, z, t, noise)
    ((text, later, at),) = asked
    assert (text, at.tolist()) == ("prompt", [21, 570])
    np.testing.assert_allclose(z_t, add_noise(STABLE_DIFFUSION, z, noise, t))
    np.testing.assert_allclose(later, add_noise(STABLE_DIFFUSION, z, noise, at))


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if OBJECTIVES[name]().inversion])
def test_an_inversion_asks_as_often_as_it_says(name):
    asked, z = [], normal(0)

    def eps_of(text, z_t, t):
        jax.debug.callback(lambda: asked.append(text))  # also within a loop
        return 0.1 * z_t

    objective = OBJECTIVES[name]()
    objective.inversion(STABLE_DIFFUSION, eps_of, z, jnp.array([300, 900]), normal(1))
    jax.effects_barrier()
    assert len(asked) == objective.inversion_predictions


# --- stages -----------------------------------------------------------------------------------------------------------------
def test_the_bridge_in_two_stages_is_sds_and_then_the_bridge():
    two = sds_bridge(s=40.0, first=100)
    e, noise, t = {name: normal(i) for i, name in enumerate(two.queries)}, normal(9), jnp.full(B, 500)
    before, after = (jax.jit(lambda step: two.at(step).residual(e, noise, t))(step) for step in (99, 100))
    np.testing.assert_allclose(before, sds(40.0).residual(e, noise, t), atol=1e-6)
    np.testing.assert_allclose(after, sds_bridge(s=40.0).residual(e, noise, t), atol=1e-6)
    one = sds_bridge()
    assert one.at(7) is one


# --- guidance scales --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("factory", [f for f in OBJECTIVES.values() if "s" in inspect.signature(f).parameters])
@pytest.mark.parametrize("s", [0.5, -1.0, float("nan")])
def test_guidance_below_one_is_refused(factory, s):
    with pytest.raises(ValueError, match="guidance needs s >= 1"):
        factory(s)


def test_asking_together_equals_asking_apart():
    queries = lods_embedding().queries | sds().queries
    texts = {"prompt": normal(3, (B, 5, 8)), "null": normal(4, (B, 5, 8))}
    psi, latents, t, noise = {"embedding": normal(5, (5, 8))}, {"render": normal(0)}, jnp.array([10, 900]), normal(1)
    noised = {"render": add_noise(STABLE_DIFFUSION, latents["render"], noise, t)}
    together = predict_noise(toy_predict, psi, queries, noised, texts, t)
    for name, query in queries.items():
        apart = predict_noise(toy_predict, psi, {name: query}, noised, texts, t)[name]
        np.testing.assert_allclose(together[name], apart, atol=1e-6)


def test_each_view_draws_its_own_timestep_and_noise():
    """The force on a view depends on its own key alone, whoever else is in the batch."""
    keys, texts = jax.random.split(jax.random.key(0), 4), {"prompt": normal(3, (4, 5, 8)), "null": normal(4, (4, 5, 8))}
    z = normal(0, (4, 4, 4, 4))
    force = lambda i: score(  # noqa: E731
        sds(),
        TOY,
        {},
        {"render": z[i]},
        {k: v[i] for k, v in texts.items()},
        (20, 980),
        keys[i],
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
        score(csd(), Denoiser(predict, STABLE_DIFFUSION), {}, {"render": jnp.zeros((64, 1, 1, 1))}, texts, (5, 9), keys)
    assert set(np.concatenate(seen)) == {5, 6, 7, 8, 9}


def test_nothing_to_learn_costs_nothing():
    assert denoising_loss({}, sds(), TOY, {"render": normal(0)}, {}, jax.random.split(jax.random.key(0), B)) == 0.0


def test_the_fit_teaches_psi_and_not_the_scene():
    texts, keys = {"prompt": jnp.zeros((B, 5, 8))}, jax.random.split(jax.random.key(0), B)
    loss = lambda psi, z: denoising_loss(psi, lods_embedding(), TOY, {"render": z}, texts, keys)  # noqa: E731
    g_psi, g_z = jax.grad(loss, (0, 1))({"embedding": normal(5, (5, 8))}, normal(0))
    assert float(jnp.abs(g_psi["embedding"]).max()) > 0
    np.testing.assert_array_equal(g_z, 0.0)


@pytest.mark.parametrize("objective", [lods_embedding(), lods_lora(), vsd()])
def test_with_shared_noise_score_and_fit_are_those_of_the_same_draw(objective):
    """The force is that of `score`; the fit's gradient is that of its loss at the score's timestep and noise."""
    from lods_jax.distillation.scores import draw, score_and_denoising_loss

    texts = {key: PRIOR.embed({}, [text] * B) for key, text in one_pixel_texts().items()}
    psi = PRIOR.init_psi({}, jax.random.key(0), texts["null"][0], [objective.queries[objective.trained_query]])
    latents, keys, pose = {"render": normal(0)}, jax.random.split(jax.random.key(0), B), jnp.ones((B, 16))
    both = jax.value_and_grad(score_and_denoising_loss, has_aux=True)
    (loss, force), gradient = both(psi, objective, Denoiser(PREDICT, STABLE_DIFFUSION), latents, texts, (20, 980), keys, pose)
    np.testing.assert_allclose(
        force, score(objective, Denoiser(PREDICT, STABLE_DIFFUSION), psi, latents, texts, (20, 980), keys, pose), atol=1e-5
    )
    t, noise = draw(keys, normal(0), (20, 980))
    query = {"a": objective.queries[objective.trained_query]}

    def expected(psi):
        noised = {"render": add_noise(STABLE_DIFFUSION, normal(0), noise, t)}
        return jnp.mean((predict_noise(PREDICT, psi, query, noised, texts, t, pose)["a"] - noise) ** 2)

    value, g = jax.value_and_grad(expected)(psi)
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient, g)


def test_the_cotangent_is_the_gradient_of_the_surrogate_loss():
    z, force = normal(0), normal(1)
    surrogate = lambda z: 0.5 * jnp.sum((z - jax.lax.stop_gradient(z - force)) ** 2) / B  # noqa: E731
    np.testing.assert_allclose(jax.grad(surrogate)(z), force / B, atol=1e-6)


def test_a_condition_is_mentioned_only_where_it_is_used():
    def predict(psi, z_t, t, cond: Cond):
        assert cond.lora is None
        assert cond.pose is None
        return z_t

    texts = {k: normal(1, (B, 2, 2)) for k in ("prompt", "null")}
    predict_noise(predict, {}, csd().queries, {"render": normal(0)}, texts, jnp.zeros(B, jnp.int32), pose=jnp.zeros((B, 16)))


# --- objectives of one's own --------------------------------------------------------------------------------------------------
CODE = """
import sys
def refuses(): raise ValueError("two\\nlines")
def leaves(): sys.exit(0)
def needs(x): return x
def three(): return 3
"""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("sdss", "unknown objective sdss; there are sds, csd"),
        ("sys:exit", "sys:exit must be a Python function that gives an Objective, got a builtin_function_or_method"),
        ("os:sep", "os:sep must be a Python function that gives an Objective, got a str"),
        ("os:nothing", "os:nothing cannot be imported: module 'os' has no attribute 'nothing'"),
        ("no_such_module:x", "cannot be imported: No module named 'no_such_module'"),
        (":", "objective : cannot be imported: ValueError: Empty module name"),
        (".x:y", "objective .x:y cannot be imported: TypeError"),
        ("own_code:", "cannot be imported"),
        ("/nowhere/mine.py:x", "objective /nowhere/mine.py:x cannot be imported: there is no file /nowhere/mine.py"),
        ("json:loads", r"objective json:loads failed: TypeError: loads\(\) missing 1 required"),
        ("own_code:refuses", "objective own_code:refuses failed: ValueError: two lines"),
        ("own_code:leaves", "objective own_code:leaves failed: SystemExit: 0"),
        ("own_code:needs", "objective own_code:needs failed: TypeError"),
        ("own_code:three", "must give a lods_jax.core.types.Objective, got a int"),
        ("own_broken:x", "objective own_broken:x cannot be imported: SyntaxError"),
        ("own_exit:x", "objective own_exit:x cannot be imported: SystemExit: 3"),
    ],
)
def test_code_that_is_no_objective_is_one_line(tmp_path, monkeypatch, name, says):
    for module, code in (("own_code", CODE), ("own_broken", "def"), ("own_exit", "raise SystemExit(3)")):
        (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        make_objective(name)
    assert "\n" not in str(caught.value)
