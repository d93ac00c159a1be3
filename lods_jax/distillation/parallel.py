"""The train step over devices and processes."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from lods_jax.distillation.train_step import Step, StepGrads, TrainStep

AXIS = "data"


class Collectives(NamedTuple):
    """Collectives over the data axis; the identity on one device.

    Attributes:
        sum: the sum over devices.
        mean: the mean over devices.
        gather: concatenates the views of all devices along the first axis.
    """

    sum: Callable = lambda x: x
    mean: Callable = lambda x: x
    gather: Callable = lambda x: x


ACROSS_DEVICES = Collectives(
    partial(jax.lax.psum, axis_name=AXIS),
    partial(jax.lax.pmean, axis_name=AXIS),
    partial(jax.lax.all_gather, axis_name=AXIS, tiled=True),
)


def fused_step(train_step: TrainStep, collectives: Collectives = Collectives()) -> Step:  # noqa: B008 (a constant)
    """The two halves of a train step as one function, with the collectives between them.

    Args:
        train_step: the two halves.
        collectives: `ACROSS_DEVICES` under pmap or shard_map; the identity on one device.

    Returns:
        A function (state, weights, texts, reference, key, views) -> (state, metrics), `views` being those of this device.
    """

    def step(state, *rest):
        p = train_step.compute_grads(state, *rest)
        g_psi, fit = collectives.mean((p.g_psi, p.fit))
        return train_step.apply_grads(state, StepGrads(collectives.sum(p.g_theta), g_psi, fit, collectives.gather(p.outputs)))

    return step


def ordered_step(train_step: TrainStep, batch: int, devices: list) -> Step:
    """A step that computes one group of views at a time and adds up in their order: the same bits on any number of devices.

    It is two programs, neither of which depends on the number of devices: `compute_grads` for one group (one view, unless the
    prior denoises several together), `apply_grads` for the batch. Each is compiled for a single device, because partitioning
    changes how XLA fuses a program, and with it the last bit.

    Args:
        train_step: the two halves.
        batch: number of views.
        devices: the groups are dealt out over them; the update is computed on the first.

    Returns:
        The compiled step (state, weights, texts, reference, key) -> (state, metrics); the state is donated.

    Raises:
        ValueError: by the step, when it is given reference latents.
    """

    group = train_step.group

    @jax.jit
    def compute_grads(*args) -> StepGrads:
        return jax.tree.map(lambda x: x[None], train_step.compute_grads(*args))

    @partial(jax.jit, donate_argnums=0)
    def apply_grads(state, p: StepGrads):
        total = lambda x: jnp.sum(x, 0)  # noqa: E731
        mean = lambda x: total(x) / (batch // group)  # noqa: E731
        outputs = jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), p.outputs)
        return train_step.apply_grads(
            state, StepGrads(jax.tree.map(total, p.g_theta), jax.tree.map(mean, p.g_psi), mean(p.fit), outputs)
        )

    on_each = remembered(lambda constant: [jax.device_put(constant, device) for device in devices])

    def step(state, weights, texts, reference, key):
        if reference is not None and reference.latents is not None:
            raise ValueError("a step in order takes no reference latents")
        copies = on_each((weights, texts, reference))
        rest = [jax.device_put((state, key), device) for device in devices]
        found = []
        for i in range(batch // group):
            d = i % len(devices)
            mine, key = rest[d]
            views = jnp.arange(i * group, (i + 1) * group)
            found.append(compute_grads(mine, *copies[d], key, jax.device_put(views, devices[d])))
        stack = lambda *x: jnp.concatenate([jax.device_put(part, devices[0]) for part in x])  # noqa: E731
        return apply_grads(rest[0][0], jax.tree.map(stack, *found))

    return step


def compile_train_step(train_step: TrainStep, mode: str, batch: int, devices: list | None = None, reduce: str = "sum") -> Step:
    """The compiled step (state, weights, texts, reference, key) -> (state, metrics) over devices.

    The state is donated: use the one that comes back.

    Args:
        train_step: the two halves, from `train_step.make_train_step`.
        mode: "jit" for one device; "pmap" or "shard_map" to split the views over `devices` and hold everything else on each. Both
            give the same numbers: pmap is the older interface, shard_map the current one.
        batch: number of views per step, a multiple of the number of devices times that of views in a group.
        devices: None for all.
        reduce: "sum" adds up the gradients of the devices; "ordered" (`ordered_step`) is slower and gives the same bits on any
            number of devices.

    Returns:
        The compiled step.

    Raises:
        ValueError: `mode` is unknown, the batch cannot be split evenly, or there are several processes and `mode` is not
            "shard_map" or `reduce` not "sum".
    """
    if jax.process_count() > 1 and (mode, reduce) != ("shard_map", "sum"):
        raise ValueError(f"several processes need mode shard_map and reduce sum, got {mode} and {reduce}")
    if reduce == "ordered":
        devices = jax.devices() if devices is None else devices
        check_split(batch, devices := devices[:1] if mode == "jit" else devices, train_step.group)
        return ordered_step(train_step, batch, devices)
    devices = jax.devices() if devices is None else devices
    return placed(*over_devices(train_step, mode, batch, devices), mode, devices)


def placed(step: Callable, views: Int[Array, "..."], mode: str, devices: list) -> Step:
    """A step of `over_devices`, or what it was compiled to, with its arguments placed on the devices.

    Args:
        step: the function.
        views: its last argument.
        mode: as of `compile_train_step`.
        devices: over which the views are split.

    Returns:
        The step (state, weights, texts, reference, key) -> (state, metrics).
    """
    if jax.process_count() > 1:
        return over_processes(step, views, devices)
    if mode == "jit":
        return lambda *args: step(*args, views)
    return replicated(step, views, devices)


def lowered(step: Any, views: Int[Array, "..."], mode: str, devices: list, arguments: tuple) -> jax.stages.Lowered:
    """A step of `over_devices` for arguments of these shapes, to be compiled before its first call.

    Args:
        step: the function.
        views: its last argument.
        mode: as of `compile_train_step`.
        devices: over which the views are split; they need not be there.
        arguments: the others, arrays or shapes.

    Returns:
        The lowered step.
    """
    mesh = Mesh(np.asarray(devices), (AXIS,))

    def on(spec: PartitionSpec) -> Callable[[Any], jax.ShapeDtypeStruct]:
        place = {"sharding": NamedSharding(mesh, spec)} if mode == "shard_map" else {}
        return lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, **place)

    return step.lower(*jax.tree.map(on(PartitionSpec()), arguments), on(PartitionSpec(AXIS))(views))


def over_devices(train_step: TrainStep, mode: str, batch: int, devices: list | None = None) -> tuple[Callable, Int[Array, "..."]]:
    """The step as a transformed function that can also be lowered, and the views that are its last argument.

    Args:
        train_step: the two halves.
        mode: "jit", "pmap" or "shard_map".
        batch: number of views.
        devices: None for all.

    Returns:
        The function (state, weights, texts, reference, key, views) -> (state, metrics); and the views, [batch], or [devices
            batch/devices] for pmap.

    Raises:
        ValueError: `mode` is unknown, or the batch cannot be split evenly.
    """
    devices = jax.devices() if devices is None else devices
    views = jnp.arange(batch)
    if mode == "jit":
        return jax.jit(fused_step(train_step), donate_argnums=0), views
    check_split(batch, devices, train_step.group)
    if mode == "pmap":
        split = views.reshape(len(devices), -1)
        return jax.pmap(
            fused_step(train_step, ACROSS_DEVICES), AXIS, in_axes=(None,) * 5 + (0,), out_axes=None, devices=devices
        ), split
    if mode == "shard_map":
        mesh, everywhere = Mesh(np.asarray(devices), (AXIS,)), PartitionSpec()
        in_specs = (everywhere,) * 5 + (PartitionSpec(AXIS),)
        # check_vma=False: with the check, gradients of replicated values arrive summed already, and a custom VJP with a scan
        # inside does not trace.
        return jax.jit(
            jax.shard_map(
                fused_step(train_step, ACROSS_DEVICES), mesh=mesh, check_vma=False, in_specs=in_specs, out_specs=everywhere
            ),
            donate_argnums=0,
        ), views
    raise ValueError(f"mode must be jit, pmap or shard_map, got {mode!r}")


def replicated(step: Callable, views: Int[Array, "..."], devices: list) -> Step:
    """The step with its arguments placed on every device before the call.

    Weights, texts and reference are placed once, and the state only if it comes from elsewhere. A state that entered with another
    placement than it leaves with would have the step compiled for both, and weights on one device would be copied to the others
    in every step.

    Args:
        step: the function that `over_devices` gives.
        views: its last argument.
        devices: where the arguments are placed.

    Returns:
        The step (state, weights, texts, reference, key) -> (state, metrics).
    """
    everywhere = NamedSharding(Mesh(np.asarray(devices), (AXIS,)), PartitionSpec())
    constant = remembered(lambda constant: jax.device_put(constant, everywhere))

    def call(state, *rest):
        state = state if state.step.sharding == everywhere else jax.device_put(state, everywhere)
        return step(state, *constant(rest), views)

    return call


def remembered(place: Callable[[tuple], Any]) -> Callable[[tuple], Any]:
    """A function that keeps its last answer, and is called again only if one of the arguments is another object.

    Args:
        place: from a tuple of arrays to their copies on devices.

    Returns:
        `place` with a memory of one answer.

    Examples:
        >>> call, x = remembered(lambda constant: list(constant)), object()
        >>> call((x,)) is call((x,))
        True
    """
    held = placed = None

    def call(constant: tuple) -> Any:
        nonlocal held, placed
        if held is None or any(a is not b for a, b in zip(constant, held, strict=True)):
            held = placed = None  # there may be no room for both
            held, placed = constant, place(constant)
        return placed

    return call


def over_processes(step: Callable, views: Int[Array, "b"], devices: list) -> Step:
    """The step over devices of several processes, which all have to call it with the same values.

    It takes and returns arrays of this process, and holds them on all devices only inside: the rest of the program need not know
    that there are other processes.

    Args:
        step: the function that `over_devices` gives for shard_map.
        views: its last argument, [batch].
        devices: of all processes.

    Returns:
        The step (state, weights, texts, reference, key) -> (state, metrics).
    """
    mesh, numbers = Mesh(np.asarray(devices), (AXIS,)), np.asarray(views)
    here = [device for device in devices if device.process_index == jax.process_index()]
    everywhere = NamedSharding(mesh, PartitionSpec())
    split = jax.make_array_from_callback(numbers.shape, NamedSharding(mesh, PartitionSpec(AXIS)), lambda part: numbers[part])

    def one(x):
        return jax.make_array_from_single_device_arrays(x.shape, everywhere, [jax.device_put(x, device) for device in here])

    spread = partial(jax.tree.map, one)
    constant = remembered(spread)
    given = state_there = None  # the last state, and what lies on all devices of it

    def everywhere_step(state, *rest):
        nonlocal given, state_there
        there = state_there if state is given else spread(state)
        given = state_there = None  # it is donated
        state_there, metrics = step(there, *constant(rest), split)
        given, metrics = jax.tree.map(lambda x: x.addressable_data(0), (state_there, metrics))
        return given, metrics

    return everywhere_step


def check_split(batch: int, devices: list, group: int = 1) -> None:
    """Checks that a batch can be split evenly, without parting a group of views.

    Args:
        batch: number of views.
        devices: over which they are split.
        group: number of views in a group.

    Raises:
        ValueError: `batch` is no multiple of the number of devices times `group`.
    """
    if batch % (len(devices) * group):
        groups = f" times {group} views of a group" if group > 1 else ""
        raise ValueError(f"batch must be a multiple of the {len(devices)} devices{groups}, got {batch}")
