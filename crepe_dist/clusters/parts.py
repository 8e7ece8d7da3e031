"""Preparation in parts, each by a process that a task on a Ray cluster starts."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from crepe_dist import extras
from crepe_dist.errors import UserError, visible
from crepe_dist.supervising.process import ALIKE, Process
from crepe_dist.supervising.recovery import in_words, own_code
from crepe_dist.version import __version__

POLL_SECONDS = 0.1

Task = tuple[int, list[str], str, str, str]  # the arguments of ``prepare_part``


class Part(NamedTuple):
    """Result of a task.

    Attributes:
        code: exit code of the process; ``None`` if the task was lost.
        printed: its output.
    """

    number: int
    host: str
    code: int | None
    printed: str


def prepare_parts(flags: Sequence[str], parts: int, folder: Path, working: Path) -> Iterator[Part]:
    """Prepare all parts below ``folder``, in folders named 1 to ``parts``; yield each when it is done.

    Args:
        flags: arguments of `prepare`, without its output.
        folder: folder that the caller removes at the end, which ends the processes that still run.
        working: folder in which the processes run; every node sees it, the sources and ``folder``.

    Raises:
        UserError: there is no cluster, or a part failed.
    """
    extras.require("ray", "preparing on Ray")
    folder.mkdir(parents=True, exist_ok=True)
    command = ["-m", "crepe_dist.prepare", "--processes=1", "--overwrite"]
    tasks = []
    for number in range(1, parts + 1):
        arguments = [*command, f"--part={number}/{parts}", f"--out={folder / str(number)}", *flags]
        tasks.append((number, arguments, str(folder), str(working), __version__))
    for part in _on_ray(tasks):
        if part.code != 0:
            print(visible(part.printed), end="", file=sys.stderr)
            raise UserError(
                f"part {part.number} of {parts} on {part.host} {in_words(part.code, hang=False)}",
                remedy="see its message above" if (part.code or 0) > 0 else "run the same command again",
                code=own_code(part.code),
            )
        yield part


def prepare_part(number: int, arguments: list[str], folder: str, working: str, version: str) -> Part:
    """Prepare one part in a process beside Ray's worker, until ``folder`` is gone."""
    host = socket.gethostname()
    if not Path(folder).is_dir():
        problem = UserError(f"{host} has no {folder}", "the parts come there", "choose an --out that all nodes share")
        return Part(number, host, problem.code, f"{problem}\n")
    process, printed, code = Process(), "", None
    process.start(arguments, working, {}, version)
    while code is None:
        time.sleep(POLL_SECONDS)
        if not Path(folder).is_dir():  # the command has ended
            process.stop()
        lines, code = process.poll()
        printed += "".join(f"{line}\n" for _, line in lines)
    return Part(number, host, code, printed)


def _on_ray(tasks: Sequence[Task]) -> Iterator[Part]:
    from crepe_dist.clusters.ray import connect

    stop = signal.getsignal(signal.SIGTERM)
    ray = connect()
    signal.signal(signal.SIGTERM, stop)  # Ray's handler ends this process
    os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"  # of the tasks that fail after the first
    task = ray.remote(num_cpus=1)(prepare_part)
    numbers = {task.remote(*each): each[0] for each in tasks}
    waiting = list(numbers)
    while waiting:
        (done,), waiting = ray.wait(waiting)
        try:
            yield ray.get(done)
        except ray.exceptions.RayTaskError as error:  # the function cannot be imported or called there
            why = str(error).strip().splitlines()[-1]
            raise UserError("a node of the Ray cluster cannot run crepe_dist", why, ALIKE) from error
        except ray.exceptions.RayError as error:
            yield Part(numbers[done], "Ray", None, f"{error}\n")
