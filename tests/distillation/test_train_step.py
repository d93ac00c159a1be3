"""Laws of the train step, on one pixel and a prior whose score is known in closed form."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lods_jax.core.cameras import sample_orbit
from lods_jax.core.noise_schedule import signal_and_noise
from lods_jax.core.trees import leaf_names, not_finite
from lods_jax.core.types import Objective, Query, Reference
from lods_jax.distillation.fixed_noise import one_noise
from lods_jax.distillation.objectives import ism, lods_embedding, sds
from lods_jax.distillation.parallel import compile_train_step
from lods_jax.distillation.rewards import Judge, Reward, best
from lods_jax.distillation.train_step import init_state, make_train_step
from lods_jax.priors.gaussian import gaussian
from lods_jax.scenes.ensemble import ensemble
from lods_jax.scenes.images import pixels

ROOT = Path(__file__).resolve().parents[2]
BATCH = 8
PRIOR = gaussian({"": 0.2, "y": 1.0}, 0.5)
WEIGHTS = PRIOR.init(jax.random.key(0))
TEXTS = {"prompt": PRIOR.embed(WEIGHTS, ["y"] * 4), "null": PRIOR.embed(WEIGHTS, [""] * 4), "reward": jnp.zeros((4, 1, 1))}
TX = optax.adam(optax.cosine_decay_schedule(0.05, 600, 0.02), b1=0.5), optax.adam(0.05)


def parts(objective, regularizers=lambda render, step: {}, scene=pixels(1, 1, start=0.5), prior=PRIOR, **options):  # noqa: B008
    """The halves of the step and the first state of one pixel, or of another scene, under an objective."""
    build = make_train_step(
        scene, prior, objective, cameras=lambda keys, views: sample_orbit(keys, views, BATCH), window=lambda step: (20, 980),
        regularizers=regularizers, tx_theta=TX[0], tx_psi=TX[1], batch=BATCH, **options,
    )  # fmt: skip
    fitted = [objective.queries[objective.trained_query]] if objective.trained_query else []
    psi = PRIOR.init_psi(WEIGHTS, jax.random.key(1), TEXTS["null"][0], fitted)
    return build, lambda: init_state(scene, psi, *TX, jax.random.key(2))


@cache
def landing(name, s):
    build, start = parts({"sds": sds, "lods": lods_embedding}[name](s))
    step, state, values = compile_train_step(build, "jit", BATCH), start(), []
    for _ in range(800):
        state, _ = step(state, WEIGHTS, TEXTS, None, jax.random.key(3))
        values.append(state.theta["rgb"].mean())
    return float(np.mean(values[-200:]))


@pytest.mark.parametrize("s", [1.0, 3.0])
def test_sds_lands_where_its_residual_vanishes(s):
    """mu_null + s (mu_y - mu_null): the noise of 200 averaged steps is below the tolerance."""
    np.testing.assert_allclose(landing("sds", s), 0.2 + 0.8 * s, atol=0.05)


def test_in_turns_a_step_moves_the_scene_or_the_prior():
    """(2, 1): two steps of the scene, one of the prior. What has no turn is the same bits, its optimizer included."""
    build, start = parts(lods_embedding(100.0), schedule=(2, 1))
    step, state = compile_train_step(build, "jit", BATCH), start()
    for i in range(6):
        before = jax.tree.map(np.asarray, state)
        state, metrics = step(state, WEIGHTS, TEXTS, None, jax.random.key(3))
        scene, prior = (
            not all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True))
            for new, old in (((state.theta, state.opt_theta), (before.theta, before.opt_theta)),
                             ((state.psi, state.opt_psi), (before.psi, before.opt_psi)))
        )  # fmt: skip
        assert (scene, prior) == ((True, False) if i % 3 < 2 else (False, True))
        assert np.isnan(metrics["fit"]) == (not prior)
        assert np.isnan(metrics["score_rms"]) == (not scene)
    assert int(state.step) == 6
    assert int(state.skipped) == 0


def test_in_turns_lods_lands_on_the_good_image_too():
    build, start = parts(lods_embedding(100.0), schedule=(1, 1))
    step, state, values = compile_train_step(build, "jit", BATCH), start(), []
    for _ in range(1600):
        state, _ = step(state, WEIGHTS, TEXTS, None, jax.random.key(3))
        values.append(state.theta["rgb"].mean())
    np.testing.assert_allclose(np.mean(values[-400:]), 1.0, atol=0.05)


def test_encoding_one_view_after_the_other_changes_nothing():
    states = []
    for slicing in (False, True):
        build, start = parts(lods_embedding(100.0), vae_slicing=slicing)
        states.append(compile_train_step(build, "jit", BATCH)(start(), WEIGHTS, TEXTS, None, jax.random.key(3))[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *states)


@pytest.mark.parametrize(
    ("objective", "options", "says"),
    [
        (sds(), {"schedule": (1, 1)}, "need an objective that learns something"),
        (lods_embedding(), {"schedule": (1, 1), "fit_shares_noise": True}, "no fit_shares_noise"),
        (sds(), {"fit_first": 3}, "fit_first need an objective that learns"),
        (lods_embedding(), {"schedule": (0, 1)}, "each at least 1, got"),
        (sds(), {"fit_shares_noise": True}, "fit_shares_noise needs an objective that learns"),
    ],
)
def test_options_that_contradict_an_objective_are_refused(objective, options, says):
    with pytest.raises(ValueError, match=says):
        parts(objective, **options)


@pytest.mark.parametrize("s", [10.0, 100.0])
def test_lods_lands_on_the_good_image_for_every_guidance(s):
    np.testing.assert_allclose(landing("lods", s), 1.0, atol=0.05)


def test_the_score_moves_the_scene_and_the_fit_moves_psi():
    build, start = parts(lods_embedding())
    state, _ = compile_train_step(build, "jit", BATCH)(start(), WEIGHTS, TEXTS, None, jax.random.key(3))
    before = start()
    assert not np.array_equal(state.theta["rgb"], before.theta["rgb"])
    assert not np.array_equal(state.psi["embedding"], before.psi["embedding"])
    assert int(state.step) == 1


def test_k_and_k_steps_equal_2k():
    """Nothing is hidden outside the state: a state carried over by its bytes goes on as if nothing had happened."""
    build, start = parts(lods_embedding())
    step, key = compile_train_step(build, "jit", BATCH), jax.random.key(3)
    whole, state = start(), start()
    for _ in range(4):
        whole, _ = step(whole, WEIGHTS, TEXTS, None, key)
    for _ in range(2):
        state, _ = step(state, WEIGHTS, TEXTS, None, key)
    leaves, treedef = jax.tree.flatten(state)
    state = jax.tree.unflatten(treedef, [jnp.asarray(np.asarray(x)) for x in leaves])
    for _ in range(2):
        state, _ = compile_train_step(build, "jit", BATCH)(state, WEIGHTS, TEXTS, None, key)
    jax.tree.map(np.testing.assert_array_equal, state, whole)


def test_a_step_with_a_nan_changes_nothing_and_is_counted():
    bad = Objective(sds().queries, residual=lambda e, noise, t: jnp.full_like(noise, jnp.nan))
    build, start = parts(bad)
    state, metrics = compile_train_step(build, "jit", BATCH)(start(), WEIGHTS, TEXTS, None, jax.random.key(3))
    np.testing.assert_array_equal(state.theta["rgb"], start().theta["rgb"])
    jax.tree.map(np.testing.assert_array_equal, state.opt_theta, start().opt_theta)
    assert (int(state.skipped), int(state.step)) == (1, 1)
    assert np.isnan(metrics["score_rms"])


def test_a_penalty_pulls_the_scene_alone():
    """Its weight reaches theta at full strength: one view or eight, the mean over views is what counts."""
    still = Objective(sds().queries, residual=lambda e, noise, t: jnp.zeros_like(noise))
    build, start = parts(still, regularizers=lambda render, step: {"dark": 3.0 * jnp.mean(render.rgb, (1, 2, 3))})
    _, metrics = compile_train_step(build, "jit", BATCH)(start(), WEIGHTS, TEXTS, None, jax.random.key(3))
    # d mean(rgb) / d channel = 1/3 in each of three channels, times the weight 3: a gradient of norm sqrt(3).
    np.testing.assert_allclose(metrics["grad"], 3**0.5, rtol=1e-5)
    np.testing.assert_allclose(metrics["dark"], 1.5, rtol=1e-5)


@pytest.mark.parametrize(("mode", "batch"), [("tpu", 8), ("threads", 8)])
def test_an_unknown_mode_is_refused(mode, batch):
    with pytest.raises(ValueError, match="mode must be jit, pmap or shard_map"):
        compile_train_step(parts(sds())[0], mode, batch)


MANY_DEVICES = """
import hashlib
import jax, numpy as np
from lods_jax.training.compilation import compilations
from tests.distillation.test_train_step import *
assert len(jax.devices()) == 8
def after(mode, n, reduce="sum"):
    build, start = parts(lods_embedding())
    step, state = compile_train_step(build, mode, BATCH, jax.devices()[:n], reduce), start()
    key = jax.random.key(3)
    state, metrics = step(state, WEIGHTS, TEXTS, None, key)
    with compilations() as again:
        for _ in range(2):
            state, metrics = step(state, WEIGHTS, TEXTS, None, key)
    assert not again, (mode, n, reduce, again)
    return jax.tree.map(np.asarray, (state.theta, state.psi, metrics))
