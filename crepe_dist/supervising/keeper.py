"""A process beside each agent that ends the agent's workers should the agent be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from crepe_dist.distributed import processes

LOOK_SECONDS = 0.1


class Keeper:
    """Forks it; to be called before any thread or other descriptor of the caller exists that it should not hold.

    It learns of the caller's end by that of a pipe. Workers notice it, too, and have ``grace`` seconds to save.
    """

    def __init__(self) -> None:
        source, self._sink = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.close(self._sink)
                _keep(source)
            finally:
                os._exit(0)
        os.close(source)

    def grace(self, seconds: float) -> None:
        self._write(f"grace {seconds}\n")

    def add(self, pid: int, began: int | None) -> None:
        if began is not None:
            self._write(f"{pid} {began}\n")

    def close(self) -> None:
        """All workers have ended."""
        os.close(self._sink)
        with contextlib.suppress(OSError):
            os.waitpid(self._pid, 0)

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError):  # somebody killed it
            os.write(self._sink, line.encode())


def _keep(source: int) -> None:
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # The supervisor must see the end of the agent's output when the agent ends.
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    grace = 30.0
    workers: list[tuple[int, int]] = []
    with os.fdopen(source) as lines:
        for line in lines:
            first, second = line.split()
            if first == "grace":
                grace = float(second)
            else:
                workers.append((int(first), int(second)))
    until = time.monotonic() + grace
    while time.monotonic() < until and any(processes.runs(*worker) for worker in workers):
        time.sleep(LOOK_SECONDS)
    for worker in workers:
        processes.kill(*worker)
