"""Terminal output of a driver: its own lines and those of its ranks."""

from __future__ import annotations

import contextlib
import sys
from typing import TextIO

from crepe_dist.errors import one_line


class Console:
    """Printer that ignores closed standard streams.

    Args:
        name: start of its own lines.
    """

    def __init__(self, stdout: TextIO | None = None, stderr: TextIO | None = None, name: str = "supervise") -> None:
        self._name = name
        self._streams = {"stdout": stdout or sys.stdout, "stderr": stderr or sys.stderr}

    def say(self, text: str) -> None:
        """Print a line of this process."""
        # The text may come from another host, so control characters are escaped.
        self._print("stderr", f"{self._name}: {one_line(text)}")

    def show(self, rank: int, stream: str, line: str) -> None:
        """Print a line that a rank wrote to ``stream``, stdout or stderr."""
        self._print(stream, line if rank == 0 or line.startswith("[rank") else f"[rank {rank}] {line}")

    def _print(self, stream: str, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            print(line, file=self._streams[stream], flush=True)
