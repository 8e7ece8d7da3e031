"""Terminal output of a driver: its own lines and those of its ranks."""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TextIO

from crepe_dist.errors import one_line


class Console:
    """Printer for several threads; closed standard streams are ignored.

    Args:
        name: start of its own lines.
    """

    def __init__(self, stdout: TextIO | None = None, stderr: TextIO | None = None, name: str = "supervise") -> None:
        self._name = name
        self._stdout = stdout or sys.stdout
        self._stderr = stderr or sys.stderr
        # One lock per stream: while a write to stdout blocks, this process can still write to stderr.
        self._locks = {id(stream): threading.Lock() for stream in (self._stdout, self._stderr)}

    def say(self, text: str) -> None:
        """Print a line of this process."""
        # The text may come from another host, so control characters are escaped.
        self._print(self._stderr, f"{self._name}: {one_line(text)}")

    def show(self, rank: int, stream: str, line: str) -> None:
        """Print a line that a worker wrote to ``stream``, stdout or stderr."""
        text = line if rank == 0 or line.startswith("[rank") else f"[rank {rank}] {line}"
        self._print(self._stdout if stream == "stdout" else self._stderr, text)

    def _print(self, stream: TextIO, line: str) -> None:
        with self._locks[id(stream)], contextlib.suppress(OSError, ValueError):
            print(line, file=stream, flush=True)
