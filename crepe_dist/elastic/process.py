"""A Python process, started on this host or by Ray beside its worker; never imports MXNet or Horovod."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import IO

from crepe_dist.distributed.launch import env_without_rank
from crepe_dist.distributed.signals import terminate_with_parent
from crepe_dist.distributed.watchdog import process_state
from crepe_dist.errors import ExitCode, UserError
from crepe_dist.version import __version__

SAME_VERSIONS_HINT = "install the same crepe_dist, Python and Ray in the environment of every node"
DRAIN_SECONDS = 1.0  # to read the rest of the output, whose pipe a process that this one started may keep open
LINE_BYTES = 8 * 1024  # a longer line comes in pieces

Line = tuple[str, str]  # stdout or stderr, and a line that the process wrote there


class WorkerProcess:
    """Process that runs a module, started, watched and started again by calls that return at once.

    It gets SIGTERM when this object goes or the process that has it dies.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: queue.SimpleQueue[Line] = queue.SimpleQueue()
        self._readers: list[threading.Thread] = []

    def free_port(self) -> int:
        """Return a port that is free on this host."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return int(probe.getsockname()[1])

    def start(self, arguments: Sequence[str], folder: str, variables: Mapping[str, str], version: str) -> None:
        """Start the process; ``poll`` reports an error.

        Args:
            arguments: arguments of Python.
            folder: working directory.
            variables: environment variables beside those of this process.
            version: version of crepe_dist where the command was given.
        """
        host = socket.gethostname()
        try:
            if version != __version__:
                why = f"{__version__} there, {version} where the command was given"
                raise UserError(f"another version of crepe_dist on {host}", why, SAME_VERSIONS_HINT)
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                env={"PYTHONUNBUFFERED": "1", **env_without_rank(), **variables},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=terminate_with_parent,
            )
        except (OSError, UserError) as error:
            remedy = "run the command in a folder that every node has, and share it"
            if isinstance(error, OSError):
                error = UserError(f"no process can be started on {host}", str(error), remedy)
            for line in str(error).splitlines():
                self._lines.put(("stderr", line))
            return
        self._process, self._readers = process, []
        # Neither is a method, which would keep this object alive.
        weakref.finalize(self, process.terminate)
        for name, stream in (("stdout", process.stdout), ("stderr", process.stderr)):
            reader = threading.Thread(target=_read, args=(name, stream, self._lines), daemon=True)
            reader.start()
            self._readers.append(reader)

    def poll(self) -> tuple[list[Line], int | None, bool]:
        """Return the lines printed since the last call, the exit code once there is one, and if it is suspended.

        A process that a debugger stops is not suspended.
        """
        code: int | None = ExitCode.ERROR
        if self._process is not None and (code := self._process.poll()) is not None:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)  # the processes that it started
            for reader in self._readers:
                reader.join(DRAIN_SECONDS)
        found = process_state(self._process.pid) if self._process is not None and code is None else None
        is_suspended = found is not None and found[0] == b"T"
        return [self._lines.get() for _ in range(self._lines.qsize())], code, is_suspended

    def stop(self) -> None:
        """Ask the process to save and stop."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()


def _read(name: str, stream: IO[bytes], lines: queue.SimpleQueue[Line]) -> None:
    while piece := stream.readline(LINE_BYTES):
        lines.put((name, piece.removesuffix(b"\n").decode("utf-8", "replace")))
