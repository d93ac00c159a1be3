"""Further priors that are distilled beside that of a step, as Zero-1-to-3 is in Magic123. They learn nothing."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int, Key

from lods_jax.core.types import Camera, Objective, Prior
from lods_jax.distillation.scores import PredictNoise, bind, score
from lods_jax.distillation.turns import cond_or_zeros


class AuxiliaryPrior(NamedTuple):
    """A prior that is distilled beside that of the step.

    Attributes:
        name: of its metric, `score_rms_NAME`.
        prior: the prior.
        objective: whose score is taken; it must train no query.
        select_prompts: (tables, camera) -> ({name: tokens [b n d]}, the function that predicts with them).
        window: step -> lowest and highest timestep, both included.
        weight: step -> the factor of its score.
        shares_latents: whether its autoencoder is that of the step's prior, so that its latents need not be encoded again.
    """

    name: str
    prior: Prior
    objective: Objective
    select_prompts: Callable[..., tuple[dict[str, Array], PredictNoise]]
    window: Callable[[Array], tuple[Array | int, Array | int]]
    weight: Callable[[Array], Array | float]
    shares_latents: bool = False


def auxiliary_scores(
    priors: Sequence[AuxiliaryPrior],
    given: Sequence[tuple[Any, Any]],
    latents: Sequence[Float[Array, "b _ _ _"]],
    camera: Camera,
    step: Int[Array, ""],
    keys: Key[Array, "b"],
    on: Array | bool = True,
) -> dict[str, Float[Array, "b _ _ _"]]:
    """The weighed scores of auxiliary priors.

    Args:
        priors: the priors.
        given: (frozen parameters, prompt tables) of each, a `Reference`'s `auxiliary`.
        latents: of the renders [b m n c], for each.
        camera: of the renders.
        step: index of the step, which windows and weights depend on.
        keys: one per view, from which each prior gets keys of its own.
        on: whether the scene is updated in this step; if not, nothing is asked and scores are zeros.

    Returns:
        {"score_rms_NAME": weight w(t) residual [b m n c]}.
    """
    scores, pose = {}, camera.c2w.reshape(-1, 16)
    for i, (g, (weights, tables), z) in enumerate(zip(priors, given, latents, strict=True), 1):
        rows, predict_noise_fn = g.select_prompts(tables, camera)
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        asked = ({"render": z}, rows, g.window(step), own, pose, predict_noise_fn)
        scored = partial(score, g.objective, bind(g.prior, weights), {}, *asked)
        scores[f"score_rms_{g.name}"] = g.weight(step) * cond_or_zeros(on, scored)
    return scores
