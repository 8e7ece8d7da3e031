"""Connection of the supervisor to an agent: a child process, local or ssh to another host."""

from __future__ import annotations

import contextlib
import queue
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Callable

from crepe_dist.distributed.messages import Message, encode, read_messages, read_text

AGENT = (sys.executable, "-m", "crepe_dist.supervising.agent")


class Link:
    """A running agent.

    A thread delivers the agent's messages, and ``{"kind": "lost", "code": …, "why": …}`` when the agent has ended.

    Args:
        remote: command that reaches another host, such as ssh with its options; empty for this machine.
        environment: environment of the agent, or of the remote command.
        cwd: working directory of the agent.
        deliver: called with this link and a message, or with a string for the terminal.
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
        self.ready = False  # the agent has answered; set by ``Fleet``
        self.began = time.monotonic()
        self._deliver = deliver
        self._last_line = ""
        # A new session: Ctrl-C must reach only the supervisor, which asks the workers to stop.
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
        # Threads: an agent that does not read, or a host that is gone, must not block the supervisor.
        self._threads = [
            threading.Thread(target=target, args=(stream,), daemon=True)
            for target, stream in (
                (self._write, self.process.stdin),
                (self._read_stderr, self.process.stderr),
                (self._read, self.process.stdout),
            )
        ]
        for thread in self._threads:
            thread.start()

    def send(self, message: Message) -> None:
        """Queue a message without blocking; it is dropped if the agent is gone.

        Raises:
            ValueError: the message is too long.
        """
        self._queue.put(encode(message))

    def close(self) -> None:
        """Close the agent's stdin: it stops its workers, kills those left after the grace period, and ends."""
        self._queue.put(None)

    def kill(self) -> None:
        self.process.kill()

    def wait(self, seconds: float) -> bool:
        """Wait at most that long for the agent to end; return whether it has ended."""
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
        for message in read_messages(stream):
            self._deliver(self, message)
        stream.close()
        self._threads[1].join(0.5)
        code = self.process.wait()
        self._queue.put(None)
        self._deliver(self, {"kind": "lost", "code": code, "why": self._last_line or f"it ended with code {code}"})

    def _read_stderr(self, stream: IO[bytes]) -> None:
        for line in read_text(stream):
            self._last_line = line.strip() or self._last_line
            if self.ready or self.local:  # else the last line is reported once, as the reason for no answer
                self._deliver(self, line)
        stream.close()
