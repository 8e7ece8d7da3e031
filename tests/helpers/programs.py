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
    return _under_the_supervisor(processes, TESTS / path, *arguments)


def supervised_command(name: str, *arguments: object, processes: int) -> list[str]:
    """Return the line that runs a command of ours in so many processes under the supervisor.

    It takes less than half of the processor time of ``horovodrun``, whose processes import MXNet and Horovod.
    """
    return _under_the_supervisor(processes, "-m", "crepe_dist", name, *arguments)


def _under_the_supervisor(processes: int, *worker: object) -> list[str]:
    return program("elastic/supervise.py", "-np", processes, "--max-restarts", 0, *worker)