one = after("jit", 1)
close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
for mode, n in (("pmap", 2), ("shard_map", 2), ("shard_map", 8)):
    jax.tree.map(close, after(mode, n), one)
ordered = {n: after("shard_map", n, "ordered") for n in (1, 2, 4, 8)}
jax.tree.map(close, ordered[1], one)
bits = lambda tree: hashlib.sha256(b"".join(x.tobytes() for x in jax.tree.leaves(tree))).hexdigest()
print({bits(tree) for tree in ordered.values()})
print("equal")
"""


def test_any_number_of_devices_equals_one():
    """Each view's randomness comes from its global index, sums cross devices: pmap and shard_map give one device's numbers, and
    in order the same bits. All of them compile for the first step alone."""
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run([sys.executable, "-c", MANY_DEVICES], env=env, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.strip().endswith("equal"), done.stderr[-2000:]
    assert len(done.stdout.splitlines()[0].split(",")) == 1  # one SHA-256


def test_in_order_there_are_no_reference_latents():
    build, start = parts(lods_embedding())
    with pytest.raises(ValueError, match="no reference latents"):
        compile_train_step(build, "jit", BATCH, reduce="ordered")(
            start(), WEIGHTS, TEXTS, Reference(latents=jnp.zeros(3)), jax.random.key(3)
        )


def test_the_first_leaf_that_is_not_finite_is_found_by_name():
    tree = {"b": jnp.zeros(3), "a": {"x": jnp.ones(2), "y": jnp.array([1.0, jnp.inf])}, "c": jnp.array(jnp.nan)}
    assert leaf_names(tree)[int(not_finite(tree))] == "a.y"
    assert int(not_finite(jax.tree.map(jnp.zeros_like, tree))) == -1
    assert int(not_finite({})) == -1


# --- images and further priors ------------------------------------------------------------------------------------------------
def seen_as(value, weight):
    """A known view that is to look like `value`, and what a step is held against."""
    from lods_jax.core.types import ReferenceImage
    from lods_jax.distillation.known_views import ReferenceView
    from lods_jax.distillation.regularizers import image_errors

    camera = sample_orbit(jax.random.split(jax.random.key(0), 1), jnp.arange(1), 1)
    picture = ReferenceImage(jnp.full((1, 1, 3), value), jnp.ones((1, 1, 1)), camera)
    return ReferenceView(pixels(1, 1), image_errors({"rgb": lambda step: weight})), Reference(image=picture)


def other(weight, means=None, shares=False):
    """The same kind of prior once more, as a further guidance, and its inputs."""
    from lods_jax.distillation.auxiliary_priors import AuxiliaryPrior
    from lods_jax.distillation.train_step import select_view_prompts

    prior = gaussian(means or {"": 0.2, "y": 1.0}, 0.5)
    weights = prior.init(jax.random.key(0))
    texts = {"prompt": prior.embed(weights, ["y"] * 4), "null": prior.embed(weights, [""] * 4)}
    window, weigh = lambda step: (20, 980), lambda step: weight
    return AuxiliaryPrior("other", prior, sds(1.0), select_view_prompts, window, weigh, shares), (weights, texts)


def gradient(objective, reference=None, views=None, regularizers=lambda render, step: {}, **options):
    build, start = parts(objective, regularizers, **options)
    return build.compute_grads(
        start(), WEIGHTS, TEXTS, reference, jax.random.key(3), jnp.arange(BATCH) if views is None else views
    )


def test_a_known_view_counts_once_however_the_views_are_split():
    reference_view, reference = seen_as(0.9, 2.0)
    zero = sds(1.0)._replace(residual=lambda e, noise, t: 0 * noise)
    whole = gradient(zero, reference, reference_view=reference_view).g_theta["rgb"]
    # d/dx of 2 mean((x - 0.9)^2) over three colours, at 0.5.
    np.testing.assert_allclose(whole, 2 * 2 * (0.5 - 0.9) / 3 * np.ones_like(whole), rtol=1e-5)
    halves = [
        gradient(zero, reference, views, reference_view=reference_view).g_theta["rgb"]
        for views in (jnp.arange(3), jnp.arange(3, BATCH))
    ]
    np.testing.assert_allclose(sum(halves), whole, rtol=1e-5)


def test_a_further_prior_adds_its_pull_with_its_weight():
    alone, none = gradient(sds(1.0)).g_theta["rgb"], sds(1.0)._replace(residual=lambda e, noise, t: 0 * noise)

    def with_other(objective, weight, shares=False):
        auxiliary_prior, inputs = other(weight, shares=shares)
        return gradient(objective, Reference(auxiliary=(inputs,)), auxiliary_priors=(auxiliary_prior,)).g_theta["rgb"]

    np.testing.assert_array_equal(with_other(sds(1.0), 0.0), alone)
    pull = with_other(none, 1.0)
    assert np.abs(pull).max() > 1e-3
    np.testing.assert_allclose(with_other(none, 2.5), 2.5 * pull, rtol=1e-5)
    np.testing.assert_allclose(with_other(sds(1.0), 1.0), alone + pull, rtol=1e-4, atol=1e-7)
    # Latents that are shared are the same latents, encoded once.
    np.testing.assert_allclose(with_other(sds(1.0), 1.0, shares=True), alone + pull, rtol=1e-4, atol=1e-7)


def test_two_priors_meet_in_the_middle():
    """One prior draws to 1, the other to 0.4, with the same weight: the residuals cancel at 0.7."""
    auxiliary_prior, inputs = other(1.0, {"": 0.2, "y": 0.4})
    build, start = parts(sds(1.0), auxiliary_priors=(auxiliary_prior,))
    step, state, values = compile_train_step(build, "jit", BATCH), start(), []
    for _ in range(800):
        state, metrics = step(state, WEIGHTS, TEXTS, Reference(auxiliary=(inputs,)), jax.random.key(3))
        values.append(state.theta["rgb"].mean())
    np.testing.assert_allclose(np.mean(values[-200:]), 0.7, atol=0.05)
    assert metrics["score_rms_other"] > 0


@pytest.mark.parametrize("reduce", ["sum", "ordered"])
def test_pictures_and_further_priors_do_not_depend_on_the_devices(reduce):
    reference_view, reference = seen_as(0.9, 2.0)
    auxiliary_prior, inputs = other(0.5)
    build, start = parts(sds(3.0), reference_view=reference_view, auxiliary_priors=(auxiliary_prior,))
    reference, ends = reference.replace(auxiliary=(inputs,)), []
    for mode, n in (("jit", 1), ("shard_map", 1)):
        step, state = compile_train_step(build, mode, BATCH, jax.devices()[:n], reduce), start()
        for _ in range(3):
            state, metrics = step(state, WEIGHTS, TEXTS, reference, jax.random.key(3))
        ends.append((state.theta, metrics["image_rgb"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *ends)


# --- rewards ----------------------------------------------------------------------------------------------------------------
LIKES_RED = Reward(Judge(None, lambda texts: texts, lambda params, rgb, asked: rgb[:, 0, 0, 0]), 3, best)


@pytest.mark.parametrize(("slicing", "together"), [(False, BATCH), (True, 1)])
def test_where_views_are_sliced_a_judge_has_them_decoded_one_after_the_other_too(slicing, together):
    sizes = []
    prior = PRIOR._replace(decode=lambda weights, z: sizes.append(len(z)) or PRIOR.decode(weights, z))
    jax.eval_shape(lambda: gradient(sds(3.0), prior=prior, reward=LIKES_RED, vae_slicing=slicing).g_theta)
    assert set(sizes) == {together}


def test_the_noises_of_a_reward_are_none_of_a_further_priors():
    """Found from z_t, the latents being 0.5 everywhere."""
    noises = {"own": [], "other": []}

    def recording(prior, name):
        def predict(weights, psi, z_t, t, cond):
            signal, sigma = signal_and_noise(prior.noise_schedule, t, z_t)
            noises[name].append(np.asarray((z_t - 0.5 * signal) / sigma)[:BATCH])
            return prior.predict(weights, psi, z_t, t, cond)

        return prior._replace(predict=predict)

    auxiliary_prior, inputs = other(1.0)
    options = {"prior": recording(PRIOR, "own"), "reward": LIKES_RED}
    options["auxiliary_priors"] = (auxiliary_prior._replace(prior=recording(auxiliary_prior.prior, "other")),)
    with jax.disable_jit():
        gradient(sds(3.0), Reference(auxiliary=(inputs,)), **options)
    assert (len(noises["own"]), len(noises["other"])) == (LIKES_RED.noises, 1)
    for noise in noises["own"]:
        assert abs(noise - noises["other"][0]).max((1, 2, 3)).min() > 1e-2


# --- noise that stays -------------------------------------------------------------------------------------------------------
KEY = jax.random.key(3)
STAYS = Objective({"y": Query("prompt")}, residual=lambda e, noise, t: noise, noise=one_noise)


def test_a_noise_of_the_objective_is_one_for_all_views_and_steps_of_a_run():
    """The residual is the noise itself, so that gradients point along it, whatever the timesteps of the views."""
    build, start = parts(STAYS)
    grads = jax.jit(lambda key, step, views: build.compute_grads(start().replace(step=step), WEIGHTS, TEXTS, None, key, views))

    def direction(seed, step, views=range(BATCH)):
        g = grads(jax.random.key(seed), step, jnp.array([*views])).g_theta["rgb"].ravel()
        return np.asarray(g / jnp.linalg.norm(g))

    first = direction(3, 0)
    np.testing.assert_allclose(direction(3, 7), first, atol=1e-5)
    np.testing.assert_allclose(direction(3, 0, range(BATCH, 2 * BATCH)), first, atol=1e-5)
    assert abs(direction(4, 0) - first).max() > 0.1


def test_each_particle_has_a_noise_of_its_own_that_stays():
    build, start = parts(STAYS, scene=ensemble(pixels(1, 1), 2))
    grads = jax.jit(lambda step: build.compute_grads(start().replace(step=step), WEIGHTS, TEXTS, None, KEY, jnp.arange(BATCH)))

    def directions(step):
        g = grads(step).g_theta["rgb"].reshape(2, 3)
        return np.asarray(g / jnp.linalg.norm(g, axis=1, keepdims=True))

    np.testing.assert_allclose(directions(7), directions(0), atol=1e-5)
    assert abs(directions(0)[0] - directions(0)[1]).max() > 0.1


def test_what_would_draw_a_noise_of_its_own_is_refused_beside_one_that_stays():
    reward = Reward(Judge(None, lambda texts: texts, lambda params, rgb, asked: rgb[:, 0, 0, 0]), 2, best)
    with pytest.raises(ValueError, match="weighs several noises of a view, and this objective draws none"):
        parts(STAYS, reward=reward)
    with pytest.raises(ValueError, match="weighs several noises of a view, and this objective draws none"):
        parts(ism(), reward=reward)
    with pytest.raises(ValueError, match="draws one noise at random"):
        parts(lods_embedding()._replace(noise=one_noise), fit_shares_noise=True)
