"""Rewards of score distillation: of several noises of a view, those count more whose denoised picture a judge likes more.

RewardSDS (Chachy et al. 2025, arXiv 2503.09601). Each view is noised several times at one timestep; the picture that a noise
leads to is the decoded estimate of the clean latents. The score of the view is the sum of the scores of its noises, weighed by
their rewards. Any objective can be weighed so. A judge that is asked in training may be deceived by it: measure the result by
what the judge does not see.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lods_jax.core.noise_schedule import eps_to_x0
from lods_jax.core.types import Objective
from lods_jax.distillation.scores import Denoiser, Latents, PredictNoise, Texts, draw, predict_noise, score_at

Weigh = Callable[[Array], Array]  # rewards of noises [n b] -> weights [n b]


class Reward(NamedTuple):
    """A judge of pictures, and how its rewards weigh the noises of a view.

    Attributes:
        params: of the judge, frozen.
        embed: texts -> what the judge compares pictures with [k d].
        rate: (params, rgb [b h w 3] in [0, 1], embedded [b d]) -> rewards [b].
        noises: number of noises of a view.
        weigh: rewards [noises b] -> weights [noises b].
    """

    params: Any
    embed: Callable[[Sequence[str]], Array]
    rate: Callable[[Any, Array, Array], Array]
    noises: int
    weigh: Weigh


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
    implies.

    Args:
        reward: the judge.
        params: of the judge.
        decode: latents -> rgb [b h w 3] in [0, 1].
        objective: as of `score`.
        denoiser: as of `score`.
        psi: as of `score`.
        latents: as of `score`.
        texts: as of `score`, and under "reward" what `reward.embed` gave for the prompt of each view [b 1 d].
        window: as of `score`.
        keys: as of `score`.
        pose: as of `score`.
        predict_noise_fn: as of `score`.

    Returns:
        Sum over the noises of weight times w(t) residual [b h w c].
    """
    z = latents["render"]
    t, _ = draw(keys, z, window, denoiser.views)

    def one(i):
        _, noise = draw(jax.vmap(jax.random.fold_in, (0, None))(keys, i), z, window, denoiser.views)
        scored, eps, z_t = score_at(objective, denoiser, psi, latents, texts, t, noise, pose, predict_noise_fn)
        x0 = eps_to_x0(denoiser.noise_schedule, next(iter(eps.values())), z_t, t)
        return scored, reward.rate(params, decode(x0), texts["reward"][:, 0])

    scores, rewards = jax.lax.map(one, jnp.arange(reward.noises))  # one after the other: no more memory than one noise takes
    return jnp.einsum("nb,nbhwc->bhwc", reward.weigh(rewards), scores)
