"""The loop: steps, refinement and growth of static shapes, from a state to the end of a run."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lods_jax.core.errors import UserError
from lods_jax.core.random import run_key, step_key
from lods_jax.core.types import Scene, TrainState
from lods_jax.distillation.parallel import compile_train_step
from lods_jax.distillation.train_step import TrainStep, init_state, make_train_step
from lods_jax.distillation.view_chunks import in_chunks
from lods_jax.training.build import Components
from lods_jax.training.compilation import Once, memory
from lods_jax.training.scene_setups import StaticShapes

PLAN_EVERY = 50  # steps between looks at whether a static shape has become too small


# --- training: what changes the state ---------------------------------------------------------------------------------------
Compile = Callable[[Components, StaticShapes], Callable]


class Progress(NamedTuple):
    """The run after one step. The state is donated to the next step: copy what has to outlive it.

    Attributes:
        done: number of steps so far.
        state: of the training.
        shapes: static shapes of the step.
        metrics: of the step.
    """

    done: int
    state: TrainState
    shapes: StaticShapes
    metrics: dict[str, jax.Array]


def first_shapes(components: Components) -> StaticShapes:
    """The static shapes of the first step of a run with these components; an edit knows already what its object needs."""
    needed = components.source and jax.device_get(components.source[1])
    return components.setup.choose_shapes(components.plan.resolution, needed)


def largest_shapes(components: Components) -> StaticShapes:
    """The static shapes of the larger of the two resolutions of a run with these components, before its scene has grown."""
    plan = components.plan
    return first_shapes(components._replace(plan=plan._replace(resolution=max(plan.resolution, plan.later_resolution))))


def first_state(components: Components) -> TrainState:
    """The state before the first step of a run with these components."""
    return state_of(components.setup.scene(first_shapes(components)), components)


def state_shapes(components: Components) -> TrainState:
    """Shapes and dtypes of the state of a run with these components, without the file that its scene may start from."""
    return jax.eval_shape(lambda: state_of(components.setup.blank_scene(first_shapes(components)), components))


def state_of(scene: Scene, components: Components) -> TrainState:
    """The state before the first step, of a given scene.

    Args:
        scene: to train.
        components: of the run.

    Returns:
        The state.
    """
    key, source = run_key(components.plan.seed, "scene"), components.source
    if source:  # copies: the step donates its state
        scene = scene._replace(init=lambda key: jax.tree.map(jnp.array, source))
    return init_state(scene, components.psi, components.tx_theta, components.tx_psi, key)


def train_step(components: Components, shapes: StaticShapes) -> TrainStep:
    """The train step at static shapes, for `parallel.compile_train_step`.

    Args:
        components: of the run.
        shapes: static shapes.

    Returns:
        The two halves of the step.
    """
    memory = components.plan.memory
    step = make_train_step(
        components.setup.scene(shapes),
        components.prior,
        components.objective,
        cameras=components.cameras,
        window=components.window,
        regularizers=components.regularizers,
        tx_theta=components.tx_theta,
        tx_psi=components.tx_psi,
        batch=components.plan.batch,
        select_prompts=components.select_prompts,
        fit_shares_noise=components.plan.fit_shares_noise,
        schedule=components.plan.schedule,
        fit_first=components.plan.fit_first,
        vae_slicing=memory.vae_slicing,
        reference_view=components.reference_view(shapes),
        auxiliary_priors=components.image_inputs.auxiliary_priors if components.image_inputs else (),
        score_path=components.score_path,
        reward=components.reward,
    )
    return in_chunks(step, memory.view_chunk, views_together(components)) if memory.view_chunk else step


def step_name(components: Components, shapes: StaticShapes) -> tuple:
    """The key of a compiled step in the memory of runs that share one: its shapes and the plan of its components."""
    return "step", shapes, components.plan.memory


def compiled(components: Components, shapes: StaticShapes) -> Callable:
    """The train step at static shapes, over the devices that the configuration names.

    Args:
        components: of the run.
        shapes: static shapes.

    Returns:
        The compiled step.
    """
    plan = components.plan
    return compile_train_step(train_step(components, shapes), mode_of(components), plan.batch, reduce=plan.reduce)


def views_together(components: Components) -> int:
    """How many views of a step with these components cannot be parted: a group of the prior's for each particle."""
    return components.prior.views * components.setup.particles


def views_per_device(components: Components) -> int:
    """How many views of a step with these components each device computes."""
    return components.plan.batch // (1 if mode_of(components) == "jit" else jax.device_count())


def mode_of(components: Components) -> str:
    """How the step is spread over devices.

    Args:
        components: of the run.

    Returns:
        "jit", "pmap" or "shard_map".

    Raises:
        UserError: the batch cannot be split evenly over the devices of all processes.
    """
    n, batch, parallel = jax.device_count(), components.plan.batch, components.plan.parallel
    particles, views = components.setup.particles, components.prior.views
    even = batch % (n * particles * views) == 0
    if jax.process_count() > 1:
        if not even:
            several = f" times {particles} particles" if particles > 1 else ""
            several += f" times {views} views of a group" if views > 1 else ""
            raise UserError(f"batch must be a multiple of the {n} devices of all processes{several}, got {batch}")
        return "shard_map" if parallel == "auto" else parallel
    return parallel if parallel != "auto" else "pmap" if n > 1 and even else "jit"


def train(
    components: Components,
    state: TrainState,
    shapes: StaticShapes | None = None,
    compile: Compile = compiled,
    once: Once | None = None,
) -> Iterator[Progress]:
    """Trains from a state to the end of the run: steps, refinement, growth of static shapes.

    Args:
        components: of the run.
        state: to start from.
        shapes: static shapes of the state's last step; None before the first. All decisions depend on these, the step and aux, so
            that a resumed run decides as an uninterrupted one.
        compile: (components, shapes) -> step.
        once: holds what is compiled, see `compilation.memory`. Runs that differ only in the prompt may share it.

    Yields:
        The progress after each step.
    """
    setup, plan, key = components.setup, components.plan, run_key(components.plan.seed, "train")
    reference = components.reference  # one object: what is another object is placed on the devices again
    once = memory() if once is None else once
    refine = once("refine", lambda: jax.jit(partial(setup.refine, components.tx_theta)))
    shapes = shapes or first_shapes(components)
    for done in range(int(state.step) + 1, plan.steps + 1):
        step = once(step_name(components, shapes), lambda: compile(components, shapes))  # noqa: B023 (called at once)
        state, metrics = step(state, components.weights, components.texts, reference, key)
        if done > plan.fit_first and setup.should_refine(done):
            state = refine(jax.random.fold_in(step_key(key, done), 1), state)
        resolution = plan.later_resolution if done >= plan.later_from else plan.resolution
        if done % PLAN_EVERY == 0 or resolution != shapes.resolution:
            grown = (resolution / shapes.resolution) ** 2  # as many times the pixels need as many times the capacity
            needed = {name: np.ceil(grown * np.asarray(state.aux[name])) for name in ("total", "last") if name in state.aux}
            shapes = setup.choose_shapes(resolution, needed)
        yield Progress(done, state, shapes, metrics)
