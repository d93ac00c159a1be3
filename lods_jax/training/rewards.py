"""The reward that a configuration names."""

from lods_jax.config import ObjectiveConfig
from lods_jax.core.errors import UserError
from lods_jax.distillation.rewards import WEIGHTS, Judge, Reward, preference
from lods_jax.priors.registry import world_of


def reward_of(o: ObjectiveConfig, prior: str) -> Reward | None:
    """The judge that weighs the noises of a run's views, and how.

    Args:
        o: settings of the objective.
        prior: its name.

    Returns:
        The reward; None without one.

    Raises:
        UserError: the world of the prior has no judge.
    """
    if o.reward == "none":
        return None
    judge = classifier_of(prior)
    if o.noise_weights == "preference":
        return preference(judge, o.noises, o.reward_margin)
    return Reward(judge, o.noises, WEIGHTS[o.noise_weights])


def classifier_of(prior: str) -> Judge:
    """The judge that the world of a prior has.

    Args:
        prior: its name.

    Returns:
        The judge.

    Raises:
        UserError: there is none.
    """
    world = world_of(prior)
    if world is None or world.judge is None:
        raise UserError(
            f"objective.reward classifier judges objects of the tabletop world, and the prior is {prior}: take it out"
        )
    return world.judge()
