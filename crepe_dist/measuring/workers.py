"""Processes that live through a whole measurement and wait on a socket, idle, until they are asked for something.

A question and its answer are a line of JSON each, over a Unix socket in a folder of our own: horovodrun hands no
standard input on, and a path is the same file in every network namespace. A worker ends when its socket closes, so
none outlives the process that asks.
"""

from __future__ import annotations

import json
import socket
import subprocess
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
        return [json.loads(answer) for answer in answers]

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
        return UserError("the processes to be measured failed", f"{why}; the last they said: {' | '.join(said)}")


def serve(address: str, number: int, answers: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """A worker's side: connects and answers questions, by the function of that name, until the socket closes."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        with connection.makefile("rw", encoding="utf-8") as stream:
            stream.write(json.dumps({"number": number}) + "\n")
            stream.flush()
            for line in stream:
                question = json.loads(line)
                answer = answers[question.pop("name")](**question)
                stream.write(json.dumps(answer) + "\n")
                stream.flush()
