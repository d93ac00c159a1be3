"""What JAX compiles while a block runs, and the seconds that it takes: told by the events of `jax.monitoring`."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from jax import monitoring

PREFIX = "/jax/core/compile/"
STAGES = {f"{PREFIX}{name}_duration": name for name in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")}


class Span(NamedTuple):
    """One stage of a compilation."""

    stage: str  # a value of STAGES
    name: str  # of the function, "jit(train_step)"; of a stage before `backend_compile` without "jit"
    begin: float  # seconds since the epoch
    end: float


@contextmanager
def compilations() -> Iterator[list[Span]]:
    """Yields a list that grows by what this thread traces, lowers and compiles until the block ends."""
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
    """The length of the union of the spans: functions are traced inside others, and those seconds count once."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted((span.begin, span.end) for span in spans):
        total += max(end - max(begin, until), 0.0)
        until = max(end, until)
    return total
