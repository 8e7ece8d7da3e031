"""Command lines as the user would type them, for help texts and error messages."""

import os
import sys
from pathlib import Path

# `crepe` or `python -m crepe_dist`: how the user started the supervisor of this process.
PROGRAM_ENV = "CREPE_DIST_PROGRAM"


def program_name(command: str) -> str:
    """Return a command line in the form that the user typed: `crepe …` or `python -m crepe_dist …`."""
    started_as = "crepe" if Path(sys.argv[0]).name == "crepe" else "python -m crepe_dist"
    return f"{os.environ.get(PROGRAM_ENV, started_as)} {command}"


def uv_prefix() -> str:
    """Return `uv run ` if uv started this process, because `crepe` is then not on the PATH of the user's shell."""
    return "uv run " if "UV" in os.environ else ""


def command_line(command: str) -> str:
    """Return a command as the user would type it, for one process."""
    return f"{uv_prefix()}{program_name(command)}"
