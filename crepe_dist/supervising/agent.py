"""Agent of the supervisor on one host: starts that host's workers, forwards their messages, and leaves none behind.

The supervisor runs it as ``python -m crepe_dist.supervising.agent``. Messages arrive on stdin and leave on stdout. The
agent ends when stdin ends (the supervisor or the connection is gone), on SIGTERM, or when no ping renews its lease.
Before it ends, it asks the workers to stop, and kills those that still run after the grace period. If it is killed
itself, the kernel sends SIGTERM to its workers.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, Any

from crepe_dist.distributed import processes
from crepe_dist.distributed.control import DESCRIPTOR
from crepe_dist.distributed.environment import MACHINE
from crepe_dist.distributed.messages import Message, encode, read_messages, read_text
from crepe_dist.distributed.processes import terminate_with_parent

UNSENT = 1000  # messages; with more, the agent stops reading from the workers
LEAVE_SECONDS = 5.0  # to send the last messages
DRAIN_SECONDS = 1.0  # to read what a worker left in its pipes, which a process that it started may keep open


class _Worker:
    """A worker process and its control channel."""

    def __init__(self, argv: list[str], env: dict[str, str], cwd: str) -> None:
        self.control, theirs = socket.socketpair()
        try:
            self.process = subprocess.Popen(
                argv,
                env={**env, DESCRIPTOR: str(theirs.fileno())},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                preexec_fn=terminate_with_parent,
            )
        except (OSError, ValueError):
            self.control.close()
            raise
        finally:
            theirs.close()

    def tell(self, message: Message) -> None:
        """Send a message, unless the worker has stopped reading."""
        with contextlib.suppress(OSError):
            self.control.sendall(encode(message), socket.MSG_DONTWAIT)

    def signal(self, number: int) -> None:
        """Send a signal to the worker, and SIGKILL to its whole session."""
        if self.process.returncode is None:  # otherwise another process may have its pid
            with contextlib.suppress(OSError):
                (os.killpg if number == signal.SIGKILL else os.kill)(self.process.pid, number)


class Agent:
    """Agent whose main thread takes all decisions and never waits for a pipe; each pipe has a thread of its own.

    Args:
        source: stream that the supervisor's messages arrive on.
        sink: stream for messages to the supervisor.
    """

    def __init__(self, source: IO[bytes], sink: IO[bytes]) -> None:
        self._source = source
        self._sink = sink
        # A SimpleQueue: a signal handler may put into it while it interrupts a get.
        self._events: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._unsent: queue.Queue[bytes | None] = queue.Queue(UNSENT)
        self._workers: dict[str, _Worker] = {}
        self._grace = 30.0
        self._ending = False
        self._kill_at = self._leave_at = self._lease_ends = float("inf")

    def run(self) -> None:
        """Serve the supervisor until the agent must end and all workers have ended."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: self._events.put({"kind": "end", "why": "the agent was asked to end"}))
        writer = _thread(self._write)
        _thread(self._read_source)
        self._send("hello")
        while not self._ending or (self._workers and time.monotonic() < self._leave_at):
            wait = min(self._kill_at, self._leave_at, self._lease_ends) - time.monotonic()
            with contextlib.suppress(queue.Empty):
                self._handle(self._events.get(timeout=max(0.0, min(wait, 3600.0))))
            if time.monotonic() >= self._lease_ends:
                self._end("the supervisor is gone")
            if time.monotonic() >= self._kill_at:
                self._kill_at = float("inf")
                for worker in self._workers.values():
                    worker.signal(signal.SIGKILL)
        with contextlib.suppress(queue.Full):
            self._unsent.put(None, timeout=LEAVE_SECONDS)
            writer.join(LEAVE_SECONDS)

    def _read_source(self) -> None:
        for message in read_messages(self._source):
            if isinstance(message, dict):
                self._events.put(message)
        self._events.put({"kind": "end", "why": "the supervisor is gone"})

    def _write(self) -> None:
        broken = False
        while (line := self._unsent.get()) is not None:
            try:
                if not broken:
                    self._sink.write(line)
                    self._sink.flush()
            except OSError:
                broken = True  # the threads that send must not block
                self._events.put({"kind": "end", "why": "the supervisor is gone"})

    def _send(self, kind: str, **fields: Any) -> None:
        self._unsent.put(encode({"kind": kind, **fields}))

    def _handle(self, message: Message) -> None:
        kind, worker = message["kind"], self._workers.get(message.get("worker", ""))
        if kind == "start":
            self._start(message["worker"], message["argv"], message["env"], message["cwd"])
        elif kind == "grace":
            self._grace = message["seconds"]
        elif kind == "ping":
            self._lease_ends = time.monotonic() + message["lease"]
        elif kind == "end":
            self._end(message["why"])
        elif worker is not None and kind == "ended":
            worker.control.close()
            del self._workers[message["worker"]]
        elif worker is not None and kind == "send":
            worker.tell(message["message"])
        elif worker is not None:
            worker.signal(message["signal"])

    def _start(self, name: str, argv: list[str], settings: dict[str, str], cwd: str) -> None:
        if self._ending:
            return
        own = {key: value for key, value in os.environ.items() if key in MACHINE}
        try:
            worker = _Worker(argv, {**own, **settings}, cwd)
        except (OSError, ValueError) as error:
            self._send("output", worker=name, stream="stderr", line=f"cannot be started: {error}")
            self._send("exit", worker=name, code=127)
            return
        self._workers[name] = worker
        process = worker.process
        self._send("started", worker=name, pid=process.pid, began=processes.start_time(process.pid))
        readers = [
            _thread(self._forward_output, name, "stdout", process.stdout),
            _thread(self._forward_output, name, "stderr", process.stderr),
            _thread(self._forward_messages, name, worker.control.makefile("rb")),
        ]
        _thread(self._report_end, name, worker, readers)

    def _forward_output(self, name: str, stream: str, pipe: IO[bytes]) -> None:
        for line in read_text(pipe):
            self._send("output", worker=name, stream=stream, line=line)

    def _forward_messages(self, name: str, control: IO[bytes]) -> None:
        noted = False  # once only: a faulty worker must not flood the terminal
        with contextlib.suppress(OSError):
            for message in read_messages(control):
                try:
                    if isinstance(message, str):
                        raise ValueError(message)
                    self._send("from", worker=name, message=message)
                except ValueError as error:
                    if not noted:
                        self._send("note", text=f"ignored a message of worker {name}: {error}")
                    noted = True

    def _report_end(self, name: str, worker: _Worker, readers: list[threading.Thread]) -> None:
        os.waitid(os.P_PID, worker.process.pid, os.WEXITED | os.WNOWAIT)
        worker.signal(signal.SIGKILL)  # its children that still run
        code = worker.process.wait()
        for reader in readers:
            reader.join(DRAIN_SECONDS)
        self._send("exit", worker=name, code=code)
        self._events.put({"kind": "ended", "worker": name})

    def _end(self, why: str) -> None:
        """Ask all workers to stop, and give them the grace period."""
        if self._ending:
            return
        self._ending = True
        self._lease_ends = float("inf")
        self._kill_at = time.monotonic() + self._grace
        self._leave_at = self._kill_at + LEAVE_SECONDS
        for worker in self._workers.values():
            worker.tell({"kind": "stop", "why": why})


def _thread(target: Callable[..., None], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, daemon=True)
    thread.start()
    return thread


def main() -> None:
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # so that a stray print is not parsed as a message
    Agent(os.fdopen(0, "rb"), sink).run()


if __name__ == "__main__":
    main()
    sys.exit(0)
