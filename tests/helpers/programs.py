"""Command lines of the small programs that stand beside the tests and run in several processes."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.conftest import launch_prefix

TESTS = Path(__file__).parents[1]


def program(path: str, *arguments: object, processes: int = 1) -> list[str]:
    """Return the command that runs a program in so many processes under ``horovodrun``, or in one without it.

    Args:
        path: path of the program below ``tests``.
    """
    return [*launch_prefix(processes), sys.executable, str(TESTS / path), *map(str, arguments)]


def supervised(path: str, *arguments: object, processes: int) -> list[str]:
    """Return the command that runs a program in so many processes under the supervisor, without restarts."""
    flags = ("-np", processes, "--max-restarts", 0, str(TESTS / path))
    return program("elastic/supervise.py", *flags, *arguments)
