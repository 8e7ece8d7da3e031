"""Worker processes that live through a whole measurement and are stopped (SIGSTOP) between requests.

Requests and answers are lines of JSON over a Unix socket in a private folder: horovodrun passes no standard input on,
and a path is the same file in every network namespace. A worker ends when its socket closes, so none outlives its
client.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from crepe_dist.errors import UserError

START_SECONDS = 120.0  # for imports of several processes on one core, and the rendezvous
ANSWER_SECONDS = 300.0
END_SECONDS = 20.0
LAST_WORDS_SECONDS = 3.0
REST = "rest\n"  # asks a worker to stop until the next request
PR_SET_PDEATHSIG = 1  # linux/prctl.h


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
            self._streams = self._accept(listener, size)
        except BaseException:
            self.close()
            raise

    def ask(self, name: str, only: int | None = None, **arguments: Any) -> list[dict[str, Any]]:
        """Send a request to the first ``only`` workers (default: all) at once; return their answers.

        Raises:
            UserError: a worker ended or timed out.
        """
        streams = self._streams[:only]
        try:
            for stream in streams:
                stream.write(json.dumps({"name": name, **arguments}) + "\n")
                stream.flush()
            answers = [stream.readline() for stream in streams]
        except OSError as error:
            raise self._failure(str(error)) from error
        if not all(answers):
            raise self._failure("a worker ended")
        self._rest(streams)
        return [json.loads(answer) for answer in answers]

    def _rest(self, streams: Sequence[TextIO]) -> None:
        # Only after all answers: until then, one worker may still need messages of another.
        for stream in streams:
            stream.write(REST)
            stream.flush()

    def close(self) -> None:
        """Release the workers, and terminate those that do not end by themselves."""
        self._open.close()
        deadline = time.monotonic() + END_SECONDS
        for process in self._processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self, listener: socket.socket, size: int) -> list[TextIO]:
        streams: dict[int, TextIO] = {}
        deadline = time.monotonic() + START_SECONDS
        while len(streams) < size:
            try:
                connection = self._open.enter_context(listener.accept()[0])
            except socket.timeout:
                if any(process.poll() is not None for process in self._processes):
                    raise self._failure("a worker ended during its start") from None
                if time.monotonic() > deadline:
                    raise self._failure(f"{size - len(streams)} of {size} workers did not start") from None
                continue
            connection.settimeout(ANSWER_SECONDS)
            stream = self._open.enter_context(connection.makefile("rw", encoding="utf-8"))
            streams[json.loads(stream.readline())["number"]] = stream
        return [streams[number] for number in sorted(streams)]

    def _failure(self, why: str) -> UserError:
        with suppress(subprocess.TimeoutExpired):  # the socket closes before the process has printed its error
            self._processes[-1].wait(LAST_WORDS_SECONDS)
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").strip().splitlines()[-8:]
        return UserError(
            "the measured processes failed",
            f"{why}; their last output: {' | '.join(lines)}",
            "run the benchmark again, with no other programs running",
        )


def serve(address: str, number: int, work: Callable[[], Mapping[str, Callable[..., dict[str, Any]]]]) -> None:
    """Run a worker: connect, and answer requests until the socket closes.

    The requests are handled in a child process that is stopped (SIGSTOP) between them. Even an idle Horovod takes 5 to
    10 % of a core, because its thread polls every millisecond. Call this before the process has threads.

    Args:
        address: path of the socket.
        number: number of this worker, from 0.
        work: function that returns the handlers by name; called in the child process.
    """
    request_read, request_write = os.pipe()
    answer_read, answer_write = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(request_write)
        os.close(answer_read)
        _die_with(parent)
        with open(request_read, encoding="utf-8") as requests, open(answer_write, "w", encoding="utf-8") as answers:
            functions = work()
            for line in requests:
                request = json.loads(line)
                answers.write(json.dumps(functions[request.pop("name")](**request)) + "\n")
                answers.flush()
        return
    os.close(request_read)
    os.close(answer_write)
    try:
        with open(request_write, "w", encoding="utf-8") as requests, open(answer_read, encoding="utf-8") as answers:
            _relay(address, number, child, requests, answers)
    finally:
        os.kill(child, signal.SIGCONT)
        _, status = os.waitpid(child, 0)
    sys.exit(0 if status == 0 else 1)


def _relay(address: str, number: int, child: int, requests: TextIO, answers: TextIO) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        with connection.makefile("rw", encoding="utf-8") as stream:
            stream.write(json.dumps({"number": number}) + "\n")
            stream.flush()
            for line in stream:
                if line == REST:
                    os.kill(child, signal.SIGSTOP)
                    continue
                os.kill(child, signal.SIGCONT)
                requests.write(line)
                requests.flush()
                answer = answers.readline()
                if not answer:
                    return
                stream.write(answer)
                stream.flush()


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, even while it is stopped."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
