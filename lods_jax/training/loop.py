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
from lods_jax.distillation.parallel import parallelise
from lods_jax.distillation.train_step import Halves, init_state, make_train_step
from lods_jax.training.build import Parts, known_view
from lods_jax.training.scene_setups import Static, without_file

PLAN_EVERY = 50  # steps between looks at whether a static shape has become too small


# --- training: what changes the state ---------------------------------------------------------------------------------------
Compile = Callable[[Config, Parts, Static], Callable]


class Progress(NamedTuple):
    """After one step. The state is given away to the next step: copy what has to outlive it."""

    done: int  # steps
    state: TrainState
    static: Static
    metrics: dict[str, jax.Array]


def first_state(config: Config, parts: Parts) -> TrainState:
    """The state before the first step."""
    scene = parts.representation.scene(config, parts.representation.plan(config, config.resolution, None))
    return init_state(scene, parts.psi, parts.tx_theta, parts.tx_psi, jax.random.fold_in(jax.random.key(config.seed), 2))


def state_shapes(config: Config, parts: Parts) -> TrainState:
    """The state's shapes and types, without the file that the scene once started from."""
    return jax.eval_shape(lambda: first_state(without_file(config), parts))


def train_step(config: Config, parts: Parts, static: Static) -> Halves:
    """The train step at a static shape, still to be told of devices (`train.parallelise`)."""
    return make_train_step(
        parts.representation.scene(config, static),
        parts.prior,
        parts.objective,
        cameras=parts.cameras,
        window=parts.window,
        penalty=parts.penalty,
        tx_theta=parts.tx_theta,
        tx_psi=parts.tx_psi,
        batch=config.batch,
        texts_of=parts.texts_of,
        fit_shares_noise=config.objective.fit_shares_noise,
        schedule=config.objective.schedule,
        vae_slicing=config.prior.vae_slicing,
        known=known_view(config, static),
        also=parts.given.also if parts.given else (),
    )


def compiled(config: Config, parts: Parts, static: Static) -> Callable:
    """The train step at a static shape, over the devices that the configuration asks for."""
    return parallelise(train_step(config, parts, static), mode_of(config), config.batch, reduce=config.reduce)


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
    config: Config, parts: Parts, state: TrainState, static: Static | None = None, compile: Compile = compiled
) -> Iterator[Progress]:
    """Steps, refinement and growth of static shapes, from `state` to the end of the run.

    Args:
      static: what the state's last step was compiled for; None before the first. Decisions hang on it, the step and aux alone, so
        that a resumed run decides as an uninterrupted one.
      compile: gives the step for a static shape. Runs of one process may share it where they differ in prompt and seed alone.
    """
    represent, key = parts.representation, jax.random.fold_in(jax.random.key(config.seed), 3)
    later = config.resolution_after or config.resolution
    refine = jax.jit(partial(represent.refine, config, parts.tx_theta))
    static = static or represent.plan(config, config.resolution, None)
    step_at = cache(lambda static: compile(config, parts, static))  # a shape may come back
    reference = parts.given and parts.given.reference
    for done in range(int(state.step) + 1, config.steps + 1):
        state, metrics = step_at(static)(state, parts.weights, parts.texts, reference, key)
        if represent.due(config, done):
            state = refine(jax.random.fold_in(step_key(key, done), 1), state)
        resolution = later if done >= config.switch * config.steps else config.resolution
        if done % PLAN_EVERY == 0 or resolution != static.resolution:
            grown = (resolution / static.resolution) ** 2  # as many times the pixels need as many times the room
            needed = {name: np.ceil(grown * np.asarray(state.aux[name])) for name in ("total", "last") if name in state.aux}
            static = represent.plan(config, resolution, needed)
        yield Progress(done, state, static, metrics)
