"""Worker processes that exist during a whole measurement, and are stopped (SIGSTOP) between requests.

Requests and answers are lines of JSON over a Unix socket, because horovodrun does not pass standard input on. A worker
connects to the path in its last argument, sends ``{"number": …, "pid": …}``, and ends when the socket closes.
"""

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from crepe_dist.errors import UserError

START_SECONDS = 120.0  # for imports of several processes on one core, and the rendezvous
ANSWER_SECONDS = 600.0
END_SECONDS = 20.0


class Workers:
    """Group of worker processes.

    Args:
        commands: commands that start the workers; the path of the socket is appended to each. One command may start
            several workers (horovodrun).
        size: number of workers that connect.
        environment: environment of the commands.

    Raises:
        UserError: a worker does not start in time, or ends.
    """

    def __init__(self, commands: Sequence[Sequence[str]], size: int, environment: Mapping[str, str]) -> None:
        self._open = ExitStack()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._streams: list[TextIO] = []  # by number of the worker
        self._pids: list[int] = []
        try:
            folder = Path(self._open.enter_context(tempfile.TemporaryDirectory()))
            self._output = self._open.enter_context((folder / "output").open("w+b"))
            listener = self._open.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(folder / "socket"))
            listener.listen(size)
            listener.settimeout(0.5)
            for command in commands:
                self._processes.append(
                    subprocess.Popen(
                        [*command, str(folder / "socket")],
                        stdin=subprocess.DEVNULL,
                        stdout=self._output,
                        stderr=subprocess.STDOUT,
                        env=dict(environment),
                        # Linux shares a busy core among sessions (sched_autogroup), and horovodrun gives each process
                        # a session of its own. Without one, independent processes would be slower.
                        start_new_session=True,
                    )
                )
            self._accept(listener, size)
        except BaseException:
            self.close()
            raise

    def ask(self, name: str, only: int | None = None, **arguments: Any) -> list[dict[str, Any]]:
        """Send a request to the first ``only`` workers (default: all) at once; return their answers.

        Raises:
            UserError: a worker ended or timed out.
        """
        streams, pids = self._streams[:only], self._pids[:only]
        self._signal(signal.SIGCONT, pids)
        try:
            for stream in streams:
                stream.write(json.dumps({"name": name, **arguments}) + "\n")
                stream.flush()
            answers = [stream.readline() for stream in streams]
        except OSError as error:
            raise self._failure(str(error)) from error
        if not all(answers):
            raise self._failure("a worker ended")
        self._signal(signal.SIGSTOP, pids)  # after all answers: until then, a worker may need messages of another
        return [json.loads(answer) for answer in answers]

    def close(self) -> None:
        """Release the workers, and terminate those that do not end by themselves."""
        self._signal(signal.SIGCONT, self._pids)
        self._open.close()
        deadline = time.monotonic() + END_SECONDS
        for process in self._processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self, listener: socket.socket, size: int) -> None:
        workers: dict[int, tuple[TextIO, int]] = {}
        deadline = time.monotonic() + START_SECONDS
        while len(workers) < size:
            try:
                connection = self._open.enter_context(listener.accept()[0])
            except TimeoutError:
                if any(process.poll() is not None for process in self._processes):
                    raise self._failure("a worker ended during its start") from None
                if time.monotonic() > deadline:
                    raise self._failure(f"{size - len(workers)} of {size} workers did not start") from None
                continue
            connection.settimeout(ANSWER_SECONDS)
            stream = self._open.enter_context(connection.makefile("rw", encoding="utf-8"))
            greeting = json.loads(stream.readline())
            workers[greeting["number"]] = stream, greeting["pid"]
        for number in sorted(workers):
            self._streams.append(workers[number][0])
            self._pids.append(workers[number][1])

    @staticmethod
    def _signal(number: signal.Signals, pids: Sequence[int]) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _failure(self, why: str) -> UserError:
        with suppress(subprocess.TimeoutExpired):  # the socket closes before the process has printed its error
            self._processes[-1].wait(3)
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").strip().splitlines()[-8:]
        return UserError("the measured processes failed", f"{why}; their last output: {' | '.join(lines)}")
