"""Watchdog: a thread that writes the stacks of a process without progress, and ends it.

Horovod's own stall check never fires under Gloo (0.28.1: ``reserve`` where ``resize`` is needed). Without a watchdog, a
suspended rank, or one whose network is cut, would leave the others waiting forever.
"""

from __future__ import annotations

import heapq
import json
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from crepe_dist.distributed import crash_report, stacks
from crepe_dist.distributed.control import Control
from crepe_dist.distributed.peer_loss import hosts
from crepe_dist.distributed.processes import is_stopped, start_time
from crepe_dist.errors import ExitCode, UserError

TICK_SECONDS = 1.0
STOPPED_SECONDS = 5.0  # delay of a tick that shows that this process itself was suspended or the host overloaded
LEARNT = 10  # the limit grows to this many times the longest step, but at most to this many times its initial value
OUTLIERS = 2  # longest steps that are ignored: other processes or the disk may have been stuck
LEARNT_IN = ("train", "evaluate")
DUMP_SECONDS = 1.0  # time that the other processes of this host get to write their stacks
SHOWN_ROWS = 64


class Watchdog:
    """Context manager of a process that calls ``beat`` whenever it makes progress.

    Args:
        limit: seconds without progress that count as a hang; raised automatically if steps take long.
    """

    def __init__(self, control: Control, limit: float, rank: int) -> None:
        self._control = control
        self._limit = limit
        self._rank = rank
        self._phase = "start"
        self._where: Callable[[], dict[str, Any]] = dict
        self._since = time.monotonic()
        self._longest: list[float] = []  # intervals between beats
        self._looked = self._since  # time of the thread's last tick
        self._steps = 0
        self._peers: list[tuple[int, int]] = []
        self._stacks: IO[str] | None = None
        self._requests: stacks.StackRequests | None = None
        self._ended = threading.Event()
        self._ending = False
        self._parent = os.getppid()
        self._launched = "HOROVOD_RANK" in os.environ

    def beat(self, phase: str = "") -> None:
        """Record progress.

        It never returns once the watchdog is ending the process, because a suspended process may have been continued
        only to write its stack.

        Args:
            phase: name of the phase that starts; empty: the same as before.
        """
        self._wait_for_end()
        now = time.monotonic()
        if phase and phase != self._phase:
            self._phase, self._steps = phase, 0
        elif self._steps > 1 and self._phase in LEARNT_IN and now - self._looked < TICK_SECONDS + STOPPED_SECONDS:
            # The first step of a phase may compile, and after a late tick this process itself was suspended.
            self._longest = heapq.nlargest(OUTLIERS + 1, [*self._longest, now - self._since])
        self._steps += 1
        self._since = now

    def before_long_wait(self) -> None:
        """Suspend the limit until the next beat, because the other ranks have watchdogs of their own.

        A suspended process of this host still counts as a hang, because its watchdog is suspended, too.
        """
        self._since = math.inf

    @property
    def limit(self) -> float:
        usual = self._longest[OUTLIERS] if len(self._longest) > OUTLIERS else 0.0
        return max(self._limit, min(LEARNT * usual, LEARNT * self._limit))

    def locate(self, where: Callable[[], dict[str, Any]]) -> None:
        """Set the function that the thread calls for step, epoch, documents and rows."""
        self._where = where

    def write_to(self, path: Path, processes: list[dict[str, Any]]) -> None:
        """Write stacks to a file from now on.

        Args:
            processes: ``identity`` of every rank.
        """
        path.parent.mkdir(exist_ok=True)
        self._stacks = path.open("a", encoding="utf-8")
        me = self.identity()
        self._stacks.write(f"{json.dumps({'rank': self._rank, **me, 'started': time.time()})}\n")
        self._stacks.flush()
        if self._requests is not None:
            self._requests.close()
        self._requests = stacks.StackRequests(self._stacks)
        self._peers = [(p["pid"], p["start"]) for p in processes if p["host"] == me["host"] and p["pid"] != me["pid"]]

    def identity(self) -> dict[str, Any]:
        pid = os.getpid()
        return {"host": socket.gethostname(), "pid": pid, "start": start_time(pid)}

    def __enter__(self) -> Watchdog:
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait_for_end()
        self._ended.set()
        if self._stacks is not None and isinstance(error, Exception) and not isinstance(error, UserError):
            with suppress(OSError, ValueError):  # a full disk; closed
                traceback.print_exception(kind, error, trace, file=self._stacks)
                self._stacks.flush()
        if self._requests is not None and self._stacks is not None and not self._launched:
            # A process of a group keeps the handler: the others may still ask for its stacks.
            self._requests.close()
            self._stacks.close()

    def _watch(self) -> None:
        last = peers_moved = time.monotonic()
        while True:
            now = time.monotonic()
            if not any(is_stopped(*peer) for peer in self._peers):
                peers_moved = now
            if now - last > TICK_SECONDS + STOPPED_SECONDS:
                self._since += now - last
                peers_moved = now
            last = self._looked = now
            where = {"rank": self._rank, "phase": self._phase, **self._where()}
            if self._launched and os.getppid() != self._parent:
                self._launched = False
                self._control.stop("the launcher is gone")
            stood = now - (peers_moved if math.isinf(self._since) else self._since)
            if stood > self.limit:
                self._end(where, stood)
            if self._ended.wait(TICK_SECONDS):
                return

    def _wait_for_end(self) -> None:
        while self._ending:
            time.sleep(1)

    def _end(self, where: dict[str, Any], seconds: float) -> None:
        self._ending = True
        # The process must end even if something below blocks, for instance a lost disk.
        end = threading.Timer(2 * DUMP_SECONDS + STOPPED_SECONDS, os._exit, [ExitCode.HUNG])
        end.daemon = True
        end.start()
        try:
            self._tell(where, seconds)
            self.ask_for_stacks()
            self._signal_peers(signal.SIGCONT)  # a suspended process writes its stack, too
            stream = self._stacks or sys.stderr
            stream.write(f"no progress for {seconds:.0f} s: {json.dumps({**self.identity(), **where})}\n")
            stream.flush()
            stacks.write(stream)
            time.sleep(DUMP_SECONDS)
            self._signal_peers(signal.SIGKILL)
            report = crash_report.write(f"no progress for {seconds:.0f} s: {json.dumps(where)}", "", ExitCode.HUNG)
            print(f"[rank {self._rank}] {crash_report.said(report)}", file=sys.stderr, flush=True)
        finally:
            os._exit(ExitCode.HUNG)

    def _tell(self, where: dict[str, Any], seconds: float) -> None:
        again = "nothing, all restart" if self._control.is_supervised else "run the same command again"
        step = f" at step {where['step']}" if "step" in where else ""
        print(
            f"[rank {self._rank}] error: no progress for {seconds:.0f} s{step} ({where['phase']})\n"
            f"  why: {_cause()}\n"
            f"  do:  {again}; raise --safety.watchdog-s ({self._limit:g}) if steps take longer; {_named(self._stacks)}",
            file=sys.stderr,
            flush=True,
        )

    def ask_for_stacks(self) -> None:
        """Make the other processes of this host write their stacks."""
        self._signal_peers(stacks.REQUEST)

    def _signal_peers(self, number: signal.Signals) -> None:
        for pid, start in self._peers:
            if start_time(pid) == start:
                try:
                    os.kill(pid, number)
                except OSError:
                    continue


def _cause() -> str:
    silent, others = hosts.silent(), hosts.others
    if silent:
        return f"no answer from {', '.join(silent)}: the host is gone, or the network to it"
    guess = "a process is suspended, a host or network is lost, or the ranks wait for different collectives"
    return f"{guess}; the other hosts: {', '.join(others)}"[:2000] if others else guess


def _named(stacks: IO[str] | None) -> str:
    return f"stacks are in {stacks.name}" if stacks is not None else "the stacks are above"
