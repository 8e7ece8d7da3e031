"""Processes that live through a whole measurement and stand still until they are asked for something.

A question and its answer are a line of JSON each, over a Unix socket in a folder of our own: horovodrun hands no
standard input on, and a path is the same file in every network namespace. A worker ends when its socket closes, so
none outlives the process that asks.
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

START_SECONDS = 120.0  # until all have connected: imports of several processes on one core, and the rendezvous
ANSWER_SECONDS = 300.0
END_SECONDS = 20.0
LAST_WORDS_SECONDS = 3.0
REST = "rest\n"  # the one line that is no question
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Workers:
    """Starts ``commands``, each with the socket's path as one argument more, and waits for ``size`` workers.

    Args:
        commands: what to start; one command may start many workers (horovodrun).
        size: how many workers connect, numbered from 0.
        environment: of the commands.

    Raises:
        UserError: they do not start in time, or end.
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
                        # horovodrun does so with each of its own, and Linux divides a busy core among sessions
                        # (sched_autogroup): processes of one session would be measured as slower.
                        start_new_session=True,
                    )
                )
            self._streams = self._accept(listener, size)
        except BaseException:
            self.close()
            raise

    def ask(self, name: str, only: int | None = None, **arguments: Any) -> list[dict[str, Any]]:
        """The answers of the first ``only`` workers (default: of all) to one question, asked of all of them at once.

        Raises:
            UserError: one of them ended or takes too long.
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
        # Only when all have answered: one may still need what another sends.
        for stream in streams:
            stream.write(REST)
            stream.flush()

    def close(self) -> None:
        """Lets the workers go; ends what does not end by itself."""
        self._open.close()
        due = time.monotonic() + END_SECONDS
        for process in self._processes:
            try:
                process.wait(max(0.1, due - time.monotonic()))
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
        found: dict[int, TextIO] = {}
        due = time.monotonic() + START_SECONDS
        while len(found) < size:
            try:
                connection = self._open.enter_context(listener.accept()[0])
            except socket.timeout:
                if any(process.poll() is not None for process in self._processes):
                    raise self._failure("a worker ended at its start") from None
                if time.monotonic() > due:
                    raise self._failure(f"{size - len(found)} of {size} workers did not start") from None
                continue
            connection.settimeout(ANSWER_SECONDS)
            stream = self._open.enter_context(connection.makefile("rw", encoding="utf-8"))
            found[json.loads(stream.readline())["number"]] = stream
        return [found[number] for number in sorted(found)]

    def _failure(self, why: str) -> UserError:
        with suppress(subprocess.TimeoutExpired):  # a socket closes before its process has said why
            self._processes[-1].wait(LAST_WORDS_SECONDS)
        self._output.seek(0)
        said = self._output.read().decode(errors="replace").strip().splitlines()[-8:]
        return UserError(
            "the processes to be measured failed",
            f"{why}; the last they said: {' | '.join(said)}",
            "run it again, alone on the machine",
        )


def serve(address: str, number: int, work: Callable[[], Mapping[str, Callable[..., dict[str, Any]]]]) -> None:
    """A worker's side: connects and answers questions, by the function of that name, until the socket closes.

    ``work`` makes the functions; it and they run in a child process, which stands still (SIGSTOP) between questions,
    because even an idle Horovod takes 5 to 10 % of a core: its thread looks for work every millisecond. Must be called
    before this process has threads.
    """
    question_read, question_write = os.pipe()
    answer_read, answer_write = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(question_write)
        os.close(answer_read)
        _end_with(parent)
        with open(question_read, encoding="utf-8") as questions, open(answer_write, "w", encoding="utf-8") as answers:
            functions = work()
            for line in questions:
                question = json.loads(line)
                answers.write(json.dumps(functions[question.pop("name")](**question)) + "\n")
                answers.flush()
        return
    os.close(question_read)
    os.close(answer_write)
    try:
        with open(question_write, "w", encoding="utf-8") as questions, open(answer_read, encoding="utf-8") as answers:
            _relay(address, number, child, questions, answers)
    finally:
        os.kill(child, signal.SIGCONT)
        _, status = os.waitpid(child, 0)
    sys.exit(0 if status == 0 else 1)


def _relay(address: str, number: int, child: int, questions: TextIO, answers: TextIO) -> None:
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
                questions.write(line)
                questions.flush()
                answer = answers.readline()
                if not answer:
                    return
                stream.write(answer)
                stream.flush()


def _end_with(parent: int) -> None:
    """Has this process killed when its parent ends, even while it stands still."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
