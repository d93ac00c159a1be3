"""The kind of device that a program is traced for, on which kernels and the sizes of loops depend."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_PLATFORM: ContextVar[str | None] = ContextVar("platform", default=None)


def platform() -> str:
    """The platform that is traced for: that of `traced_for`, else JAX's default."""
    return _PLATFORM.get() or jax.default_backend()


@contextmanager
def traced_for(name: str) -> Iterator[None]:
    """What is traced inside is for devices of this platform, which need not be there.

    Args:
        name: "tpu", "gpu" or "cpu".

    Yields:
        Nothing.

    Examples:
        >>> with traced_for("tpu"):
        ...     platform()
        'tpu'
    """
    token = _PLATFORM.set(name)
    try:
        yield
    finally:
        _PLATFORM.reset(token)
