"""Objectives read the schedule from the prior: under flow matching they are what their papers write with velocities.

A schedule that preserves variance and the straight line of flow matching are one process: z_flow = z_vp / (alpha + sigma) at
sigma_flow = sigma / (alpha + sigma), with the same noise in it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.noise_schedule import (
    STABLE_DIFFUSION,
    NoiseSchedule,
    T,
    add_noise,
    flow_matching,
    from_betas,
    scaled_linear_betas,
    signal_and_noise,
    v_to_eps,
    velocity,
)
from lods_jax.core.types import Cond
from lods_jax.distillation.objectives import OBJECTIVES, lods_embedding, lods_lora, rfds, rfds_rev, sds
from lods_jax.distillation.scores import Denoiser, denoising_loss, predictions_at, score_of, scores_to_steps
from lods_jax.priors.ddim import ddim
from lods_jax.priors.gaussian import gaussian

FLOW = flow_matching()
SHAPE = (4, 2, 2, 3)
Z, NOISE, Y, A = jax.random.normal(jax.random.key(0), (4, *SHAPE))
TIMES = jnp.array([20, 300, 700, 980])
MEANS = {"": 0.2, "y": 1.0, "now": 0.5}
TEXTS = {"prompt": "y", "plain": "y", "null": "", "empty": "", "source": "now"}
every = pytest.mark.parametrize("name", OBJECTIVES)


def as_flow(schedule: NoiseSchedule) -> NoiseSchedule:
    """The same process on the straight line."""
    signal, sigma = np.sqrt(schedule.alpha_bar), np.sqrt(schedule.sigma2)
    sigma /= signal + sigma
    return NoiseSchedule((1 - sigma) ** 2, sigma**2, straight=True)


def length(schedule, t, like):
    """alpha + sigma, which takes latents of `schedule` to those of `as_flow`."""
    signal, sigma = signal_and_noise(schedule, t, like)
    return signal + sigma


def broadcast(x):
    return jnp.asarray(x)[:, None, None, None]


# --- in velocities ----------------------------------------------------------------------------------------------------------
@every
@pytest.mark.parametrize("schedule", [FLOW, STABLE_DIFFUSION], ids=["flow", "diffusion"])
def test_a_residual_of_noises_is_the_signal_times_that_of_velocities(schedule, name):
    """Since its coefficients sum to 0. NFSD's do from t = 200 on."""
    objective, t = OBJECTIVES[name](), TIMES.at[0].set(250)
    v = {query: jax.random.normal(jax.random.key(i), SHAPE) for i, query in enumerate(objective.queries)}
    z_t = add_noise(schedule, Z, NOISE, t)
    e = {query: v_to_eps(schedule, x, z_t, t) for query, x in v.items()}
    signal, _ = signal_and_noise(schedule, t, Z)
    ours, of_v = objective.residual(e, NOISE, t), objective.residual(v, velocity(schedule, Z, NOISE, t), t)
    np.testing.assert_allclose(ours, signal * of_v, atol=1e-5)


def score_at(objective, denoiser, psi, latents, texts, t, pose=None):
    """The score at given timesteps and NOISE, the predictions, and z_t."""
    eps, noised, noise = predictions_at(objective, denoiser, psi, latents, texts, t, NOISE, pose)
    return score_of(objective, denoiser, eps, latents["render"], noised, noise, t), eps, noised["render"]


def asked(objective, v, t, z=Z):
    """The score of an objective on a network of flow matching whose velocities are given by the text of the query."""
    answers = {"prompt": v["y"], "null": v["a"], "learned": v["a"]}
    rows = {text: jnp.full((len(z), 1, 1), i, jnp.float32) for i, text in enumerate(answers)}

    def predict(psi, z_t, t, cond):
        of_text = jnp.stack([*answers.values()])[cond.tokens[:, 0, 0].astype(int), jnp.arange(len(z_t)) % len(z)]
        return v_to_eps(FLOW, of_text, z_t, t)

    psi = {"embedding": rows["learned"][0]}
    return score_at(objective, Denoiser(predict, FLOW), psi, {"render": z}, rows, t)


