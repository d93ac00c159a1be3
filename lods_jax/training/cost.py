"""What a run would take, before it runs: XLA's own analysis of the compiled step.

For the devices that are here, or for a TPU slice that is not: then the step is compiled ahead of time, by libtpu.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import numpy as np

from lods_jax.config import Config
from lods_jax.core.errors import OUT_OF_MEMORY, UserError, one_line
from lods_jax.priors.attention import Layer
from lods_jax.priors.registry import registered
from lods_jax.training.ahead_of_time import Ahead, TooLarge, compile_ahead
from lods_jax.training.build import Components
from lods_jax.training.memory_plan import GIB

COLLECTIVE = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(.*?channel_id=(\d+)")
# Flags that lower the peak, most effective first, and whether there is still something to lower where `g` views go together.
SMALLER = {
    "--prior.memory auto": lambda c, g: c.prior.memory == "manual",
    "--prior.view-chunk": lambda c, g: (c.prior.view_chunk or c.batch) > g,
    "--prior.remat": lambda c, g: not c.prior.remat,
    "--prior.remat-resnets": lambda c, g: not c.prior.remat_resnets,
    "--prior.dtype bfloat16": lambda c, g: c.prior.dtype == "float32",
    "--prior.vae-slicing": lambda c, g: not c.prior.vae_slicing,
    "--batch": lambda c, g: c.batch > g * c.particles,
    # Renders are brought to the size of the prior, whatever theirs. A prior with a name has one size.
    "--prior.image-size": lambda c, g: not registered(c.prior.name) and (c.prior.image_size or 512) > 256,
    "--resolution": lambda c, g: max(c.resolution, c.resolution_after or 0) > 64,
}
STAND_IN = "v5p:2x2x1"  # a slice whose chips, of 95 GiB, stand in for GPUs
GPU_MARGIN = 1.6  # a GPU's temporaries beside the stand-in's: 0.9 to 1.6 in the steps that both compiled (docs/dev/tpu.md)
# Have nothing to add to the leanest plan.
PLANNED = ("--prior.view-chunk", "--prior.remat", "--prior.remat-resnets", "--prior.vae-slicing", "--batch")


class Cost(NamedTuple):
    """What one step costs, per device.

    Attributes:
        parameters: {part: number} of the frozen networks, the scene and the learnable part.
        devices: number of devices.
        kind: of device.
        arguments: bytes of weights, state and texts, also of those that the step does not read.
        temporary: bytes.
        memory: bytes of a device's memory; None if it is not known.
        operations: floating-point operations.
        collectives: {kind: number}.
        attention: {kernel: (queries, keys, width of a head) of the layers that fused attention computes by it}.
    """

    parameters: dict[str, int]
    devices: int
    kind: str
    arguments: int
    temporary: int
    memory: int | None
    operations: float
    collectives: dict[str, int]
    attention: dict[str, list[Layer]]

    @property
    def peak(self) -> int:
        """Bytes at the peak of a step."""
        return self.arguments + self.temporary


def estimate(config: Config, components: Components, devices: list | None = None, margin: float = 1.0) -> Cost:
    """Compiles the step, without running it, and reads XLA's analysis.

    Args:
        config: of the run.
        components: of the run; shapes in place of arrays suffice (`build.build_abstract`).
        devices: None for those here; others are compiled for ahead of time.
        margin: by which temporaries are multiplied, where the devices stand in for others.

    Returns:
        The cost, at the larger of the run's two resolutions.

    Raises:
        UserError: the batch cannot be split evenly, or a step does not fit into memory.
    """
    try:
        return cost_of(components, compile_ahead(components, devices, margin))
    except TooLarge as error:
        raise UserError(f"{error}; {advice(config, components.prior.views)}") from None


def cost_of(components: Components, ahead: Ahead) -> Cost:
    """What a compiled step costs.

    Args:
        components: of the run.
        ahead: its step.

    Returns:
        The cost.
    """
    count = lambda tree: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))  # noqa: E731
    weights, reference = components.weights, components.reference
    networks = {name: count(tree) for name, tree in weights.items()} if isinstance(weights, dict) else {}
    networks |= {"zero123": count([own for own, _ in reference.auxiliary])} if reference and reference.auxiliary else {}
    device, kernels = ahead.devices[0], ahead.kernels
    # One that overlaps with computation stands in many fusions, under one channel. One device has nobody to talk to.
    talks = set(COLLECTIVE.findall(ahead.compiled.as_text())) if len(ahead.devices) > 1 else set()
    return Cost(
        networks | {"scene": count(ahead.state.theta), "learned": count(ahead.state.psi)},
        len(ahead.devices),
        device.device_kind,
        ahead.arguments,
        ahead.temporary,
        memory_of(device) if device in jax.devices() else None,
        float(ahead.compiled.cost_analysis()["flops"]),
        dict(Counter(kind for kind, _ in talks)),
        {
            name: sorted((own for own, kernel in kernels.items() if kernel == name), reverse=True)
            for name in set(kernels.values())
        },
    )


def check_fits(config: Config, cost: Cost, group: int = 1, described: bool = False) -> None:
    """Checks that a step fits into the memory of a device.

    Args:
        config: of the run.
        cost: from `estimate`.
        group: number of views that the prior denoises together.
        described: whether the memory is that of a GPU that need not be here.

    Raises:
        UserError: it does not; the message names flags that help.
    """
    if cost.memory is not None and cost.peak > cost.memory:
        whose = "JAX takes of the described GPU" if described else f"a {cost.kind} device has"
        needs = f"a step needs {cost.peak / GIB:.1f} GiB of the {cost.memory / GIB:.1f} that {whose}"
        raise UserError(f"{needs}; {advice(config, group)}")


def advice(config: Config, group: int = 1, planned: bool = False) -> str:
    """The flags that would lower the memory of a config's step, as the end of a message.

    Args:
        config: of the run.
        group: number of views that the prior denoises together.
        planned: whether all memory plans have been tried.

    Returns:
        The end of the message.
    """
    flags = [flag for flag, helps in SMALLER.items() if helps(config, group) and not (planned and flag in PLANNED)]
    return f"smaller with {', '.join(flags)}" if flags else "and no flag makes it smaller"


@contextmanager
def memory_errors_told(config: Config, group: int = 1) -> Iterator[None]:
    """A block that runs steps: when a device is out of memory, one line says so and what makes a step smaller.

    Args:
        config: of the run.
        group: number of views that the prior denoises together.

    Raises:
        UserError: a device is out of memory.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        raise UserError(f"a step does not fit into memory: {one_line(error, 200)}; {advice(config, group)}") from error


