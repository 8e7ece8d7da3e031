"""Process that ends an agent's workers if the agent is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from crepe_dist.distributed import processes

POLL_SECONDS = 0.1


class Keeper:
    """Forked process that outlives its parent, the agent.

    Create it before the agent starts threads or opens descriptors, which the fork would inherit. It notices the
    agent's death by the end of a pipe. Workers notice it as well, and have ``grace`` seconds to save.
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
        """Set the grace period."""
        self._write(f"grace {seconds}\n")

    def add(self, pid: int, began: int | None) -> None:
        """Add a worker, identified as in ``processes``."""
        if began is not None:
            self._write(f"{pid} {began}\n")

    def close(self) -> None:
        """End the keeper; call after all workers have ended."""
        os.close(self._sink)
        with contextlib.suppress(OSError):
            os.waitpid(self._pid, 0)

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError):  # the keeper was killed
            os.write(self._sink, line.encode())


def _keep(source: int) -> None:
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Holding the agent's stdout would hide its end from the supervisor.
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
        time.sleep(POLL_SECONDS)
    for worker in workers:
        processes.kill(*worker)
