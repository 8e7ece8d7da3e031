"""The supervisor's end of an agent: a child process, of this machine or an ssh to another."""

from __future__ import annotations

import contextlib
import os
import queue
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Callable

from crepe_dist.distributed.messages import LIMIT, Message, Messages, Text, encode

AGENT = (sys.executable, "-m", "crepe_dist.supervising.agent")


class Link:
    """Starts an agent; what it says is delivered from a thread, and at its end ``{"kind": "lost", "code": …,
    "why": …}``.

    Args:
        host: its name.
        remote: the command that reaches another host, without host and command; empty: this machine.
        environment: of the agent, or of the command that reaches it.
        cwd: folder in which the agent runs.
        deliver: is called with this link and a message, or with a string about what was no message.
    """

    def __init__(
        self,
        host: str,
        remote: Sequence[str],
        environment: Mapping[str, str],
        cwd: str,
        deliver: Callable[[Link, Message | str], None],
    ) -> None:
        self.host = host
        self.local = not remote
        self.ready = False  # it has said hello; set by the supervisor
        self.began = time.monotonic()
        self._deliver = deliver
        self._last_words = ""
        # A session of its own: Ctrl-C is for the supervisor to hear, which then asks the workers.
        self.process = subprocess.Popen(
            [*remote, host, f"cd {shlex.quote(cwd)} || exit 127; exec {shlex.join(AGENT)}"] if remote else AGENT,
            env=dict(environment),
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        # Threads: an agent that does not read, or a host that is gone, must not hold up the supervisor.
        self._threads = [
            threading.Thread(target=target, args=(stream,), daemon=True)
            for target, stream in (
                (self._write, self.process.stdin),
                (self._read_words, self.process.stderr),
                (self._read, self.process.stdout),
            )
        ]
        for thread in self._threads:
            thread.start()

    def send(self, message: Message) -> None:
        """Never blocks; to an agent that is gone it does nothing.

        Raises:
            ValueError: the message is too long.
        """
        self._queue.put(encode(message))

    def close(self) -> None:
        """Ends the agent's input: it asks its workers to stop, kills what is left after the grace, and ends."""
        self._queue.put(None)

    def kill(self) -> None:
        self.process.kill()

    def wait(self, seconds: float) -> bool:
        """Whether the agent ended within the time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.poll() is not None

    def _write(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(OSError):
            while (line := self._queue.get()) is not None:
                stream.write(line)
                stream.flush()
        with contextlib.suppress(OSError):
            stream.close()

    def _read(self, stream: IO[bytes]) -> None:
        messages = Messages()
        while data := os.read(stream.fileno(), LIMIT):
            for message in messages.feed(data):
                self._deliver(self, message)
        stream.close()
        self._threads[1].join(0.5)
        code = self.process.wait()
        self._queue.put(None)
        self._deliver(self, {"kind": "lost", "code": code, "why": self._last_words or f"it ended with code {code}"})

    def _read_words(self, stream: IO[bytes]) -> None:
        text = Text()
        while data := os.read(stream.fileno(), LIMIT):
            for line in text.feed(data):
                self._last_words = line.strip() or self._last_words
                if self.ready or self.local:  # else its last words are the answer to an attempt, said once
                    self._deliver(self, line)
        stream.close()