def describe(cost: Cost) -> str:
    """A cost as lines for the console."""
    lines = [f"{name:<14}{n:>14,} parameters" for name, n in cost.parameters.items()]
    memory = f" of {cost.memory / GIB:.1f}" if cost.memory else ""
    lines += [
        f"{'devices':<14}{cost.devices} x {cost.kind}",
        f"{'memory':<14}{cost.peak / GIB:.2f} GiB{memory} per device: {cost.arguments / GIB:.2f} of weights and state, "
        f"{cost.temporary / GIB:.2f} of a step",
        f"{'operations':<14}{cost.operations / 1e12:.3f} TFLOP per step and device",
        f"{'collectives':<14}{', '.join(f'{n} {kind}' for kind, n in cost.collectives.items()) or 'none'}",
    ]
    for kernel, layers in sorted(cost.attention.items()):
        lines.append(f"{'attention':<14}{kernel} for {', '.join(f'{a} x {b} of width {d}' for a, b, d in layers)}")
    return "\n".join(lines)


def memory_of(device: Any) -> int | None:
    """Bytes of memory of a device; None if it is not known."""
    if device.platform == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit")


def slice_of(name: str) -> list:
    """The devices of a TPU slice that need not be there. Needs the extra `tpu`.

    Call it first: afterwards this process computes on the CPU, and does not cache compilations.

    Args:
        name: such as "v5e:2x4".

    Returns:
        Devices to compile for.

    Raises:
        UserError: the name is malformed, or there is no such slice.
    """
    if not re.fullmatch(r"v\d+[a-z]*:\d+(x\d+){1,2}", name):
        raise UserError(f"topology must read like v5e:2x4, got {name}")
    # libtpu asks the machine which TPU it has, and logs at length that there is none.
    answers = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_HOSTNAMES": "localhost"}
    answers |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # a dry run beside another, or beside a run on the TPU that is here
    for variable, value in answers.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")  # not the TPU that may be here
    jax.config.update("jax_enable_compilation_cache", False)  # what is compiled for an absent device cannot be read back
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except Exception as error:  # whatever the plugin raises: not installed, no such slice
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"topology {name} cannot be compiled for: {reason} (needs pip install 'lods_jax[tpu]')") from None


def chip_for_gpu() -> list | None:
    """A TPU chip to compile for in place of a GPU that is described. Needs the extra `tpu`.

    Its compiler computes in bfloat16 and has a flash kernel for attention, where a CPU's turns bfloat16 into float32.

    Returns:
        The chip alone in a list; None where the extra is not installed, or its libtpu knows no such chip.
    """
    with suppress(UserError):
        return slice_of(STAND_IN)[:1] if find_spec("libtpu") else None
    return None
