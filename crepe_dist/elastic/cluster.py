"""Interface of the clusters that run the processes of the ranks, and the cluster of this host alone."""

import contextlib
import sys
import time
from typing import Any, NamedTuple

from crepe_dist.distributed.endpoint import SECONDS_ENV
from crepe_dist.elastic.process import WorkerProcess
from crepe_dist.errors import UserError, escape_to_one_line
from crepe_dist.formatting import timestamp

MAX_PROCESSES = 1 << 16  # Maximum number of processes of a run.
LOOPBACK = "127.0.0.1"


class NodeLostError(Exception):
    """A call to a rank failed because its node, or the cluster's process for the rank, was lost."""


class Slot(NamedTuple):
    """Slot for one rank: a place in the cluster that can run a process.

    Attributes:
        host: Host of the rank.
        threads: Number of threads of the rank. If it is ``None``, the cores of the host are divided evenly among its
            ranks.
    """

    host: str
    threads: int | None


class Cluster:
    """Cluster of nodes that run the processes of the ranks. This base class runs all ranks on this host.

    Attributes:
        name: Name of the cluster, for messages.
        poll_seconds: Seconds between two polls of the ranks.
        answers_from_start: True if a rank answers as soon as its process is started, False if it may take any time.
    """

    name = "supervise"
    poll_seconds = 0.05
    answers_from_start = True

    def __init__(self) -> None:
        self._processes: list[Any] = []

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Release other resources than slots."""

    def variables(self) -> dict[str, str]:
        """Return environment variables for all ranks, which are added to the environment of their hosts."""
        return {}

    def free_slots(self) -> int:
        """Return the number of slots of the running nodes, including slots that are in use."""
        return MAX_PROCESSES

    def allocate(self, processes: int) -> list[Slot]:
        """Allocate a slot for each process. Return an empty list if there are not enough free slots."""
        self._processes = [WorkerProcess() for _ in range(processes)]
        return [Slot(LOOPBACK, None)] * processes

    def call(self, rank: int, method: str, *arguments: Any) -> Any:
        """Call a method of the ``WorkerProcess`` of a rank, and return a handle for ``get_result``."""
        return getattr(self._processes[rank], method)(*arguments)

    def get_result(self, handle: Any) -> Any:
        """Return the result of a call, or ``None`` if the result has not arrived yet.

        Raises:
            NodeLostError: The result will never arrive, because the node was lost.
        """
        return handle

    def pause(self, seconds: float) -> None:
        """Wait before the next poll of the ranks."""
        time.sleep(seconds)

    def has_changed(self) -> bool:
        """Return whether a node has left or returned since ``allocate``, so that the ranks need other slots."""
        return False

    def seconds_for_return(self) -> float:
        """Return the number of seconds during which a lost node may still return, or 0."""
        return 0.0

    def shortage(self, processes: str, slots: int) -> UserError:
        """Return the error for the case that there are not enough slots for ``processes`` after the time limit."""
        return UserError(
            f"the {self.name} cluster has no slots for {processes}",
            f"all its nodes together have slots for {slots}",
            f"give a lower --processes, or add nodes; {SECONDS_ENV} sets the time limit",
        )

    def log(self, text: str) -> None:
        """Print a line to stderr, with the time. Escape control characters, because another host may have sent it."""
        print_line(f"{timestamp()} {self.name}: {escape_to_one_line(text)}", "stderr")

    def release(self) -> None:
        """Kill all ranks, and free their slots."""
        for process in self._processes:
            process.kill()
        self._processes = []


def print_line(line: str, stream: str) -> None:
    """Print a line to ``stdout`` or ``stderr``."""
    with contextlib.suppress(OSError, ValueError):  # The stream may be closed.
        print(line, file=getattr(sys, stream), flush=True)
