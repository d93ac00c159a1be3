"""The step of a run compiled before its first call, for devices that are here or not: XLA then tells what it takes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from lods_jax.core.devices import traced_for
from lods_jax.core.errors import OUT_OF_MEMORY, UserError
from lods_jax.core.types import TrainState
from lods_jax.distillation.parallel import check_split, lowered, over_devices, placed
from lods_jax.priors.attention import Layer, kernels_noted
from lods_jax.training.build import Components
from lods_jax.training.loop import first_state, largest_shapes, mode_of, train_step
from lods_jax.training.scene_setups import StaticShapes

# For a device that is not there speed does not count: Stable Diffusion 2.1 takes 4 minutes, and was given up after 23.
QUICKLY = {"exec_time_optimization_effort": -1.0}


class TooLarge(UserError):
    """A step that was not compiled for want of memory."""


class Ahead(NamedTuple):
    """A step that was compiled before its first call.

    Attributes:
        step: as `loop.compiled` gives it, for devices that are here.
        shapes: static shapes.
        devices: that it was compiled for.
        state: shapes of its state.
        compiled: XLA's program.
        arguments: bytes of weights, state and texts on each device, also of those that the step does not read.
        kernels: {layer: the kernel that computes its attention}, where attention is fused.
        margin: by which temporaries are multiplied.
    """

    step: Callable
    shapes: StaticShapes
    devices: list
    state: TrainState
    compiled: jax.stages.Compiled
    arguments: int
    kernels: dict[Layer, str]
    margin: float = 1.0

    @property
    def temporary(self) -> int:
        """Bytes of a device that a step takes beside its arguments."""
        memory = self.compiled.memory_analysis()
        return int(self.margin * memory.temp_size_in_bytes) + memory.output_size_in_bytes - memory.alias_size_in_bytes

    @property
    def peak(self) -> int:
        """Bytes of a device at the peak of a step."""
        return self.arguments + self.temporary


def compile_ahead(components: Components, devices: list | None = None, margin: float = 1.0) -> Ahead:
    """Compiles the step of a run at the larger of its resolutions, without running it.

    Args:
        components: of the run; shapes in place of arrays suffice (`build.build_abstract`).
        devices: None for those here; others are compiled for ahead of time.
        margin: by which temporaries are multiplied, where the devices stand in for others.

    Returns:
        The step.

    Raises:
        UserError: the batch cannot be split evenly.
        TooLarge: the compiler finds that the step does not fit.
    """
    here, batch, mode = devices is None, components.plan.batch, "shard_map"
    if devices is None:
        mode = mode_of(components)
        devices = jax.devices()[:1] if mode == "jit" else jax.devices()
    try:
        check_split(batch, devices, components.prior.views)
    except ValueError as error:
        raise UserError(str(error)) from None
    shapes = largest_shapes(components)
    step, views = over_devices(train_step(components, shapes), mode, batch, devices)
    state = jax.eval_shape(lambda psi: first_state(components._replace(psi=psi)), components.psi)
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments: tuple[Any, ...] = (state, components.weights, components.texts, components.reference, key)
    try:
        with traced_for(devices[0].platform), kernels_noted() as kernels:
            low = lowered(step, views, mode, devices, arguments)
        compiled = low.compile(compiler_options={} if here else QUICKLY)
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        raise TooLarge(f"a step does not fit: {' '.join(str(error).split())[:200]}") from None
    held = sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(arguments))
    return Ahead(placed(compiled, views, mode, devices), shapes, devices, state, compiled, held, kernels, margin)
