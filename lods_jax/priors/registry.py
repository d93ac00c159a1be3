"""Priors by name: what `--prior` takes beside a folder. A name stands for a factory, which is imported when it is asked for.

Loads no jax: names are checked before anything is computed.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lods_jax.priors.hub import local


class World(NamedTuple):
    """What is known of the small world of a prior: its captions, what its images show, and the truth to compare a scene with."""

    names_views: Callable[[str], bool]  # whether the prompts of such an object name the view
    read_image: Callable[..., tuple[str | None, str | None]]  # rgba [n n 4] -> caption and view; None for what it cannot tell
    figures: Mapping[str, str]  # by name, what each figure of `measure` says
    measure: Callable[
        ..., dict[str, float]
    ]  # (prompt, cameras -> renders, points [n 3], mass [n]) -> figures; ValueError: no caption
    measured_size: int  # edge of the renders that `measure` takes, pixels
    true_renders: Callable[..., Any]  # (prompt, n, size) -> rgb [n size size 3] of the true object all around, or None
    train: Callable[..., None]  # trains or measures the prior itself: `lods train-prior`


class RegisteredPrior(NamedTuple):
    """What a name stands for."""

    make: Callable[..., Any]  # (dtype, rank, attention, remat, variant) -> Prior; a closed form takes them and needs none
    about: str  # one line for `lods info`
    folder: Path | None = None  # in diffusers layout; None for a closed form
    vocabulary: Path | None = None  # the folder whose vocabulary.json lists the words that it has seen
    world: Callable[[], World] | None = None  # called late, since it loads jax


# name -> factory without arguments, or "module:factory".
PRIORS: dict[str, str | Callable[[], RegisteredPrior]] = {
    "tabletop": "lods_jax.tabletop.entry:tabletop",
    "exact": "lods_jax.tabletop.entry:exact",
    "exact-gaussians": "lods_jax.tabletop.entry:exact_gaussians",
}
EMBEDDED = "tabletop"  # the prior whose world has a truth for every caption


def register_prior(name: str, factory: str | Callable[[], RegisteredPrior]) -> None:
    """Makes a name one that `--prior` and `PriorConfig.name` take.

    Args:
      name: replaces what it stood for before.
      factory: gives a `RegisteredPrior` without arguments; or "module:factory", which is imported when the prior is asked for.
    """
    PRIORS[name] = factory


def registered(name: str) -> RegisteredPrior | None:
    """What a name stands for; None if it is none of the registered ones."""
    factory = PRIORS.get(name)
    if isinstance(factory, str):
        module, _, attribute = factory.partition(":")
        factory = getattr(importlib.import_module(module), attribute)
    return None if factory is None else factory()


def world_of(name: str) -> World | None:
    """The world of a registered prior, or of a folder with a vocabulary, which knows the embedded one; else None."""
    found = registered(name)
    if found is None and (local(name) / "vocabulary.json").exists():
        return embedded_world()
    return found.world() if found is not None and found.world is not None else None


def embedded_world() -> World:
    """The world that has a truth to compare with, whichever prior a scene was distilled from."""
    return registered(EMBEDDED).world()
