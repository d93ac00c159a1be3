"""Rewards: what weighs the noises of a view, and that weighing changes nothing else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.noise_schedule import STABLE_DIFFUSION, eps_to_x0
from lods_jax.distillation.objectives import lods_embedding, sds
from lods_jax.distillation.rewards import WEIGHTS, Reward, best, rewarded_score
from lods_jax.distillation.scores import Denoiser, draw, score, score_at
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


def rewarded(weigh, noises=N, params=50.0, objective=None, decode=lambda z: z):
    reward = Reward(None, lambda texts: texts, red, noises, weigh)
    objective = sds(7.5) if objective is None else objective
    return rewarded_score(reward, params, decode, objective, DENOISER, {}, {"render": Z}, TEXTS, (200, 800), KEYS)


def each():
    """The score of each noise and the picture that it leads to."""
    t, _ = draw(KEYS, Z, (200, 800))
    for i in range(N):
        _, noise = draw(jax.vmap(lambda key: jax.random.fold_in(key, i))(KEYS), Z, (200, 800))  # noqa: B023
        scored, eps, z_t = score_at(sds(7.5), DENOISER, {}, {"render": Z}, TEXTS, t, noise)
        yield scored, eps_to_x0(STABLE_DIFFUSION, eps["y"], z_t, t)


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
        reward = Reward(None, lambda texts: texts, red, 2, best)
        rewarded_score(reward, 1.0, lambda z: z, sds(), denoiser, {}, {"render": Z}, TEXTS, (200, 800), KEYS)
        score(sds(), denoiser, {}, {"render": Z}, TEXTS, (200, 800), KEYS)
    assert len(asked) == 3
    for t in asked:
        np.testing.assert_array_equal(t, asked[-1])


def test_no_gradient_is_needed_of_the_judge():
    """Its rewards are counted, not differentiated: it may round."""
    rounding = Reward(None, lambda texts: texts, lambda params, rgb, asked: jnp.round(red(1e6, rgb, asked)), N, best)
    score_of = rewarded_score(rounding, None, lambda z: z, sds(7.5), DENOISER, {}, {"render": Z}, TEXTS, (200, 800), KEYS)
    np.testing.assert_allclose(score_of, rewarded(best), atol=1e-5)


def test_an_objective_that_learns_is_weighed_alike():
    psi = PRIOR.init_psi({}, jax.random.key(0), TEXTS["null"][0], lods_embedding().trained_queries)
    reward = Reward(None, lambda texts: texts, red, N, best)
    found = rewarded_score(reward, 50.0, lambda z: z, lods_embedding(), DENOISER, psi, {"render": Z}, TEXTS, (200, 800), KEYS)
    assert bool(jnp.isfinite(found).all())