@pytest.mark.parametrize("s", [1.0, 7.5, 1000.0, float("inf")])
def test_lods_in_flow_form_up_to_its_weight(s):
    """sigma^2 (1 - sigma) (v[y] - (1 - 1/s) v[a] - (noise - z) / s)."""
    found, _, _ = asked(lods_embedding(s), {"y": Y, "a": A}, TIMES)
    sigma = broadcast((TIMES + 1) / T)
    expected = sigma**2 * (1 - sigma) * (Y - (1 - 1 / s) * A - (NOISE - Z) / s)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("s", [1.0, 50.0])
def test_rfds_is_the_published_force_at_any_time(s):
    """v_null + s (v_y - v_null) - (noise - z), with no weight."""
    found, _, _ = asked(rfds(s, scale=1.0), {"y": Y, "a": A}, TIMES)
    np.testing.assert_allclose(found, A + s * (Y - A) - (NOISE - Z), atol=2e-5 * s)


def test_rfds_rev_first_brings_the_noise_to_the_flow_of_the_prompt():
    """One step as published: noise + (1 - sigma) (v_y + z - noise); then RFDS at the z_t that this noise makes."""
    found, _, z_t = asked(rfds_rev(50.0, scale=1.0), {"y": Y, "a": A}, TIMES)
    sigma = broadcast((TIMES + 1) / T)
    noise = NOISE + (1 - sigma) * (Y + Z - NOISE)
    np.testing.assert_allclose(z_t, (1 - sigma) * Z + sigma * noise, atol=1e-6)
    np.testing.assert_allclose(found, A + 50.0 * (Y - A) - (noise - Z), atol=1e-3)


def exact(schedule, text, z_t, t, sigma):
    prior = gaussian(MEANS, sigma, schedule)
    return prior.predict({}, {}, z_t, t, Cond(prior.embed({}, [TEXTS[text]] * len(z_t))))


def test_a_noise_that_leads_to_the_image_is_left_as_it_is():
    """Of a prior that knows its one image, at that image: the fixed point of the inversion is every noise."""
    z = jnp.full(SHAPE, 1.0)
    eps_of = lambda text, z_t, t: exact(FLOW, text, z_t, t, 0.0)  # noqa: E731
    _, noise = rfds_rev(steps=3).inversion(FLOW, eps_of, z, TIMES, NOISE)
    np.testing.assert_allclose(noise, NOISE, atol=1e-4)  # 2e-5 of rounding at sigma = 0.02, three times


# --- one process in two coordinates -----------------------------------------------------------------------------------------
def test_a_gaussian_written_as_diffusion_and_as_flow_predicts_the_same_noise():
    """So do all priors in closed form, whose eps is a function of z_t over signal, and of the ratio of noise to signal."""
    z_t = add_noise(STABLE_DIFFUSION, Z, NOISE, TIMES)
    on_line = z_t / length(STABLE_DIFFUSION, TIMES, Z)
    ours = exact(as_flow(STABLE_DIFFUSION), "prompt", on_line, TIMES, 0.5)
    np.testing.assert_allclose(ours, exact(STABLE_DIFFUSION, "prompt", z_t, TIMES, 0.5), atol=2e-6)


@pytest.mark.parametrize("steps", [1, 7])
def test_a_gaussian_written_as_diffusion_and_as_flow_is_sampled_to_the_same_end(steps):
    """Step by step: what DDIM does on the arc, Euler does on the line."""

    def sample(schedule, z):
        prior = gaussian(MEANS, 0.5, schedule)
        rows = (prior.embed({}, [text] * len(z)) for text in ("y", ""))
        predict = lambda *asked: prior.predict({}, {}, *asked)  # noqa: E731
        return jax.jit(lambda z: ddim(predict, z, *rows, schedule, s=3.0, steps=steps))(z)

    last = length(STABLE_DIFFUSION, jnp.full(len(Z), T - 1), Z)
    np.testing.assert_allclose(sample(STABLE_DIFFUSION, NOISE), sample(as_flow(STABLE_DIFFUSION), NOISE / last), atol=2e-5)


def mean_residual(objective, schedule, value, t):
    """The residual at latents of one value on a Gaussian prior, its mean over the noise, in which it is linear."""
    z = jnp.full((len(t), 1, 1, 1), value)
    z_t, noise = {"render": add_noise(schedule, z, 0 * z, t)}, 0 * z
    z_t["reference"] = z_t["render"] * 0.5
    if objective.inversion:
        eps_of = lambda text, z_t, t: exact(schedule, text, z_t, t, 0.5)  # noqa: E731
        z_t["render"], noise = objective.inversion(schedule, eps_of, z, t, noise)
    text = lambda query: "null" if query.text == "learned" else query.text  # noqa: E731
    e = {name: exact(schedule, text(query), z_t[query.latents], t, 0.5) for name, query in objective.queries.items()}
    return objective.residual(e, noise, t).ravel()


