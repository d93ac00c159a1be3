"""Priors by name: what `--prior` takes beside a folder. A name stands for a factory, which is imported when it is asked for.

Loads no jax: names are checked before anything is computed.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from lods_jax.priors.diffusers_folder import views_of_folder
from lods_jax.priors.hub import local


class World(NamedTuple):
    """A small world that a prior was trained on: its captions, what its images show, and true objects to compare a scene with.

    Attributes:
        names_views: prompt -> whether its prompts name the view, as for an object with a front.
        read_image: rgba [n n 4] -> (caption, view), each None if it cannot be told.
        figures: {name: meaning} of the figures of `measure`.
        measure: (prompt, cameras -> renders, points [n 3], mass [n]) -> {figure: value}; it raises ValueError for a prompt of
            another world.
        measured_size: edge of the renders that `measure` takes, pixels.
        true_renders: (prompt, n, size) -> rgb [n size size 3] of the true object at n equal azimuths; None for a prompt of
            another world.
        train: trains or measures the prior (`lods train-prior`).
        judge: gives a judge of pictures (`distillation.rewards.Judge`), and is called late, since it reads weights; None without
            one.
        edit_figures: {name: meaning} of the figures of `measure_edit`.
        measure_edit: (prompt before, prompt, cameras -> renders, cameras -> renders before) -> {figure: value}; it raises
            ValueError for a prompt of another world.
    """

    names_views: Callable[[str], bool]
    read_image: Callable[..., tuple[str | None, str | None]]
    figures: Mapping[str, str]
    measure: Callable[..., dict[str, float]]
    measured_size: int
    true_renders: Callable[..., Any]
    train: Callable[..., None]
    judge: Callable[[], Any] | None = None
    edit_figures: Mapping[str, str] = MappingProxyType({})
    measure_edit: Callable[..., dict[str, float]] = lambda *scenes: {}

    @property
    def all_figures(self) -> dict[str, str]:
        """{name: meaning} of all figures that a run may have here."""
        return {**self.figures, **self.edit_figures}


class RegisteredPrior(NamedTuple):
    """A prior that has a name.

    Attributes:
        make: (dtype, rank, attention, remat, variant) -> `Prior`; a closed form ignores these options.
        about: one line for `lods info`.
        folder: in diffusers layout; None for a closed form.
        vocabulary: folder whose vocabulary.json lists the words of its training; None for any words.
        world: gives its `World`, and is called late, since it loads jax; None without one.
        views: number of views of one object that it denoises together, as in `Prior`.
    """

    make: Callable[..., Any]
    about: str
    folder: Path | None = None
    vocabulary: Path | None = None
    world: Callable[[], World] | None = None
    views: int = 1


# name -> factory without arguments, or "module:factory".
PRIORS: dict[str, str | Callable[[], RegisteredPrior]] = {
    "tabletop": "lods_jax.tabletop.entry:tabletop_128",
    "tabletop-128": "lods_jax.tabletop.entry:tabletop_128",
    "tabletop-views": "lods_jax.tabletop.entry:tabletop_views",
    "tabletop-64": "lods_jax.tabletop.entry:tabletop_64",
    "exact": "lods_jax.tabletop.entry:exact",
    "exact-flow": "lods_jax.tabletop.entry:exact_flow",
    "exact-gaussians": "lods_jax.tabletop.entry:exact_gaussians",
}
EMBEDDED = "tabletop"  # the prior whose world has a truth for every caption


def register_prior(name: str, factory: str | Callable[[], RegisteredPrior]) -> None:
    """Gives a prior a name, for `--prior` and `PriorConfig.name`.

    Args:
        name: replaces a former meaning.
        factory: gives a `RegisteredPrior` without arguments; or "module:factory", which is imported when the prior is used.
    """
    PRIORS[name] = factory


def registered(name: str) -> RegisteredPrior | None:
    """The registered prior of a name; None if the name is not registered."""
    factory = PRIORS.get(name)
    if isinstance(factory, str):
        module, _, attribute = factory.partition(":")
        factory = getattr(importlib.import_module(module), attribute)
    return None if factory is None else factory()


def world_of(name: str) -> World | None:
    """The world of a prior.

    Args:
        name: registered, or a folder; a folder with a vocabulary belongs to the embedded world.

    Returns:
        The world; None for a prior without one.
    """
    found = registered(name)
    if found is None and (local(name) / "vocabulary.json").exists():
        return embedded_world()
    return found.world() if found is not None and found.world is not None else None


def views_of(name: str) -> int:
    """How many views of one object a prior denoises together, without loading it.

    Args:
        name: registered, or a folder.

    Returns:
        Their number; 1 for a prior of single images, or where there is no such prior.
    """
    found = registered(name)
    return views_of_folder(local(name)) if found is None else found.views


def embedded_world() -> World:
    """The world of the shipped prior, which has a true object for every caption, whichever prior a scene was distilled from."""
    return registered(EMBEDDED).world()
