"""The command line: `lods COMMAND ...`, the same as `python -m lods_jax COMMAND ...`.

`flags` holds the flags of each command, `command_line` reads them, `commands` does what they say. None loads jax before a command
has checked its arguments, so that help and refusals come at once.
"""

import os
import signal
import sys

from lods_jax.cli import command_line, commands
from lods_jax.core.errors import OUT_OF_MEMORY, UserError, one_line, remarks_wait


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the words after `lods`; None for those of this process.

    Returns:
        The exit code: 0; 2 after bad input, want of memory or a place that cannot be read or written, with one line
            on stderr; 1 after a batch in which a prompt failed; 130 or 143 after a signal; 141 if nobody reads what is printed.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        with remarks_wait():
            command = command_line.parse(argv)
            return commands.RUN[type(command)](command) or 0
    except BrokenPipeError:  # `lods info | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python complains when it flushes
        return 128 + signal.SIGPIPE
    except (UserError, ValueError, OSError, MemoryError, RuntimeError) as error:
        bug = isinstance(error, RuntimeError) and OUT_OF_MEMORY not in str(error)  # of a device, told by XLA
        if bug or os.environ.get("LODS_TRACEBACK"):
            raise
        print(f"lods: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
