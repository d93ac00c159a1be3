"""The texts of a run: those that its prior is asked with, and whether they name the view."""

from collections.abc import Sequence

from lods_jax.config import Config
from lods_jax.distillation import prompts
from lods_jax.priors.registry import views_of, world_of


def prompt_table_of(
    config: Config, truncate: prompts.Truncate = prompts.whole, with_view: bool | None = None
) -> dict[str, Sequence[str]]:
    """The prompt table of a configuration.

    Args:
        config: of the run.
        truncate: of the prior.
        with_view: whether the prompts name the view; None as those of the prior do.

    Returns:
        {name: one text per view}, see `prompts.prompt_table`.
    """
    source = config.source_prompt.replace("{prompt}", config.prompt) or None
    without = {word: views.replace(",", " ").split() for word, views in config.debias.items()}
    adapter = config.objective.adapter_text
    with_view = names_views(config) if with_view is None else with_view
    return prompts.prompt_table(config.prompt, config.negative_prompt, with_view, source, without, adapter, truncate)


def names_views(config: Config) -> bool:
    """Whether the prompts of a run name the view.

    "auto" names it unless the prior sees the cameras of several views, as MVDream (Shi et al. 2024), or the world of the prior
    knows the object and that it has no front.

    Args:
        config: of the run.

    Returns:
        True if they do.
    """
    return has_front(config) and (config.view_words == "on" or views_of(config.prior.name) == 1)


def has_front(config: Config) -> bool:
    """Whether the object of a run differs from view to view, so that words name the view to whoever sees no cameras.

    That is a prior of single images, or a judge of pictures.

    Args:
        config: of the run.

    Returns:
        What `view_words` says; under "auto" False if the world of the prior knows the object and that it has no front.
    """
    if config.view_words != "auto":
        return config.view_words == "on"
    world = world_of(config.prior.name)
    return world is None or world.names_views(config.prompt)
