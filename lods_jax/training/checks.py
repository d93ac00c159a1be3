"""Checks of a run that need its objective or its prior, before any weights are read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lods_jax.config import Config
from lods_jax.core.errors import UserError
from lods_jax.core.types import Objective
from lods_jax.training.rewards import CLASSIFIER, NONE


def check_precision(config: Config, objective: Objective) -> None:
    """Checks that what is learned of the prior has the precision to learn.

    Args:
        config: of the run.
        objective: of the run.

    Raises:
        UserError: it has not.
    """
    if (objective.trained_query or config.image.invert) and config.prior.dtype == "float16":
        learns = f"objective {config.objective.name} learns" if objective.trained_query else "image.invert fits an embedding"
        raise UserError(f"{learns}, and float16 would round its gradients away: pass --prior.dtype bfloat16")


def check_groups(config: Config, views: int) -> None:
    """Checks that a batch consists of whole groups of views, as many for each particle.

    Args:
        config: of the run.
        views: number of views that its prior denoises together.

    Raises:
        UserError: it does not.
    """
    if config.batch % (views * config.particles):
        each = f" of each of {config.particles} particles" if config.particles > 1 else ""
        together = f"the {views} views{each} that this prior denoises together"
        raise UserError(f"batch must be a multiple of {together}, got {config.batch}: pass --batch")
    if views > 1 and config.image.invert:
        raise UserError("image.invert fits an embedding to single images, and this prior takes groups of views: pass --prompt")


def check_reward(config: Config, objective: Objective) -> None:
    """Checks that a reward is one, and that there is something to weigh.

    Args:
        config: of the run.
        objective: of the run.

    Raises:
        UserError: it is no word that stands for one, and no folder; or the objective draws no noise.
    """
    reward = config.objective.reward
    if reward != NONE and not objective.draws_noise:
        raise UserError(f"objective.reward weighs several noises a view, and {config.objective.name} draws none: take it out")
    if reward not in (NONE, CLASSIFIER) and not Path(reward).is_dir():
        raise UserError(f"objective.reward must be {NONE}, {CLASSIFIER} or the folder of a CLIP, got {reward}")


def check_queries(config: Config, objective: Objective, texts: Mapping[str, Any]) -> None:
    """Checks that a run has what the queries of an objective need.

    Args:
        config: of the run.
        objective: of the run.
        texts: {name: ...} that there are.

    Raises:
        UserError: a query needs a source object, or a text that is missing.
    """
    for query in objective.queries.values():
        if query.latents != "render" and not config.edit.run:
            raise UserError(f"objective {config.objective.name} compares with a source object: use edit-3d, or pass --edit.run")
        if query.text != "learned" and query.text not in texts:
            raise UserError(f"objective {config.objective.name} asks with the text {query.text!r}: pass --source-prompt")