@every
def test_an_objective_has_one_residual_in_both_coordinates(name):
    """DDIM inversions begin at z, which stands for z_t at t = 0: 3 % of the way on the arc, and 3 % of the line."""
    objective, t = OBJECTIVES[name](), jnp.array([40, 300, 700, 980])
    a, b = (mean_residual(objective, schedule, 0.6, t) for schedule in (STABLE_DIFFUSION, as_flow(STABLE_DIFFUSION)))
    np.testing.assert_allclose(a, b, atol=0.05 if name in ("ism", "sdi") else 2e-6)
    assert float(jnp.abs(a).max()) > 1e-3


@pytest.mark.parametrize("schedule", [STABLE_DIFFUSION, FLOW], ids=["diffusion", "flow"])
@pytest.mark.parametrize(("objective", "lands"), [(sds(7.5), 0.2 + 7.5 * 0.8), (rfds(7.5), 6.2), (rfds_rev(1.0), 1.0)])
def test_objectives_end_where_they_end_under_diffusion(schedule, objective, lands):
    """SDS and RFDS at mu_null + s (mu_y - mu_null), at every timestep; RFDS-Rev without guidance at mu_y."""
    t = jnp.array([20, 300, 700, 980])
    np.testing.assert_allclose(mean_residual(objective, schedule, lands, t), 0, atol=1e-5)
    assert (mean_residual(objective, schedule, lands + 1.0, t) > 1e-5).all()


# --- at both ends -----------------------------------------------------------------------------------------------------------
ENDS = {
    "flow": FLOW,
    "without noise at t = 0": FLOW._replace(
        alpha_bar=np.square(1 - np.arange(T) / (T - 1)), sigma2=np.square(np.arange(T) / (T - 1))
    ),
    "zero terminal snr": from_betas(scaled_linear_betas(0.00085, 0.012), zero_terminal_snr=True),
}
RESCALED = {"sds in x0": sds(x0_rescale=0.5), "lods in x0": lods_embedding(100.0, x0_rescale=0.5), "lods lora": lods_lora()}


@pytest.mark.parametrize("schedule", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize(
    "objective", [*[make() for make in OBJECTIVES.values()], *RESCALED.values()], ids=[*OBJECTIVES, *RESCALED]
)
def test_where_there_is_no_signal_or_no_noise_everything_is_finite(schedule, objective):
    prior, t = gaussian(MEANS, 0.5, schedule), jnp.array([0, 1, T - 2, T - 1])
    texts = {key: prior.embed({}, [text] * len(t)) for key, text in TEXTS.items()}
    psi = prior.init_psi({}, jax.random.key(0), texts["null"][0], objective.trained_queries)
    denoiser = Denoiser(lambda psi, *asked: prior.predict({}, psi, *asked), schedule)
    latents, pose = {"render": Z, "reference": Z + 1}, jnp.ones((len(t), 16))
    found, eps, z_t = score_at(objective, denoiser, psi, latents, texts, t, pose)
    keys = jax.random.split(jax.random.key(0), len(t))
    steps = [scores_to_steps(objective, denoiser, Z, (end, end), keys) for end in (0, T - 1)]
    loss, slope = jax.value_and_grad(denoising_loss)(psi, objective, denoiser, latents, texts, keys, pose)
    for x in jax.tree.leaves((found, eps, z_t, steps, loss, slope)):
        assert bool(jnp.isfinite(x).all())


@pytest.mark.parametrize("schedule", ENDS.values(), ids=ENDS)
def test_a_sample_that_begins_without_signal_is_finite_even_if_noise_is_all_that_is_predicted(schedule):
    prior = gaussian(MEANS, 0.5, schedule)
    rows = [prior.embed({}, [text] * len(Z)) for text in ("y", "")]
    z = jax.jit(lambda z: ddim(lambda *asked: prior.predict({}, {}, *asked), z, *rows, schedule, s=3.0, steps=4))(NOISE)
    assert bool(jnp.isfinite(z).all())
