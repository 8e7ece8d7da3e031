"""Python process of a rank. The driver or a Ray worker controls the process through a ``WorkerProcess``."""

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
# Seconds to wait for the rest of the output after the process has exited. The wait is limited, because a child of the
# process may keep the pipe open forever.
DRAIN_SECONDS = 1.0
LINE_BYTES = 8 * 1024  # Maximum number of bytes of a line. A longer line is split into pieces of this size.
MAX_POLL_BYTES = 1 << 18  # One poll returns no further lines after this number of bytes. A line counts 32 bytes more.

Line = tuple[str, str]  # Name of the stream (stdout or stderr), and a line that the process wrote to it.


class WorkerProcess:
    """Controller of the process of a rank. No method waits for the rank to finish, so the driver can poll many ranks.

    The process of the rank gets SIGTERM when this object is deleted, or when the process that holds this object ends.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: queue.SimpleQueue[Line] = queue.SimpleQueue()
        self._readers: list[threading.Thread] = []

    def free_port(self) -> int:
        """Return a free port of this host."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return int(probe.getsockname()[1])

    def start(self, arguments: Sequence[str], folder: str, variables: Mapping[str, str], version: str) -> None:
        """Start the process. If it cannot be started, ``poll`` returns the error as lines of stderr.

        Args:
            arguments: Command-line arguments of Python.
            folder: Working directory.
            variables: Environment variables that are added to the environment of this process.
            version: Version of crepe_dist on the host where the user ran the command.
        """
        host = socket.gethostname()
        try:
            if version != __version__:
                why = f"{host} has version {__version__}, and the command was given with version {version}"
                raise UserError(f"{host} has another version of crepe_dist", why, SAME_VERSIONS_HINT)
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
        # Do not pass bound methods of this object to the finalizer or the threads, because that would keep it alive.
        weakref.finalize(self, process.terminate)
        for name, stream in (("stdout", process.stdout), ("stderr", process.stderr)):
            reader = threading.Thread(target=_read, args=(name, stream, self._lines), daemon=True)
            reader.start()
            self._readers.append(reader)

    def poll(self) -> tuple[list[Line], int | None, bool]:
        """Return the oldest lines that were not returned yet, the exit code, and whether the process is suspended.

        The exit code is ``None`` while the process runs, and until all lines have been returned. A process that a
        debugger has stopped is not considered suspended.
        """
        code: int | None = ExitCode.ERROR
        if self._process is not None and (code := self._process.poll()) is not None:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)  # Kill the children of the process.
            for reader in self._readers:
                reader.join(DRAIN_SECONDS)
        state = process_state(self._process.pid) if self._process is not None and code is None else None
        is_suspended = state is not None and state[0] == b"T"
        lines: list[Line] = []
        num_bytes = 0
        while self._lines.qsize() and num_bytes < MAX_POLL_BYTES:
            lines.append(self._lines.get())
            num_bytes += 4 * len(lines[-1][1]) + 32
        return lines, None if self._lines.qsize() else code, is_suspended

    def stop(self) -> None:
        """Ask the process to save its state and stop."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()


def _read(name: str, stream: IO[bytes], lines: queue.SimpleQueue[Line]) -> None:
    while piece := stream.readline(LINE_BYTES):
        lines.put((name, piece.removesuffix(b"\n").decode("utf-8", "replace")))
