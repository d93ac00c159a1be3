"""The reward that a configuration names."""

from lods_jax.config import ObjectiveConfig
from lods_jax.core.errors import UserError
from lods_jax.distillation.rewards import WEIGHTS, Reward
from lods_jax.priors.registry import world_of


def reward_of(o: ObjectiveConfig, prior: str) -> Reward | None:
    """The judge that weighs the noises of a run's views.

    Args:
        o: settings of the objective.
        prior: its name.

    Returns:
        The judge; None without one.

    Raises:
        UserError: the world of the prior has none.
    """
    if o.reward == "none":
        return None
    world = world_of(prior)
    if world is None or world.reward is None:
        raise UserError(
            f"objective.reward {o.reward} judges objects of the tabletop world, and the prior is {prior}: take it out"
        )
    return world.reward(o.noises, WEIGHTS[o.noise_weights])
