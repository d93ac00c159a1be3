"""What is compiled once and shared, and the compilations of JAX within a block of code, from the events of `jax.monitoring`."""

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from jax import monitoring

PREFIX = "/jax/core/compile/"
STAGES = {f"{PREFIX}{name}_duration": name for name in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")}


class Span(NamedTuple):
    """One stage of a compilation.

    Attributes:
        stage: a value of STAGES.
        name: of the function, "jit(train_step)"; without "jit" for a stage before `backend_compile`.
        begin: seconds since the epoch.
        end: seconds since the epoch.
    """

    stage: str
    name: str
    begin: float
    end: float


PRIOR_KEYS = ("prior", "weights", "sha256", "adapters")  # of `build`: what runs with one prior share, whatever else differs

Once = Callable[[Hashable, Callable[[], Any]], Any]  # see `memory`


def memory() -> Once:
    """Builds a function (key, make) that calls `make` the first time that it sees a key, and gives the same answer afterwards.

    A function that is jitted anew is compiled anew, and not all memory of a compilation comes back. Runs of one configuration
    share what depends on it alone (the prior, the step at static shapes, renderers) by sharing such a memory.

    Returns:
        The function. What fails is not remembered.

    Examples:
        >>> once = memory()
        >>> once("step", lambda: object()) is once("step", lambda: object())
        True
    """
    made: dict[Hashable, Any] = {}

    def once(key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in made:
            made[key] = make()
        return made[key]

    return once


def memories(most: int) -> Callable[[Hashable], Once]:
    """Builds a function from a key to the memory of that key, which forgets all but the memories that were used last.

    Args:
        most: number of memories that stay.

    Returns:
        The function.

    Examples:
        >>> memory_of = memories(1)
        >>> first = memory_of("a")
        >>> memory_of("b") is first, memory_of("a") is first
        (False, False)
    """
    kept: dict[Hashable, Once] = {}

    def memory_of(key: Hashable) -> Once:
        kept[key] = kept.pop(key, None) or memory()
        for oldest in [*kept][: len(kept) - most]:
            del kept[oldest]
        return kept[key]

    return memory_of


@contextmanager
def compilations() -> Iterator[list[Span]]:
    """Yields a list that grows by the stages of all that this thread compiles until the block ends.

    Yields:
        The list of spans.
    """
    spans: list[Span] = []
    thread = threading.get_ident()

    def note(event: str, begin: float, end: float, **about: str | int) -> None:
        if event in STAGES and threading.get_ident() == thread:
            spans.append(Span(STAGES[event], str(about.get("fun_name", "")), begin, end))

    monitoring.register_event_time_span_listener(note)
    try:
        yield spans
    finally:
        monitoring.unregister_event_time_span_listener(note)


def compile_seconds(spans: Iterable[Span]) -> float:
    """Seconds of compilation: the length of the union of spans, since functions are traced inside others.

    Args:
        spans: from `compilations`.

    Returns:
        Seconds.

    Examples:
        >>> compile_seconds([Span("", "", 0.0, 2.0), Span("", "", 1.0, 3.0)])
        3.0
    """
    total, until = 0.0, float("-inf")
    for begin, end in sorted((span.begin, span.end) for span in spans):
        total += max(end - max(begin, until), 0.0)
        until = max(end, until)
    return total
