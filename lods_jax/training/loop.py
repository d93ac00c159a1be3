"""The loop: steps, refinement and growth of static shapes, from a state to the end of a run."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import NamedTuple

import jax
import numpy as np

from lods_jax.config import Config
from lods_jax.core.errors import UserError
from lods_jax.core.random import step_key
from lods_jax.core.types import TrainState
from lods_jax.distillation.parallel import compile_train_step
from lods_jax.distillation.train_step import TrainStep, init_state, make_train_step
from lods_jax.training.build import Components, reference_view_of, score_path_of
from lods_jax.training.scene_setups import StaticShapes, without_file

PLAN_EVERY = 50  # steps between looks at whether a static shape has become too small


# --- training: what changes the state ---------------------------------------------------------------------------------------
Compile = Callable[[Config, Components, StaticShapes], Callable]


class Progress(NamedTuple):
    """After one step. The state is given away to the next step: copy what has to outlive it."""

    done: int  # steps
    state: TrainState
    shapes: StaticShapes
    metrics: dict[str, jax.Array]


def first_state(config: Config, components: Components) -> TrainState:
    """The state before the first step."""
    scene = components.setup.scene(config, components.setup.choose_shapes(config, config.resolution, None))
    return init_state(
        scene, components.psi, components.tx_theta, components.tx_psi, jax.random.fold_in(jax.random.key(config.seed), 2)
    )


def state_shapes(config: Config, components: Components) -> TrainState:
    """The state's shapes and types, without the file that the scene once started from."""
    return jax.eval_shape(lambda: first_state(without_file(config), components))


def train_step(config: Config, components: Components, shapes: StaticShapes) -> TrainStep:
    """The train step at a static shape, still to be told of devices (`parallel.compile_train_step`)."""
    return make_train_step(
        components.setup.scene(config, shapes),
        components.prior,
        components.objective,
        cameras=components.cameras,
        window=components.window,
        regularizers=components.regularizers,
        tx_theta=components.tx_theta,
        tx_psi=components.tx_psi,
        batch=config.batch,
        select_prompts=components.select_prompts,
        fit_shares_noise=config.objective.fit_shares_noise,
        schedule=config.objective.schedule,
        vae_slicing=config.prior.vae_slicing,
        reference_view=reference_view_of(config, shapes),
        auxiliary_priors=components.image_inputs.auxiliary_priors if components.image_inputs else (),
        score_path=score_path_of(config),
    )


def compiled(config: Config, components: Components, shapes: StaticShapes) -> Callable:
    """The train step at a static shape, over the devices that the configuration asks for."""
    return compile_train_step(train_step(config, components, shapes), mode_of(config), config.batch, reduce=config.reduce)


def mode_of(config: Config) -> str:
    """How the step is spread over the devices that are here, or that all processes have."""
    n = jax.device_count()
    if jax.process_count() > 1:
        if config.batch % (n * config.particles):
            several = f" times {config.particles} particles" if config.particles > 1 else ""
            raise UserError(f"batch must be a multiple of the {n} devices of all processes{several}, got {config.batch}")
        return "shard_map" if config.parallel == "auto" else config.parallel
    return (
        config.parallel
        if config.parallel != "auto"
        else "pmap"
        if n > 1 and config.batch % (n * config.particles) == 0
        else "jit"
    )


def train(
    config: Config, components: Components, state: TrainState, shapes: StaticShapes | None = None, compile: Compile = compiled
) -> Iterator[Progress]:
    """Steps, refinement and growth of static shapes, from `state` to the end of the run.

    Args:
      shapes: what the state's last step was compiled for; None before the first. Decisions hang on it, the step and aux alone, so
        that a resumed run decides as an uninterrupted one.
      compile: gives the step for a static shape. Runs of one process may share it where they differ in prompt and seed alone.
    """
    setup, key = components.setup, jax.random.fold_in(jax.random.key(config.seed), 3)
    later = config.resolution_after or config.resolution
    refine = jax.jit(partial(setup.refine, config, components.tx_theta))
    shapes = shapes or setup.choose_shapes(config, config.resolution, None)
    step_at = cache(lambda shapes: compile(config, components, shapes))  # a shape may come back
    reference = components.image_inputs and components.image_inputs.reference
    for done in range(int(state.step) + 1, config.steps + 1):
        state, metrics = step_at(shapes)(state, components.weights, components.texts, reference, key)
        if setup.should_refine(config, done):
            state = refine(jax.random.fold_in(step_key(key, done), 1), state)
        resolution = later if done >= config.milestone * config.steps else config.resolution
        if done % PLAN_EVERY == 0 or resolution != shapes.resolution:
            grown = (resolution / shapes.resolution) ** 2  # as many times the pixels need as many times the capacity
            needed = {name: np.ceil(grown * np.asarray(state.aux[name])) for name in ("total", "last") if name in state.aux}
            shapes = setup.choose_shapes(config, resolution, needed)
        yield Progress(done, state, shapes, metrics)
