"""Errors that the user can fix, and text that is safe to print."""


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
