"""How a step is made to fit into the memory of a device: pure decisions, which compile nothing.

A plan gives up time for memory. The first candidate gives up nothing, each later one more than the one before. Fewer views at a
time come first, since they repeat no computation; what is computed again in the backward pass comes after. Of the operations of
LODS-LoRA with Stable Diffusion 2.1 at 512 pixels that is 5 % for the transformer blocks, at most 8 % for the ResNet blocks and
20 % for the autoencoder.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lods_jax.core.errors import UserError
from lods_jax.distillation.view_chunks import chunk_size

GIB = 2**30


class MemoryPlan(NamedTuple):
    """What a step gives up for memory.

    Attributes:
        view_chunk: most views that a device computes at a time; 0 for all of them.
        remat: whether transformer blocks are computed again in the backward pass.
        remat_resnets: whether ResNet blocks of the U-Net are computed again in the backward pass.
        vae_slicing: whether views are encoded one after the other, and again in the backward pass.
    """

    view_chunk: int = 0
    remat: bool = False
    remat_resnets: bool = False
    vae_slicing: bool = False


def read_memory(saved: Any) -> MemoryPlan | None:
    """The plan that a checkpoint holds.

    Args:
        saved: of the checkpoint; None where it has none.

    Returns:
        The plan, or None.

    Raises:
        TypeError: it is no mapping of the plan's keys to whole numbers.
    """
    if saved is None:
        return None
    if not isinstance(saved, Mapping) or not all(isinstance(x, int) and 0 <= x < 2**31 for x in saved.values()):
        raise TypeError(f"a memory plan must be of whole numbers, got {saved!r}")
    return MemoryPlan(**saved)


class Choice(NamedTuple):
    """A plan that fits.

    Attributes:
        plan: the plan.
        peak: bytes of a device that its step takes.
        tried: (plan, its peak, or None where it does not compile) of all that do not fit, in their order.
    """

    plan: MemoryPlan
    peak: int
    tried: tuple[tuple[MemoryPlan, int | None], ...] = ()


def candidates(given: MemoryPlan, views: int, group: int, learns: bool) -> list[MemoryPlan]:
    """Plans from the fastest to the leanest.

    Args:
        given: what the user has chosen; every candidate has it.
        views: of a step, on each device.
        group: number of views that cannot be parted.
        learns: whether gradients flow through a U-Net, into what the objective learns.

    Returns:
        Plans, the first being the given one.

    Examples:
        >>> [plan.view_chunk for plan in candidates(MemoryPlan(), 8, 1, learns=False)]
        [0, 4, 2, 1, 1]
    """
    plans, size = [given], chunk_size(given.view_chunk or views, views, group)
    while (smaller := chunk_size(size // 2, views, group)) < size:
        size = smaller
        plans.append(given._replace(view_chunk=size))
    for name in ("remat", "remat_resnets", "vae_slicing"):
        if not getattr(plans[-1], name) and (learns or name == "vae_slicing"):
            plans.append(plans[-1]._replace(**{name: True}))
    return plans


def first_that_fits(
    plans: Sequence[MemoryPlan], peak_of: Callable[[MemoryPlan], int | None], memory: int | float, advice: str
) -> Choice:
    """The first plan whose step fits into a device. No later one is looked at.

    Args:
        plans: from `candidates`.
        peak_of: plan -> bytes that its step takes; None if it does not compile for want of memory.
        memory: bytes of a device that a step may take.
        advice: end of the message if none fits.

    Returns:
        The choice.

    Raises:
        UserError: no plan fits; the message names the one that takes least.
    """
    tried: list[tuple[MemoryPlan, int | None]] = []
    for plan in plans:
        peak = peak_of(plan)
        if peak is not None and peak <= memory:
            return Choice(plan, peak, tuple(tried))
        tried.append((plan, peak))
    known = [(peak, plan) for plan, peak in tried if peak is not None]
    least = "none of them compiles"
    if known:
        peak, plan = min(known)
        least = f"the least is {peak / GIB:.2f} GiB, with {words(plan)}"
    room = "a device" if memory == float("inf") else f"the {memory / GIB:.2f} GiB of a device"
    raise UserError(f"no memory plan makes a step fit into {room}: {least}; {advice}")


def words(plan: MemoryPlan) -> str:
    """A plan in words.

    Examples:
        >>> words(MemoryPlan(view_chunk=1, remat=True))
        '1 view at a time, transformer blocks computed again'
    """
    chunk = f"{plan.view_chunk} view{'s' if plan.view_chunk > 1 else ''} at a time"
    parts = [chunk if plan.view_chunk else "all views at once"]
    again = {"transformer blocks": plan.remat, "ResNet blocks": plan.remat_resnets}
    if named := " and ".join(name for name, on in again.items() if on):
        parts.append(f"{named} computed again")
    return ", ".join(parts + ["views encoded one by one"] * plan.vae_slicing)


def told(choice: Choice, memory: int | float) -> str:
    """A choice and its reason as one line.

    Args:
        choice: from `first_that_fits`.
        memory: bytes of a device that a step may take.

    Returns:
        The line.

    Examples:
        >>> told(Choice(MemoryPlan(view_chunk=4), 3 * GIB, ((MemoryPlan(), 5 * GIB),)), 4.0 * GIB)
        '4 views at a time: 3.00 of 4.00 GiB (all views at once: 5.00)'
    """
    of = "" if memory == float("inf") else f" of {memory / GIB:.2f}"
    others = [f"{words(plan)}: {'not compiled' if peak is None else f'{peak / GIB:.2f}'}" for plan, peak in choice.tried]
    return f"{words(choice.plan)}: {choice.peak / GIB:.2f}{of} GiB" + (f" ({'; '.join(others)})" if others else "")
