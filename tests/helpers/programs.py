"""Command lines of the small programs that stand beside the tests and run in several processes."""

import sys
from pathlib import Path

from tests.conftest import launch_prefix

TESTS = Path(__file__).parents[1]


def program(path: str, *arguments: object, processes: int = 1) -> list[str]:
    """Return the command that runs a program. Several processes are started by ``horovodrun``.

    Args:
        path: Path of the program relative to ``tests``.
    """
    return [*launch_prefix(processes), sys.executable, str(TESTS / path), *map(str, arguments)]


def supervised(path: str, *arguments: object, processes: int) -> list[str]:
    """Return the command that runs a program in several processes under the supervisor, without restarts."""
    return _under_the_supervisor(processes, TESTS / path, *arguments)


def supervised_command(name: str, *arguments: object, processes: int) -> list[str]:
    """Return the command line that runs one of our commands in several processes under the supervisor.

    The supervisor needs less than half the processor time of ``horovodrun``, whose processes import MXNet and Horovod.
    """
    return _under_the_supervisor(processes, "-m", "crepe_dist", name, *arguments)


def _under_the_supervisor(processes: int, *worker: object) -> list[str]:
    return program("elastic/supervise.py", "-np", processes, "--max-restarts", 0, *worker)
