"""Errors that a person can mend, and text that a terminal may show."""


class UserError(Exception):
    """Bad input: one line for the console, exit code 2."""


def one_line(error: BaseException, limit: int = 1000) -> str:
    """What a person reads of an error: one line that names the file, if the system named one.

    Args:
      error: of any type; one without a text is told by its type.
      limit: characters from which on the middle is left out, as of a file name of 5,000.

    Returns:
      A line that is safe to print.
    """
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    elif isinstance(error, MemoryError):
        text = f"there is not enough memory: {text}" if text else "there is not enough memory"
    line = escaped(" ".join(text.split()) or type(error).__name__)
    return line if len(line) <= limit else f"{line[: limit // 2]} ... {line[-limit // 2 :]}"


def escaped(text: str) -> str:
    r"""The text with `\x1b` and its like spelled out: names and keys of files must not command the terminal. Keeps line ends."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def tell(text: object) -> None:
    """Prints a text that may hold names from elsewhere."""
    print(escaped(str(text)), flush=True)
