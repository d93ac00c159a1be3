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
    """Collectives over the data axis; the identity on one device."""

    sum: Callable = lambda x: x
    mean: Callable = lambda x: x
    gather: Callable = lambda x: x  # concatenates views


ACROSS_DEVICES = Collectives(
    partial(jax.lax.psum, axis_name=AXIS),
    partial(jax.lax.pmean, axis_name=AXIS),
    partial(jax.lax.all_gather, axis_name=AXIS, tiled=True),
)


def fused_step(train_step: TrainStep, collectives: Collectives = Collectives()) -> Step:  # noqa: B008 (a constant)
    """The whole step of a device's share of the views: (state, weights, texts, reference, key, views) -> (state, metrics)."""

    def step(state, *rest):
        p = train_step.compute_grads(state, *rest)
        g_psi, fit = collectives.mean((p.g_psi, p.fit))
        return train_step.apply_grads(state, StepGrads(collectives.sum(p.g_theta), g_psi, fit, collectives.gather(p.outputs)))

    return step


def ordered_step(train_step: TrainStep, batch: int, devices: list) -> Step:
    """The step from one view at a time, added up in the order of the views: the same bits on any number of devices.

    Two programs instead of one, and neither knows how many devices there are: `compute_grads` is of one view, `apply_grads`
    of the batch. Each is compiled for a single device: partitioning changes how a program is fused, and with it the last bit.
    """

    @jax.jit
    def compute_grads(*args) -> StepGrads:
        return jax.tree.map(lambda x: x[None], train_step.compute_grads(*args))

    @partial(jax.jit, donate_argnums=0)
    def apply_grads(state, p: StepGrads):
        total = lambda x: jnp.sum(x, 0)  # noqa: E731
        mean = lambda x: total(x) / batch  # noqa: E731
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
        for i in range(batch):
            d = i % len(devices)
            mine, key = rest[d]
            found.append(compute_grads(mine, *copies[d], key, jax.device_put(jnp.arange(i, i + 1), devices[d])))
        stack = lambda *x: jnp.concatenate([jax.device_put(part, devices[0]) for part in x])  # noqa: E731
        return apply_grads(rest[0][0], jax.tree.map(stack, *found))

    return step


def compile_train_step(train_step: TrainStep, mode: str, batch: int, devices: list | None = None, reduce: str = "sum") -> Step:
    """The compiled step (state, weights, texts, reference, key) -> (state, metrics) over devices; the state is donated.

    Args:
      mode: "jit" on one device; "pmap" or "shard_map" split the views over `devices` and hold everything else on each.
        Both give the same numbers: pmap is the field's habit, shard_map what it is made of today.
      reduce: "sum" adds up the gradients of the devices; "ordered" (`ordered_step`) gives the same bits on any number of devices,
        and takes longer.
    """
    if jax.process_count() > 1 and (mode, reduce) != ("shard_map", "sum"):
        raise ValueError(f"several processes need mode shard_map and reduce sum, got {mode} and {reduce}")
    if reduce == "ordered":
        devices = jax.devices() if devices is None else devices
        check_split(batch, devices := devices[:1] if mode == "jit" else devices)
        return ordered_step(train_step, batch, devices)
    step, views = over_devices(train_step, mode, batch, devices)
    devices = jax.devices() if devices is None else devices
    if jax.process_count() > 1:
        return over_processes(step, views, devices)
    if mode == "jit":
        return lambda *args: step(*args, views)
    return replicated(step, views, devices)


def over_devices(train_step: TrainStep, mode: str, batch: int, devices: list | None = None) -> tuple[Callable, Int[Array, "..."]]:
    """The step as a transformed function, which can also be lowered, and the views that are its last argument."""
    devices = jax.devices() if devices is None else devices
    views = jnp.arange(batch)
    if mode == "jit":
        return jax.jit(fused_step(train_step), donate_argnums=0), views
    check_split(batch, devices)
    if mode == "pmap":
        split = views.reshape(len(devices), -1)
        return jax.pmap(
            fused_step(train_step, ACROSS_DEVICES), AXIS, in_axes=(None,) * 5 + (0,), out_axes=None, devices=devices
        ), split
    if mode == "shard_map":
        mesh, everywhere = Mesh(np.asarray(devices), (AXIS,)), PartitionSpec()
        specs = {"in_specs": (everywhere,) * 5 + (PartitionSpec(AXIS),), "out_specs": everywhere}
        # check_vma=False: with the check, gradients of replicated values arrive summed already, and a custom VJP with a scan
        # inside does not trace.
        return jax.jit(
            jax.shard_map(fused_step(train_step, ACROSS_DEVICES), mesh=mesh, check_vma=False, **specs), donate_argnums=0
        ), views
    raise ValueError(f"mode must be jit, pmap or shard_map, got {mode!r}")


def replicated(step: Callable, views: Int[Array, "..."], devices: list) -> Step:
    """The step with its arguments on every device beforehand: what never changes once, a state if it comes from elsewhere.

    If a state entered with another placement than it leaves with, the step would be compiled for both; if weights lay on one
    device, they would be sent to the others in every step.
    """
    everywhere = NamedSharding(Mesh(np.asarray(devices), (AXIS,)), PartitionSpec())
    constant = remembered(lambda constant: jax.device_put(constant, everywhere))

    def call(state, *rest):
        state = state if state.step.sharding == everywhere else jax.device_put(state, everywhere)
        return step(state, *constant(rest), views)

    return call


def remembered(place: Callable[[tuple], Any]) -> Callable[[tuple], Any]:
    """`place` with the answer for the last arguments kept: they are moved again only if one of them is another object."""
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

    It takes and gives arrays of this process. Only inside do they lie on all devices: whoever looks at a state need not know that
    there are other processes.
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


def check_split(batch: int, devices: list) -> None:
    if batch % len(devices):
        raise ValueError(f"batch must be a multiple of the {len(devices)} devices, got {batch}")
