"""Watchdog: a thread that ends its process if the process makes no progress.

Before the watchdog ends the process, it writes the stacks of all threads. If there were no watchdog, the other ranks
would wait forever for a rank that is suspended or has lost its network.
"""

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
from typing import IO, Any

from crepe_dist.distributed.launch import read_launcher_env
from crepe_dist.distributed.signals import SignalHandler
from crepe_dist.errors import ExitCode, UserError
from crepe_dist.formatting import timestamp

POLL_SECONDS = 1.0  # Seconds between two polls.
# If a poll is delayed by more than this number of seconds, this process was suspended, or the host is overloaded.
SUSPENDED_SECONDS = 5.0
DUMP_SECONDS = 1.0  # Seconds that the other processes of this host have to write their stacks.
STACK_DUMP_SIGNAL = signal.SIGUSR1  # A process writes its stacks when it receives this signal.
MAX_SHOWN_ROWS = 64  # Maximum number of data rows that the position of a process lists.
# Causes of a hang, by the state of a process in /proc.
STATE_CAUSES = {
    b"T": "is suspended (SIGSTOP)",
    b"t": "is stopped by a debugger",
    b"D": "waits for a disk, a network file system or a driver",
}


class Watchdog:
    """Context manager that runs a watchdog. The process must call ``heartbeat`` whenever it makes progress.

    Args:
        signal_handler: Signal handler of this process. If the launcher ends, the watchdog calls its ``request_stop``.
        limit: Time limit in seconds. The watchdog ends the process after this time without progress.
        rank: Rank of this process.

    Attributes:
        position_source: Function that returns step, epoch, documents and rows. The watchdog calls it in its own thread.
        late_rank: Function that returns the rank whose message this process waits for, or ``None``.
        processes: Result of ``identity`` of every rank. The list is empty while the ranks are unknown.
    """

    def __init__(self, signal_handler: SignalHandler, limit: float, rank: int) -> None:
        self._signal_handler = signal_handler
        self._limit = limit
        self._rank = rank
        self._phase = "start"
        self.position_source: Callable[[], dict[str, Any]] = dict
        self.late_rank: Callable[[], int | None] = lambda: None
        self._since = time.monotonic()
        self.processes: list[dict[str, Any]] = []
        self._peers: dict[int, tuple[int, int]] = {}  # Process id and start time of the other ranks of this host.
        self._stacks: IO[str] | None = None
        self._ended = threading.Event()
        self._ending = False
        self._parent = os.getppid()
        self._launched = read_launcher_env().size > 1

    def heartbeat(self, phase: str = "") -> None:
        """Record progress.

        The call never returns if the watchdog is ending the process. In that case, a process that was suspended has
        been resumed only to write its stacks, and must not continue its work.

        Args:
            phase: Name of the phase that starts. If it is empty, the phase does not change.
        """
        self._wait_for_end()
        self._phase = phase or self._phase
        self._since = time.monotonic()

    def pause(self) -> None:
        """Suspend the time limit until the next heartbeat, while this rank waits for ranks with their own watchdogs.

        The time limit still applies while another process of this host is suspended, because the watchdog of that
        process is also suspended.
        """
        self._since = math.inf

    def position(self) -> dict[str, Any]:
        """Return the position of this process: rank, phase, and the result of the position source."""
        return {"rank": self._rank, "phase": self._phase, **self.position_source()}

    def open_stack_file(self, path: Path, processes: list[dict[str, Any]]) -> None:
        """Open the file for the stack traces.

        Args:
            path: Path of the file. It is opened for appending.
            processes: Result of ``identity`` of every rank.
        """
        path.parent.mkdir(exist_ok=True)
        self._stacks = path.open("a", encoding="utf-8")
        identity = self.identity()
        self._stacks.write(f"{json.dumps({'rank': self._rank, **identity, 'started': time.time()})}\n")
        self._stacks.flush()
        faulthandler.register(STACK_DUMP_SIGNAL, self._stacks)
        self.processes = processes
        self._peers = {
            rank: (process["pid"], process["start"])
            for rank, process in enumerate(processes)
            if process["host"] == identity["host"] and process["pid"] != identity["pid"]
        }

    def identity(self) -> dict[str, Any]:
        """Return the host, the process id and the start time of this process."""
        pid = os.getpid()
        return {"host": socket.gethostname(), "pid": pid, "start": process_start_time(pid)}

    def __enter__(self) -> "Watchdog":
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._wait_for_end()
        self._ended.set()
        if self._stacks is not None and not self._launched:
            # A process that a launcher has started with others keeps the signal handler and the file, because the other
            # processes may still request its stacks.
            faulthandler.unregister(STACK_DUMP_SIGNAL)
            self._stacks.close()

    def _watch(self) -> None:
        last_poll = peers_last_running = time.monotonic()
        while True:
            now = time.monotonic()
            if not any(process_state(pid) in ((b"T", start), (b"t", start)) for pid, start in self._peers.values()):
                peers_last_running = now
            if now - last_poll > POLL_SECONDS + SUSPENDED_SECONDS:
                # This process was suspended, so the time since the last poll does not count.
                self._since += now - last_poll
                peers_last_running = now
            last_poll = now
            if self._launched and os.getppid() != self._parent:
                self._launched = False
                self._signal_handler.request_stop("the launcher is gone")
            # While the time limit is suspended, only a suspended process of this host counts as a hang.
            idle_seconds = now - (peers_last_running if math.isinf(self._since) else self._since)
            if idle_seconds > self._limit:
                self._end(idle_seconds)
            if self._ended.wait(POLL_SECONDS):
                return

    def _wait_for_end(self) -> None:
        while self._ending:
            time.sleep(1)

    def _end(self, seconds: float) -> None:
        """Write the stacks of all processes of the group on this host, and end these processes."""
        self._ending = True
        # The timer ends the process even if a call below blocks, for example because a disk does not respond.
        timer = threading.Timer(2 * DUMP_SECONDS + SUSPENDED_SECONDS, os._exit, [ExitCode.HUNG])
        timer.daemon = True
        timer.start()
        try:
            position, stream = self.position(), self._stacks or sys.stderr
            step = f" at step {position['step']}" if "step" in position else ""
            # The cause is found before the peers are resumed.
            error = UserError(
                f"no progress for {seconds:.0f} s{step} ({position['phase']}), since {timestamp(seconds)}",
                self._cause(),
                f"run the same command again, or raise --safety.watchdog-s ({self._limit:g}) if steps take longer; "
                f"the stacks are in {self._stacks.name if self._stacks else 'the lines below'}",
            )
            print(f"[rank {self._rank}] {error}", file=sys.stderr, flush=True)
            self._signal_peers(STACK_DUMP_SIGNAL)
            self._signal_peers(signal.SIGCONT)  # A suspended process can write its stacks only after it is resumed.
            stream.write(f"no progress for {seconds:.0f} s: {json.dumps({**self.identity(), **position})}\n")
            stream.flush()
            faulthandler.dump_traceback(stream)
            time.sleep(DUMP_SECONDS)
            self._signal_peers(signal.SIGKILL)
        finally:
            os._exit(ExitCode.HUNG)

    def _cause(self) -> str:
        """Describe why there is no progress. If possible, name the rank that hangs, its host and its process."""
        causes = [
            f"{self._describe(rank)} {STATE_CAUSES[state[0]]}"
            for rank, (pid, start) in self._peers.items()
            if (state := process_state(pid)) is not None and state[1] == start and state[0] in STATE_CAUSES
        ]
        if not causes and (late_rank := self.late_rank()) is not None and late_rank < len(self.processes):
            causes = [f"this rank waits for a message from {self._describe(late_rank)}"]
        unknown = "a process is suspended, a host or network is lost, or the ranks wait for different collectives"
        return "; ".join(causes) or unknown

    def _describe(self, rank: int) -> str:
        return f"rank {rank} on {self.processes[rank]['host']} (pid {self.processes[rank]['pid']})"

    def _signal_peers(self, number: signal.Signals) -> None:
        for pid, start in self._peers.values():
            if process_start_time(pid) == start:
                with suppress(OSError):
                    os.kill(pid, number)


def process_state(pid: int) -> tuple[bytes, int] | None:
    """Return the state of a process and its start time in clock ticks since boot, or ``None`` if it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The state follows the name of the process, which is in parentheses and may itself contain parentheses and spaces.
    state, *fields = stat[stat.rindex(b")") + 2 :].split()
    return None if state in (b"Z", b"X") else (state, int(fields[18]))


def process_start_time(pid: int) -> int | None:
    """Return the start time of a process in clock ticks since boot, or ``None`` if the process has ended."""
    state = process_state(pid)
    return state and state[1]
