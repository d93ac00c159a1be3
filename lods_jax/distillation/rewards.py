"""Rewards of score distillation: of several noises of a view, those count more whose denoised picture a judge likes more.

RewardSDS (Chachy et al. 2025, arXiv 2503.09601) and DreamDPO (Zhou et al. 2025, arXiv 2502.04370). Each view is noised several
times at one timestep; the picture that a noise leads to is the decoded estimate of the clean latents. The score of the view is
the sum of the scores of its noises, weighed by their rewards. Any objective that draws its noise can be weighed so
(`Objective.draws_noise`). A judge that is asked in training may be deceived by it: measure the result by what the judge does not
see.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lods_jax.core.noise_schedule import eps_to_x0
from lods_jax.core.random import split_named
from lods_jax.core.types import Objective
from lods_jax.distillation.scores import Denoiser, Latents, PredictNoise, Texts, draw, predict_noise, predictions_at, score_of

Weigh = Callable[[Array], Array]  # rewards of noises [n b] -> weights [n b]


class Judge(NamedTuple):
    """Rates pictures.

    Attributes:
        params: frozen.
        embed: texts -> what the judge compares pictures with [k d].
        rate: (params, rgb [b h w 3] in [0, 1], embedded [b d]) -> rewards [b].
        sha256: of its weights, if they are a file of the user's; None for a shipped judge.
    """

    params: Any
    embed: Callable[[Sequence[str]], Array]
    rate: Callable[[Any, Array, Array], Array]
    sha256: str | None = None


class Reward(NamedTuple):
    """A judge, and how its rewards weigh the noises of a view.

    Attributes:
        judge: rates the picture that each noise leads to.
        noises: number of noises of a view.
        weigh: rewards [noises b] -> weights of their scores [noises b].
        weigh_unguided: the same for their scores without guidance; None leaves these out.
    """

    judge: Judge
    noises: int
    weigh: Weigh
    weigh_unguided: Weigh | None = None


def best(rewards: Float[Array, "n b"]) -> Float[Array, "n b"]:
    """1 for the noise of each view with the highest of its rewards, 0 for the others."""
    return jax.nn.one_hot(jnp.argmax(rewards, 0), len(rewards), axis=0)


def best_and_worst(rewards: Float[Array, "n b"]) -> Float[Array, "n b"]:
    """0.9 for the noise of each view with the highest of its rewards, -0.1 for that with the lowest."""
    return 0.9 * best(rewards) - 0.1 * best(-rewards)


WEIGHTS: Mapping[str, Weigh] = {
    "softmax": lambda rewards: jax.nn.softmax(rewards, axis=0),
    "best": best,
    "best-worst": best_and_worst,
}


def preference(judge: Judge, noises: int = 2, margin: float = 0.0) -> Reward:
    """DreamDPO (Zhou et al. 2025, section 3.2): towards the preferred noise, and away from the other.

    The score is that of the noise with the highest reward. Where the lowest is apart from it by more than a margin, the score of
    that noise without guidance is subtracted, which leaves the mean of the guidance alone. With it, nothing would be left of the
    mean, and only the judge would move an object.

    Three things are otherwise in the paper's code. Its judge sees the clean latents of the guided prediction, and ours those of
    the prompt's alone, which every objective has. Within the margin its score is the guided prediction with no noise subtracted,
    and ours is that of the objective. It pushes away at a gap of just the margin too, and hence, with a margin of 0, also between
    equal rewards.

    Args:
        judge: rates the pictures.
        noises: of a view; 2 in the paper.
        margin: in units of the reward, at least 0. Rewards that are equal are never apart.

    Returns:
        The reward.
    """

    def away(rewards):
        apart = jnp.max(rewards, 0) - jnp.min(rewards, 0) > margin
        return jnp.where(apart, -best(-rewards), 0.0)

    return Reward(judge, noises, best, away)


def keys_of_noise(keys: Key[Array, "b"], i: Array | int) -> Key[Array, "b"]:
    """The keys of the i-th of the noises that a reward weighs, from those of the score, one per view.

    Not `fold_in(key, i)`, which is the key of the i-th auxiliary prior.
    """
    return jax.vmap(lambda key: jax.random.fold_in(split_named(key, "t noise").noise, i))(keys)


def rewarded_score(
    reward: Reward,
    params: Any,
    decode: Callable[[Array], Array],
    objective: Objective,
    denoiser: Denoiser,
    psi: Any,
    latents: Latents,
    texts: Texts,
    window: tuple[Array | int, Array | int],
    keys: Key[Array, "b"],
    pose: Float[Array, "b 16"] | None = None,
    predict_noise_fn: PredictNoise = predict_noise,
) -> Float[Array, "b h w c"]:
    """The score of the renders under an objective, summed over several noises of each view with the weights of their rewards.

    The timestep of a view is that of `score` with the same key. The clean latents are those that the objective's first query
    implies. A score without guidance is that in which all queries answer as the first does.

    Args:
        reward: the judge, and the weights that its rewards give.
        params: of the judge.
        decode: latents -> rgb [b h w 3] in [0, 1].
        objective: as of `score`.
        denoiser: as of `score`.
        psi: as of `score`.
        latents: as of `score`.
        texts: as of `score`, and under "reward" what `Judge.embed` gave for the prompt of each view [b 1 d].
        window: as of `score`.
        keys: as of `score`.
        pose: as of `score`.
        predict_noise_fn: as of `score`.

    Returns:
        Sum over the noises of weight times w(t) residual [b h w c].
    """
    z = latents["render"]
    t, _ = draw(keys, z, window, denoiser.views)
    weigh = [reward.weigh] if reward.weigh_unguided is None else [reward.weigh, reward.weigh_unguided]

    def one(i):
        _, noise = draw(keys_of_noise(keys, i), z, window, denoiser.views)
        eps, noised, noise = predictions_at(objective, denoiser, psi, latents, texts, t, noise, pose, predict_noise_fn)
        first = next(iter(eps.values()))
        answers = [eps, dict.fromkeys(eps, first)][: len(weigh)]
        x0 = eps_to_x0(denoiser.noise_schedule, first, noised["render"], t)
        rated = reward.judge.rate(params, decode(x0), texts["reward"][:, 0])
        return [score_of(objective, denoiser, e, z, noised, noise, t) for e in answers], rated

    # One after the other: no more memory than one noise takes.
    scores, rewards = jax.lax.map(one, jnp.arange(reward.noises))
    return reduce(jnp.add, (jnp.einsum("nb,nbhwc->bhwc", f(rewards), own) for f, own in zip(weigh, scores, strict=True)))
