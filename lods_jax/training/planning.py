"""The memory plan of a run: its candidates are compiled in their order until one fits."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import jax

from lods_jax.config import Config
from lods_jax.core.types import Prior
from lods_jax.training.ahead_of_time import Ahead, TooLarge, compile_ahead
from lods_jax.training.build import Components
from lods_jax.training.compilation import Once
from lods_jax.training.cost import advice, memory_of
from lods_jax.training.distributed import agreed
from lods_jax.training.loop import step_name, views_per_device, views_together
from lods_jax.training.memory_plan import MemoryPlan, candidates, first_that_fits, told, words
from lods_jax.training.prior_settings import prior_of, prior_options, untrained_prior

MIB = 2**20


class Planned(NamedTuple):
    """The plan of a run.

    Attributes:
        memory: the plan.
        prior: the prior of the run, built by the plan.
        ahead: the compiled step; None if nothing had to be found out.
        said: the choice and its reason as one line; empty without a choice.
    """

    memory: MemoryPlan
    prior: Prior
    ahead: Ahead | None = None
    said: str = ""


def plan_run(config: Config, components: Components, once: Once, stored: MemoryPlan | None = None) -> tuple[Components, str]:
    """The components of a run with its memory plan, for the devices that are here.

    Nothing is compiled where memory has no limit, nor with `--reduce ordered`, which takes one group of views at a time anyway.

    Args:
        config: of the run.
        components: from `build.build`.
        once: holds what is compiled, see `compilation.memory`: the plan too, and the step that it was found with.
        stored: the plan of a run that goes on.

    Returns:
        Components, and a line on the choice, empty where there was none.

    Raises:
        UserError: no plan fits.
    """
    if config.prior.memory == "manual":
        return components, ""
    if stored is not None:
        return with_memory(config, components, stored), ""
    memory = limit_here()
    if memory is None or config.reduce == "ordered":
        return components, ""
    planned = once("memory", lambda: find_plan(config, components, memory))
    components = adopt(components, planned)
    if planned.ahead:
        once(step_name(components, planned.ahead.shapes), lambda: planned.ahead.step)  # type: ignore[union-attr]
    return components, planned.said


def limit_here() -> int | None:
    """Bytes of a device that a step may take; None on a CPU, which has no limit, or where it is not known."""
    return None if jax.default_backend() == "cpu" else memory_of(jax.local_devices()[0])


def find_plan(
    config: Config, components: Components, memory: int | float, devices: list | None = None, margin: float = 1.0
) -> Planned:
    """The first candidate whose compiled step fits.

    Args:
        config: of the run.
        components: of the run; shapes in place of arrays suffice (`build.build_abstract`).
        memory: bytes of a device that a step may take; inf where the compiler is the judge.
        devices: None for those here; others are compiled for ahead of time.
        margin: by which temporaries are multiplied, where the devices stand in for others.

    Returns:
        The plan.

    Raises:
        UserError: no candidate fits.
    """
    views = views_per_device(components) if devices is None else components.plan.batch // len(devices)
    networks = isinstance(components.weights, Mapping) and "unet" in components.weights
    learns = networks and components.objective.trained_query is not None
    kept: list[Ahead] = []

    def peak_of(plan: MemoryPlan) -> int | None:
        kept.clear()  # there may be no room for two programs
        with suppress(TooLarge):
            kept.append(compile_ahead(with_memory(config, components, plan), devices, margin))
        found = largest_anywhere(kept[0].peak if kept else math.inf)
        return None if found == math.inf else int(found)

    plans = candidates(components.plan.memory, views, views_together(components), learns)
    choice = first_that_fits(plans, peak_of, smallest_anywhere(memory), advice(config, components.prior.views, planned=True))
    return Planned(choice.plan, with_memory(config, components, choice.plan).prior, kept[0], told(choice, memory))


def unplanned(config: Config, components: Components) -> str:
    """What a run with this config and these components does that looks for no plan, and why, as one line."""
    why = "a run on this device has no limit: --device-memory describes a GPU"
    if config.prior.memory == "manual":
        why = "as the flags say; --prior.memory auto looks for one that fits"
    elif config.reduce == "ordered":
        why = "--reduce ordered"
    return f"{words(components.plan.memory)} ({why})"


def largest_anywhere(size: int | float) -> int | float:
    """The largest of the sizes that the processes of a run give, in bytes, rounded up to MiB where there are several.

    All decide by it, and so alike: a compiler need not tell each process the same.

    Args:
        size: of this process, or inf.

    Returns:
        The largest.
    """
    if jax.process_count() == 1:
        return size
    most = agreed(2**31 - 1 if size == math.inf else math.ceil(size / MIB))
    return math.inf if most == 2**31 - 1 else most * MIB


def smallest_anywhere(size: int | float) -> int | float:
    """The smallest of the sizes that the processes of a run give, where `largest_anywhere` gives the largest size."""
    return size if jax.process_count() == 1 or size == math.inf else -agreed(-int(size // MIB)) * MIB


def with_memory(config: Config, components: Components, memory: MemoryPlan) -> Components:
    """The components of a run by another memory plan; their weights stay.

    Args:
        config: of the run.
        components: of the run.
        memory: the plan.

    Returns:
        New components.
    """
    own = replace(config.prior, **memory._asdict())
    prior = components.prior
    if prior_options(own) != prior_options(config.prior):
        abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(components.weights))
        prior = untrained_prior(own)[0] if abstract else prior_of(own)
    return adopt(components, Planned(memory, prior))


def adopt(components: Components, planned: Planned) -> Components:
    """The components of a run by a plan (`planned`) that was made for them, or for another prompt of their kind."""
    return components._replace(prior=planned.prior, plan=components.plan._replace(memory=planned.memory))
