"""What the supervisor prints: its own lines, and those of its workers."""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import Any, TextIO

from crepe_dist.errors import shown


class Console:
    """For many threads; a reader that has left, of stdout or stderr, holds up nothing."""

    def __init__(self, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        self._stdout = stdout or sys.stdout
        self._stderr = stderr or sys.stderr
        # One each: where stdout is held up, the supervisor can still speak.
        self._locks = {id(stream): threading.Lock() for stream in (self._stdout, self._stderr)}
        self.ranks: dict[object, int] = {}  # of workers by name

    def say(self, text: str) -> None:
        """A line of the supervisor."""
        # What a terminal would act on may come from another host.
        self._print(self._stderr, "supervise: " + "".join(map(shown, text)))

    def show(self, worker: Any, stream: str, line: str) -> None:
        """A line of a worker, from its ``stream``: stdout or stderr."""
        rank = self.ranks.get(worker, 0)
        text = line if rank == 0 or line.startswith("[rank") else f"[rank {rank}] {line}"
        self._print(self._stdout if stream == "stdout" else self._stderr, text)

    def _print(self, stream: TextIO, line: str) -> None:
        with self._locks[id(stream)], contextlib.suppress(OSError, ValueError):
            print(line, file=stream, flush=True)
