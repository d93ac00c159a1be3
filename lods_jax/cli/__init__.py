"""The command line: `lods COMMAND ...`, the same as `python -m lods_jax COMMAND ...`.

`flags` holds the flags of each command, `commands` what it does. Neither loads jax before a command has checked its arguments, so
that help and refusals come at once.
"""

import os
import sys

from lods_jax.cli import commands, flags
from lods_jax.core.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 2 after bad input, which is told in one line."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        command = flags.parse(argv)
        return commands.RUN[type(command)](command) or 0
    except (UserError, ValueError, FileNotFoundError) as error:
        if os.environ.get("LODS_TRACEBACK"):
            raise
        print(f"lods: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
