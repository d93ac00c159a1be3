"""Checks of a run that need its objective or its prior, before any weights are read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lods_jax.config import Config, ObjectiveConfig, has_milestones
from lods_jax.core.errors import UserError
from lods_jax.core.types import Objective
from lods_jax.priors.clip import clip_config
from lods_jax.priors.registry import views_of
from lods_jax.scenes.gaussian_tiles import check_size
from lods_jax.training.rewards import CLASSIFIER, NONE


def check_tiles(config: Config) -> None:
    """Checks that the rasterizer takes every size that a run renders: those of training and that of its pictures.

    Args:
        config: of the run.

    Raises:
        UserError: one is too large for the number of Gaussians.
    """
    if config.scene != "gaussians":
        return
    later = config.resolution_after or config.resolution
    sizes = {"resolution": config.resolution, "resolution_after": later, "output.size": config.output.size}
    for name, size in sizes.items():
        try:
            check_size(size, size, config.gaussians.capacity)
        except ValueError as error:
            raise UserError(f"{name} and gaussians.capacity do not fit: {error}") from None


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


def check_perp_neg(config: Config) -> None:
    """Checks that there are view words for Perp-Neg to turn.

    An object that the world of the prior knows to have no front passes: it may be one of a batch that shares a compiled step.

    Args:
        config: of the run.

    Raises:
        UserError: no prompt of such a run names its view.
    """
    named = config.view_words == "on" or (config.view_words == "auto" and views_of(config.prior.name) == 1)
    if config.perp_neg and not named:
        why = "view_words is off" if config.view_words == "off" else "this prior sees the cameras of its views"
        raise UserError(f"perp_neg turns the words of the view in a prompt, and {why}: pass --no-perp-neg, or --view-words on")


def check_reward(config: Config, objective: Objective) -> None:
    """Checks that a reward is one, and that there is something to weigh.

    Args:
        config: of the run.
        objective: of the run.

    Raises:
        UserError: it is no word that stands for one, and no folder; the objective draws no noise; or something is set that a
            reward alone would read.
        FileNotFoundError: the folder holds no network of transformers.
        ValueError: it holds another network.
    """
    reward, usual = config.objective.reward, ObjectiveConfig()
    for name in ("noises", "noise_weights", "reward_margin") if reward == NONE else ():
        if (got := getattr(config.objective, name)) != getattr(usual, name):
            raise UserError(f"objective.{name} is of a reward, and there is none, got {got}: pass --objective.reward too")
    if config.objective.reward_margin and config.objective.noise_weights != "preference":
        raise UserError("objective.reward_margin is of the weights preference: pass --objective.noise-weights preference too")
    if reward != NONE and not objective.draws_noise:
        raise UserError(f"objective.reward weighs several noises a view, and {config.objective.name} draws none: take it out")
    if reward not in (NONE, CLASSIFIER) and not Path(reward).is_dir():
        raise UserError(f"objective.reward must be {NONE}, {CLASSIFIER} or the folder of a CLIP, got {reward}")
    if reward not in (NONE, CLASSIFIER):
        clip_config(Path(reward))


def note_on_timesteps(config: Config, objective: Objective) -> str:
    """A line for whoever gives an objective of one noise the timesteps of one that draws its noise.

    Args:
        config: of the run.
        objective: of the run.

    Returns:
        The line; empty unless the noise stays and the run begins with timesteps that are as low as they are high.
    """
    at_first = lambda schedule: schedule[0][1] if has_milestones(schedule) else schedule[0]  # noqa: E731
    low, high = at_first(config.timesteps.min), at_first(config.timesteps.max)
    if objective.noise is None or low > 0.5 * high:
        return ""
    fall = "--timesteps.max 0.98 0.3 --timesteps.min 0.94 0.02 --timesteps.anneal sqrt"
    return f"{config.objective.name} keeps one noise and needs timesteps that fall; these begin at {low:g} to {high:g}: {fall}"


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
