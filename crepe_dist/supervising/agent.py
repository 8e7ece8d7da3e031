"""Agent of the supervisor on one host: starts that host's workers, forwards their messages, and leaves none behind.

The supervisor runs it as ``python -m crepe_dist.supervising.agent``. Messages arrive on stdin and leave on stdout. The
agent ends when stdin ends (the supervisor or the connection is gone), on SIGTERM, or when no ping renews its lease.
Before it ends, it asks the workers to stop, and kills those that still run after the grace period.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from crepe_dist import machine
from crepe_dist.distributed import processes
from crepe_dist.distributed.control import DESCRIPTOR
from crepe_dist.distributed.messages import LIMIT, Message, Messages, Outbox, Text
from crepe_dist.supervising.keeper import Keeper

# Variables that workers inherit from this host unless the supervisor sets them.
OWN = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
OWN_PREFIX = "XDG_"
HIGH_WATER = 1024 * 1024  # unsent bytes above which the agent stops reading the workers' output
DRAIN = 1024 * 1024  # most bytes read from a pipe after its worker has ended
PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None, use_errno=True)


def terminate_with_parent() -> None:
    """Ask the kernel to send SIGTERM when the parent dies; runs in the new process."""
    libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


class _Worker:
    """A worker process with its two pipes and its control channel.

    Raises:
        OSError, ValueError: the process cannot be started.
    """

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
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.pipes = {"stdout": self.process.stdout, "stderr": self.process.stderr}
        self.text = {name: Text() for name in self.pipes}
        for pipe in self.pipes.values():
            os.set_blocking(pipe.fileno(), False)
        self.outbox = Outbox(self.control.fileno())
        self.messages = Messages()
        self.noted = False

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """Kill the worker and its session. Call this before it is reaped: until then, no other process has its pid."""
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        self.control.close()
        for pipe in self.pipes.values():
            pipe.close()


class Agent:
    """Event loop that never blocks on a descriptor.

    Args:
        source: descriptor that the supervisor's messages arrive on.
        sink: descriptor for messages to the supervisor.
        keeper: process that ends the workers if this one is killed.
    """

    def __init__(self, source: int, sink: int, keeper: Keeper) -> None:
        self._keeper = keeper
        self._source = source
        self._sink = sink
        self._outbox = Outbox(sink)
        self._messages = Messages()
        self._workers: dict[str, _Worker] = {}
        self._grace = 30.0
        self._ending = False
        self._kill_at = float("inf")
        self._lease_ends = float("inf")
        self._paused = False
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()

    def run(self) -> None:
        """Serve the supervisor until the agent must end and all workers have ended."""
        for each in (self._wake, self._woken):
            each.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno())
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)  # the wake-up descriptor reports it
        os.set_blocking(self._source, False)
        self._selector.register(self._source, selectors.EVENT_READ, ("source", ""))
        self._selector.register(self._woken, selectors.EVENT_READ, ("signal", ""))
        cores = machine.cores()
        self._outbox.put({"kind": "hello", "host": socket.gethostname(), "pid": os.getpid(), "cores": cores})
        while not (self._ending and not self._workers):
            self._turn()
        until = time.monotonic() + 5
        while len(self._outbox) and time.monotonic() < until:
            time.sleep(0.01)
            self._outbox.flush()

    def _turn(self) -> None:
        self._pause(len(self._outbox) > HIGH_WATER)
        waiting = [self._outbox, *(worker.outbox for worker in self._workers.values())]
        now = time.monotonic()
        # Descriptors are rarely full, so writing is retried instead of selected.
        timeout = 0.02 if any(len(outbox) for outbox in waiting) else 3600.0
        timeout = min(timeout, max(0.0, min(self._kill_at, self._lease_ends) - now))
        for key, _ in self._selector.select(timeout):
            channel, name = key.data
            if channel == "source":
                self._read_source()
            elif channel == "signal":
                self._read_signals()
            elif name in self._workers:
                self._read_worker(name, channel)
        for outbox in waiting:
            outbox.flush()
        now = time.monotonic()
        if self._outbox.broken or now >= self._lease_ends:
            self._end("the supervisor is gone")
        if now >= self._kill_at:
            self._kill_at = float("inf")
            for worker in self._workers.values():
                worker.kill()

    def _read_source(self) -> None:
        try:
            data = os.read(self._source, LIMIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(self._source)
            self._end("the supervisor is gone")
            return
        for message in self._messages.feed(data):
            if isinstance(message, str):
                self._note(f"ignored a message of the supervisor: {message}")
                continue
            try:
                self._handle(message)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                self._note(f"ignored an incomplete {message['kind'][:40]!r} message of the supervisor ({error!r})")

    def _handle(self, message: Message) -> None:
        kind = message["kind"]
        if kind == "start":
            self._start(str(message["worker"]), message["argv"], message["env"], message["cwd"])
        elif kind == "grace":
            self._grace = max(0.0, float(message["seconds"]))
            self._keeper.grace(self._grace)
        elif kind == "ping":
            self._lease_ends = time.monotonic() + float(message["lease"])
        elif kind in ("signal", "send", "dump"):
            worker = self._workers.get(message["worker"])
            if worker is None:
                return
            if kind == "send":
                worker.outbox.put(message["message"])
            elif kind == "dump":
                worker.process.send_signal(signal.SIGUSR1)
                worker.process.send_signal(signal.SIGCONT)
            elif message["signal"] == signal.SIGKILL:
                worker.kill()
            else:
                worker.process.send_signal(int(message["signal"]))
        else:
            self._note(f"ignored a message of the supervisor of unknown kind {kind[:40]!r}")

    def _start(self, name: str, argv: list[str], given: dict[str, str], cwd: str) -> None:
        if self._ending or name in self._workers:
            return
        own = {key: value for key, value in os.environ.items() if key in OWN or key.startswith(OWN_PREFIX)}
        try:
            worker = _Worker(argv, {**own, **given}, cwd)
        except (OSError, ValueError) as error:
            self._report("output", name, stream="stderr", line=f"cannot be started: {error}")
            self._report("exit", name, code=127)
            return
        self._workers[name] = worker
        self._selector.register(worker.control, selectors.EVENT_READ, ("control", name))
        if not self._paused:
            for stream, pipe in worker.pipes.items():
                self._selector.register(pipe, selectors.EVENT_READ, (stream, name))
        began = processes.start_time(worker.pid)
        self._keeper.add(worker.pid, began)
        self._report("started", name, pid=worker.pid, began=began)

    def _read_worker(self, name: str, channel: str) -> None:
        worker = self._workers[name]
        if channel == "control":
            try:
                data = worker.control.recv(LIMIT)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._selector.unregister(worker.control)
            self._forward(name, data)
        elif self._read_output(name, channel) == 0:
            self._forget(worker.pipes[channel])

    def _forward(self, name: str, data: bytes) -> None:
        worker = self._workers[name]
        for message in worker.messages.feed(data):
            fits = not isinstance(message, str) and self._report("from", name, message=message)
            if not fits and not worker.noted and not self._outbox.broken:
                worker.noted = True  # once only: a faulty worker must not flood the terminal
                self._note(f"ignored a message of worker {name}: {message if isinstance(message, str) else 'too long'}")

    def _read_output(self, name: str, stream: str) -> int | None:
        """Forward what the pipe holds; return the number of bytes, 0 at its end, ``None`` if it is empty for now."""
        worker = self._workers[name]
        try:
            data = os.read(worker.pipes[stream].fileno(), LIMIT)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        for line in worker.text[stream].feed(data):
            self._report("output", name, stream=stream, line=line)
        return len(data)

    def _read_signals(self) -> None:
        try:
            numbers = self._woken.recv(4096)
        except BlockingIOError:
            return
        if any(number != signal.SIGCHLD for number in numbers):
            self._end("the agent was asked to end")
        ended = []
        for name, worker in self._workers.items():
            if os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                worker.kill()  # its children that still run; until it is reaped, no other process has its pid
                ended.append((worker.process.wait(), name))
        # A worker killed by a signal comes first: it is the likely cause of the others' ends.
        for code, name in sorted(ended, key=lambda each: each[0] >= 0):
            self._ended(name, code)

    def _ended(self, name: str, code: int) -> None:
        worker = self._workers[name]
        with contextlib.suppress(OSError):
            while data := worker.control.recv(LIMIT):
                self._forward(name, data)
        for stream, pipe in worker.pipes.items():
            for _ in range(DRAIN // LIMIT):
                if not self._read_output(name, stream):
                    break
            for line in worker.text[stream].end():
                self._report("output", name, stream=stream, line=line)
            self._forget(pipe)
        self._forget(worker.control)
        del self._workers[name]
        worker.close()
        self._report("exit", name, code=code)

    def _end(self, why: str) -> None:
        """Ask all workers to stop, and give them the grace period."""
        if self._ending:
            return
        self._ending = True
        self._lease_ends = float("inf")
        self._kill_at = time.monotonic() + self._grace
        for worker in self._workers.values():
            worker.outbox.put({"kind": "stop", "why": why})

    def _pause(self, on: bool) -> None:
        """Stop or continue to read the workers' output."""
        if on == self._paused:
            return
        self._paused = on
        for name, worker in self._workers.items():
            for stream, pipe in worker.pipes.items():
                if on:
                    self._forget(pipe)
                else:
                    self._selector.register(pipe, selectors.EVENT_READ, (stream, name))

    def _forget(self, stream: Any) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(stream)

    def _report(self, kind: str, worker: str, **fields: Any) -> bool:
        return self._outbox.put({"kind": kind, "worker": worker, **fields}, always=kind in ("started", "exit"))

    def _note(self, text: str) -> None:
        self._outbox.put({"kind": "note", "text": text})


def main() -> None:
    keeper = Keeper()
    sink = os.dup(1)
    os.dup2(2, 1)  # so that a stray print is not parsed as a message
    Agent(0, sink, keeper).run()
    keeper.close()


if __name__ == "__main__":
    main()
    sys.exit(0)
