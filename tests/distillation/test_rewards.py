"""Rewards: what weighs the noises of a view, and that weighing changes nothing else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.noise_schedule import STABLE_DIFFUSION, eps_to_x0
from lods_jax.distillation.objectives import csd, lods_embedding, sds
from lods_jax.distillation.rewards import WEIGHTS, Judge, Reward, best, keys_of_noise, preference, rewarded_score
from lods_jax.distillation.scores import Denoiser, draw, predictions_at, score, score_of
from lods_jax.priors.gaussian import gaussian

B, N = 2, 3
PRIOR = gaussian({"": 0.2, "y": 1.0})
DENOISER = Denoiser(partial(PRIOR.predict, {}), STABLE_DIFFUSION)
Z = jax.random.normal(jax.random.key(0), (B, 4, 4, 3))
KEYS = jax.random.split(jax.random.key(1), B)
TEXTS = {name: PRIOR.embed({}, [text] * B) for name, text in {"prompt": "y", "null": ""}.items()}
TEXTS |= {"reward": jnp.arange(B, dtype=jnp.float32)[:, None, None]}


def red(params, rgb, asked):
    """Likes red pictures in the first view, and pictures that are not in the second."""
    return params * (1 - 2 * asked[:, 0]) * rgb[..., 0].mean((1, 2))


JUDGE = Judge(None, lambda texts: texts, red)


def rewarded(weigh, noises=N, params=50.0, objective=None, decode=lambda z: z):
    return scored_by(Reward(JUDGE, noises, weigh), params, objective, decode)


def scored_by(reward, params=50.0, objective=None, decode=lambda z: z):
    objective = sds(7.5) if objective is None else objective
    return rewarded_score(reward, params, decode, objective, DENOISER, {}, {"render": Z}, TEXTS, (200, 800), KEYS)


def each(objective=None):
    """The score of each noise and the picture that it leads to."""
    objective = sds(7.5) if objective is None else objective
    t, _ = draw(KEYS, Z, (200, 800))
    for i in range(N):
        _, noise = draw(keys_of_noise(KEYS, i), Z, (200, 800))
        eps, noised, noise = predictions_at(objective, DENOISER, {}, {"render": Z}, TEXTS, t, noise)
        scored = score_of(objective, DENOISER, eps, Z, noised, noise, t)
        yield scored, eps_to_x0(STABLE_DIFFUSION, eps["y"], noised["render"], t)


def test_with_equal_rewards_the_score_is_the_mean_over_the_noises():
    mean = jnp.mean(jnp.stack([scored for scored, _ in each()]), 0)
    np.testing.assert_allclose(rewarded(WEIGHTS["softmax"], params=0.0), mean, atol=1e-5)


def test_the_best_noise_of_each_view_is_the_one_whose_picture_its_judge_likes():
    scores, pictures = (jnp.stack(x) for x in zip(*each(), strict=True))
    likes = pictures[..., 0].mean((2, 3))
    chosen = [int(jnp.argmax(likes[:, 0])), int(jnp.argmin(likes[:, 1]))]
    assert chosen[0] != 0 or chosen[1] != 0  # the first noise would be no test
    np.testing.assert_allclose(rewarded(best), jnp.stack([scores[chosen[0], 0], scores[chosen[1], 1]]), atol=1e-5)


def test_a_judge_that_is_sure_makes_softmax_the_best():
    np.testing.assert_allclose(rewarded(WEIGHTS["softmax"], params=1e6), rewarded(best), atol=1e-4)


@pytest.mark.parametrize(("name", "total"), [("softmax", 1.0), ("best", 1.0), ("best-worst", 0.8)])
def test_weights_go_up_with_the_reward_and_have_their_sum(name, total):
    rewards = jnp.array([[0.1, 3.0], [2.0, 1.0], [1.0, 2.0]])
    weights = WEIGHTS[name](rewards)
    np.testing.assert_allclose(weights.sum(0), total, atol=1e-6)
    for view in range(2):
        assert list(jnp.argsort(rewards[:, view])) == list(jnp.argsort(weights[:, view] + 1e-6 * rewards[:, view]))


def test_timesteps_are_those_of_the_score_without_a_reward():
    """One timestep in the window: then one noise differs from that of `score` by its draw alone."""
    asked = []

    def predict(psi, z_t, t, cond):
        asked.append(np.asarray(t))
        return z_t

    with jax.disable_jit():
        denoiser = Denoiser(predict, STABLE_DIFFUSION)
        reward = Reward(JUDGE, 2, best)
        rewarded_score(reward, 1.0, lambda z: z, sds(), denoiser, {}, {"render": Z}, TEXTS, (200, 800), KEYS)
        score(sds(), denoiser, {}, {"render": Z}, TEXTS, (200, 800), KEYS)
    assert len(asked) == 3
    for t in asked:
        np.testing.assert_array_equal(t, asked[-1])


def test_no_gradient_is_needed_of_the_judge():
    """Its rewards are counted, not differentiated: it may round."""
    rounding = Reward(JUDGE._replace(rate=lambda params, rgb, asked: jnp.round(red(1e6, rgb, asked))), N, best)
    np.testing.assert_allclose(scored_by(rounding), rewarded(best), atol=1e-5)


def test_an_objective_that_learns_is_weighed_alike():
    psi = PRIOR.init_psi({}, jax.random.key(0), TEXTS["null"][0], lods_embedding().trained_queries)
    reward = Reward(JUDGE, N, best)
    found = rewarded_score(reward, 50.0, lambda z: z, lods_embedding(), DENOISER, psi, {"render": Z}, TEXTS, (200, 800), KEYS)
    assert bool(jnp.isfinite(found).all())


# --- DreamDPO ---------------------------------------------------------------------------------------------------------------
def likes():
    """The rewards of the noises [n b], for a judge of strength 1, and the scores that they make with guidance and without it."""
    guided, pictures = (jnp.stack(x) for x in zip(*each(), strict=True))
    unguided = jnp.stack([scored for scored, _ in each(sds(1.0, scale=1 / 7.5))])
    return jnp.stack([red(1.0, rgb, TEXTS["reward"][:, 0]) for rgb in pictures]), guided, unguided


def test_with_equal_rewards_a_preference_is_the_plain_score_of_one_noise():
    plain, _ = next(each())
    np.testing.assert_allclose(scored_by(preference(JUDGE, N), params=0.0), plain, atol=1e-5)


def test_within_the_margin_a_preference_is_the_plain_score_of_the_better_noise():
    np.testing.assert_allclose(scored_by(preference(JUDGE, N, margin=1e9)), rewarded(best), atol=1e-5)


def test_apart_by_more_than_the_margin_the_worse_noise_is_subtracted_as_it_is_without_guidance():
    """Its margin lies between what the views are apart by: one of them is pushed, the other is not."""
    rewards, guided, unguided = likes()
    apart = rewards.max(0) - rewards.min(0)
    pushed = int(jnp.argmax(apart))
    found = scored_by(preference(JUDGE, N, margin=float(apart.mean())), params=1.0)
    for view in range(B):
        better, worse = int(jnp.argmax(rewards[:, view])), int(jnp.argmin(rewards[:, view]))
        expected = guided[better, view] - (view == pushed) * unguided[worse, view]
        np.testing.assert_allclose(found[view], expected, atol=1e-5)


def test_a_judge_of_the_opposite_taste_exchanges_the_noises():
    rewards, guided, unguided = likes()
    found = scored_by(preference(JUDGE, N), params=-1.0)
    for view in range(B):
        better, worse = int(jnp.argmin(rewards[:, view])), int(jnp.argmax(rewards[:, view]))
        np.testing.assert_allclose(found[view], guided[better, view] - unguided[worse, view], atol=1e-5)


@pytest.mark.parametrize("margin", [0.0, 1.5])
def test_which_noise_is_drawn_first_does_not_matter_to_a_preference(margin):
    rewards, order = jnp.array([[0.1, 3.0], [2.0, 1.0], [1.0, 2.0]]), jnp.array([2, 0, 1])
    made = preference(JUDGE, N, margin)
    for weigh in (made.weigh, made.weigh_unguided):
        np.testing.assert_array_equal(weigh(rewards[order]), weigh(rewards)[order])


def test_without_guidance_an_objective_is_the_prompt_against_the_noise():
    """Of an objective that is guidance alone, nothing is left to push away from."""
    np.testing.assert_allclose(scored_by(preference(JUDGE, N), objective=csd()), rewarded(best, objective=csd()), atol=1e-5)
    expected = scored_by(preference(JUDGE, N), objective=sds(30.0))
    psi = PRIOR.init_psi({}, jax.random.key(0), TEXTS["null"][0], lods_embedding().trained_queries)
    untrained = rewarded_score(
        preference(JUDGE, N), 50.0, lambda z: z, lods_embedding(30.0), DENOISER, psi, {"render": Z}, TEXTS, (200, 800), KEYS
    )
    np.testing.assert_allclose(untrained, expected, atol=1e-5)
