"""Watchdog: a thread that writes the stacks of a process without progress, and ends it.

Without it, a suspended rank, or one whose network is cut, would leave the others waiting forever.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from crepe_dist.distributed.launch import read_launcher_env
from crepe_dist.distributed.signals import SignalHandler
from crepe_dist.errors import ExitCode, UserError

POLL_SECONDS = 1.0
SUSPENDED_SECONDS = 5.0  # delay of a tick that shows that this process itself was suspended or the host overloaded
DUMP_SECONDS = 1.0  # time that the other processes of this host get to write their stacks
STACK_DUMP_SIGNAL = signal.SIGUSR1  # a process that gets it writes its stacks
MAX_SHOWN_ROWS = 64


class Watchdog:
    """Context manager of a process that calls ``beat`` whenever it makes progress.

    Args:
        limit: seconds without progress that count as a hang.
    """

    def __init__(self, signal_handler: SignalHandler, limit: float, rank: int) -> None:
        self._control = signal_handler
        self._limit = limit
        self._rank = rank
        self._phase = "start"
        self._locate: Callable[[], dict[str, Any]] = dict
        self._since = time.monotonic()
        self._peers: list[tuple[int, int]] = []
        self._stacks: IO[str] | None = None
        self._ended = threading.Event()
        self._ending = False
        self._parent = os.getppid()
        self._launched = read_launcher_env().size > 1

    def heartbeat(self, phase: str = "") -> None:
        """Record progress.

        It never returns once the watchdog is ending the process, because a suspended process may have been continued
        only to write its stack.

        Args:
            phase: name of the phase that starts; empty: the same as before.
        """
        self._wait_for_end()
        self._phase = phase or self._phase
        self._since = time.monotonic()

    def pause(self) -> None:
        """Suspend the limit until the next beat, because the other ranks have watchdogs of their own.

        A suspended process of this host still counts as a hang, because its watchdog is suspended, too.
        """
        self._since = math.inf

    def set_position_source(self, position_source: Callable[[], dict[str, Any]]) -> None:
        """Set the function that returns step, epoch, documents and rows; another thread calls it."""
        self._locate = position_source

    def position(self) -> dict[str, Any]:
        """Return the position of this process: rank, phase, and what ``locate`` was given."""
        return {"rank": self._rank, "phase": self._phase, **self._locate()}

    def open_stack_file(self, path: Path, processes: list[dict[str, Any]]) -> None:
        """Write stacks to a file from now on.

        Args:
            processes: ``identity`` of every rank.
        """
        path.parent.mkdir(exist_ok=True)
        self._stacks = path.open("a", encoding="utf-8")
        me = self.identity()
        self._stacks.write(f"{json.dumps({'rank': self._rank, **me, 'started': time.time()})}\n")
        self._stacks.flush()
        faulthandler.register(STACK_DUMP_SIGNAL, self._stacks)
        self._peers = [(p["pid"], p["start"]) for p in processes if p["host"] == me["host"] and p["pid"] != me["pid"]]

    def identity(self) -> dict[str, Any]:
        pid = os.getpid()
        return {"host": socket.gethostname(), "pid": pid, "start": process_start_time(pid)}

    def __enter__(self) -> Watchdog:
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait_for_end()
        self._ended.set()
        if self._stacks is not None and not self._launched:
            # A process of a group keeps the handler: the others may still ask for its stacks.
            faulthandler.unregister(STACK_DUMP_SIGNAL)
            self._stacks.close()

    def _watch(self) -> None:
        last = peers_moved = time.monotonic()
        while True:
            now = time.monotonic()
            if not any(process_state(pid) in ((b"T", start), (b"t", start)) for pid, start in self._peers):  # suspended
                peers_moved = now
            if now - last > POLL_SECONDS + SUSPENDED_SECONDS:
                self._since += now - last
                peers_moved = now
            last = now
            if self._launched and os.getppid() != self._parent:
                self._launched = False
                self._control.request_stop("the launcher is gone")
            stood = now - (peers_moved if math.isinf(self._since) else self._since)
            if stood > self._limit:
                self._end(stood)
            if self._ended.wait(POLL_SECONDS):
                return

    def _wait_for_end(self) -> None:
        while self._ending:
            time.sleep(1)

    def _end(self, seconds: float) -> None:
        """Write the stacks of this host's processes, and end all of them."""
        self._ending = True
        # The process must end even if something below blocks, for instance a lost disk.
        end = threading.Timer(2 * DUMP_SECONDS + SUSPENDED_SECONDS, os._exit, [ExitCode.HUNG])
        end.daemon = True
        end.start()
        try:
            where, stream = self.position(), self._stacks or sys.stderr
            step = f" at step {where['step']}" if "step" in where else ""
            error = UserError(
                f"no progress for {seconds:.0f} s{step} ({where['phase']})",
                "a process is suspended, a host or network is lost, or the ranks wait for different collectives",
                f"run the same command again, or raise --safety.watchdog-s ({self._limit:g}) if steps take longer; "
                f"the stacks are in {self._stacks.name if self._stacks else 'the lines below'}",
            )
            print(f"[rank {self._rank}] {error}", file=sys.stderr, flush=True)
            self._signal_peers(STACK_DUMP_SIGNAL)
            self._signal_peers(signal.SIGCONT)  # a suspended process writes its stack, too
            stream.write(f"no progress for {seconds:.0f} s: {json.dumps({**self.identity(), **where})}\n")
            stream.flush()
            faulthandler.dump_traceback(stream)
            time.sleep(DUMP_SECONDS)
            self._signal_peers(signal.SIGKILL)
        finally:
            os._exit(ExitCode.HUNG)

    def _signal_peers(self, number: signal.Signals) -> None:
        for pid, start in self._peers:
            if process_start_time(pid) == start:
                with suppress(OSError):
                    os.kill(pid, number)


def process_state(pid: int) -> tuple[bytes, int] | None:
    """Return the state of a process and its start in clock ticks since boot; ``None`` if it does not run."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name in brackets may itself contain brackets and blanks; the state follows it.
    state, *fields = stat[stat.rindex(b")") + 2 :].split()
    return None if state in (b"Z", b"X") else (state, int(fields[18]))


def process_start_time(pid: int) -> int | None:
    """Return the start of a process in clock ticks since boot; ``None`` if it does not run."""
    found = process_state(pid)
    return found and found[1]
