"""The reward that a configuration names."""

from functools import partial
from pathlib import Path

from lods_jax.config import ObjectiveConfig
from lods_jax.core.errors import UserError
from lods_jax.distillation.rewards import WEIGHTS, Judge, Reward, preference
from lods_jax.priors.clip import likeness, load_clip, weight_files
from lods_jax.priors.hub import file_hash
from lods_jax.priors.registry import world_of

NONE, CLASSIFIER = "none", "classifier"  # of objective.reward; anything else is the folder of a CLIP


def reward_of(o: ObjectiveConfig, prior: str) -> Reward | None:
    """The judge that weighs the noises of a run's views, and how.

    Args:
        o: settings of the objective.
        prior: its name.

    Returns:
        The reward; None without one.

    Raises:
        UserError: the world of the prior has no judge.
        FileNotFoundError: a file of the CLIP is missing.
        ValueError: the folder holds no CLIP.
    """
    if o.reward == NONE:
        return None
    judge = classifier_of(prior) if o.reward == CLASSIFIER else clip_of(Path(o.reward))
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


def clip_of(folder: Path) -> Judge:
    """A CLIP as a judge: its reward is a hundred times the cosine of picture and prompt, with the words of the view.

    Args:
        folder: as transformers saves it.

    Returns:
        The judge.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the folder holds another network.
    """
    clip = load_clip(folder)
    return Judge(clip.image_params, clip.embed_texts, partial(likeness, clip), file_hash(*weight_files(folder)))
