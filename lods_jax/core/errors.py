"""Errors that the user can fix, text that is safe to print, and remarks beside the results of a command."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # in the errors of XLA


class UserError(Exception):
    """Bad input: one line for the console, exit code 2."""


def one_line(error: BaseException, limit: int = 1000) -> str:
    """An error as one line that names the file, if the system named one.

    Args:
        error: of any type; one without a text gives the name of its type.
        limit: number of characters from which on the middle is left out, as of a very long file name.

    Returns:
        A line that is safe to print.

    Examples:
        >>> one_line(FileNotFoundError(2, "No such file or directory", "mug.png"))
        'mug.png: No such file or directory'
    """
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    elif isinstance(error, MemoryError):
        text = f"there is not enough memory: {text}" if text else "there is not enough memory"
    line = escaped(" ".join(text.split()) or type(error).__name__)
    return line if len(line) <= limit else f"{line[: limit // 2]} ... {line[-limit // 2 :]}"


def escaped(text: str) -> str:
    r"""The text with control characters spelled out: names and keys of files must not command the terminal.

    Args:
        text: may hold names from elsewhere.

    Returns:
        The text with \x1b and its like as four visible characters; line ends stay.

    Examples:
        >>> escaped(chr(27) + "[2J") == chr(92) + "x1b[2J"
        True
    """
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def tell(text: object) -> None:
    """Prints one text, which may hold names from elsewhere, in its `escaped` form."""
    print(escaped(str(text)), flush=True)


_waiting: ContextVar[list[str] | None] = ContextVar("waiting", default=None)


def remark(line: str) -> None:
    """Prints a line on stderr, once however often it is made; within `remarks_wait` not before the work begins.

    Args:
        line: may hold names from elsewhere.
    """
    if (waiting := _waiting.get()) is None:
        _print_once(escaped(line))
    else:
        waiting.append(line)


def release_remarks() -> None:
    """Prints the remarks that wait, and lets none wait from now on: the work begins."""
    waiting = _waiting.get() or []
    _waiting.set(None)
    for line in waiting:
        remark(line)


@contextmanager
def remarks_wait() -> Iterator[None]:
    """A block in which remarks wait until `release_remarks` or its end, and are lost if it fails: a refusal is one line.

    Yields:
        Nothing.
    """
    token = _waiting.set([])
    try:
        yield
        release_remarks()
    finally:
        _waiting.reset(token)


@cache
def _print_once(line: str) -> None:
    print(line, file=sys.stderr)
