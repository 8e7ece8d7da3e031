"""Group of ranks that were started together: their output, exits and hangs, until all of them have exited."""

import math
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crepe_dist.distributed.launch import NUM_THREADS_ENV
from crepe_dist.elastic.cluster import Cluster, NodeLostError, Slot, print_line
from crepe_dist.elastic.exit_codes import ExitKind, classify_exit, describe_exit
from crepe_dist.errors import ExitCode
from crepe_dist.runs import checkpoint
from crepe_dist.version import __version__

# Seconds that the other ranks have to exit after a rank has failed. The other ranks detect the failure immediately,
# because their connections to the failed rank are closed.
PEER_EXIT_SECONDS = 5.0
KILL_SECONDS = 5.0  # Seconds that a killed rank has to exit. After that, it is considered lost.
# The driver's time limit exceeds the time limit of the ranks' watchdogs by this number of seconds. A watchdog should
# act first, because it writes the stacks of its process.
WATCHDOG_MARGIN_SECONDS = 5.0
# Each interval between two polls adds at most this number of seconds to the silence of a rank. An interval that is
# longer than this means that the driver itself was suspended.
POLL_SECONDS = 1.0


@dataclass
class WorkerGroup:
    """Ranks that were started together, and their state. Times are values of ``time.monotonic``.

    Args:
        cluster: Cluster that runs the processes.
        slots: Slot of each rank.
        limit: Time limit of the watchdogs in seconds. A watchdog ends its rank after this time without progress.
        grace: Seconds between the request to stop and the kill of a rank that has not exited.

    Attributes:
        calls: Pending call of ``WorkerProcess.poll`` for each running rank, by rank.
        exit_codes: Exit code of each rank that has exited, by rank, in the order of the exits. The exit code of a lost
            rank is ``None``.
        kill_at: Time when the remaining ranks are killed. It is infinite while all ranks are expected to run.
        kill_reason: Why the remaining ranks are killed, as the end of a sentence.
        killed: Ranks that were still running when the remaining ranks were killed.
        hung_rank: Rank that was suspended, or did not answer, for longer than its watchdog allows.
        silent_seconds: Number of seconds that each rank has been suspended or has not answered, by rank. Ranks
            whose first answer may take any time are omitted until then.
        started_at: Time of the start.
        last_look: Time of the last poll of the ranks.
        checkpoint: The last checkpoint that rank 0 printed.
    """

    cluster: Cluster
    slots: list[Slot]
    limit: float
    grace: float
    calls: dict[int, Any] = field(default_factory=dict)
    exit_codes: dict[int, int | None] = field(default_factory=dict)
    kill_at: float = math.inf
    kill_reason: str = ""
    killed: set[int] = field(default_factory=set)
    hung_rank: int | None = None
    silent_seconds: dict[int, float] = field(default_factory=dict)
    started_at: float = field(default_factory=time.monotonic)
    last_look: float = math.inf
    checkpoint: Path | None = None

    def start(self, arguments: Sequence[str], variables: Mapping[str, str]) -> None:
        """Start the processes in the slots.

        Args:
            arguments: Command-line arguments of the Python interpreter.
            variables: Environment variables that all ranks have in common.
        """
        for rank, slot in enumerate(self.slots):
            threads = {} if slot.threads is None else {NUM_THREADS_ENV: str(slot.threads)}
            own = {**threads, **variables, "RANK": str(rank)}
            self.cluster.call(rank, "start", arguments, os.getcwd(), own, __version__)
            self.calls[rank] = self.cluster.call(rank, "poll")
            if self.cluster.answers_from_start:
                self.silent_seconds[rank] = 0.0

    def poll(self) -> None:
        """Poll the ranks once: print their output, record exits, and kill the ranks that must exit."""
        now = time.monotonic()
        elapsed = min(max(0.0, now - self.last_look), POLL_SECONDS)
        self.last_look = now
        for rank, call in list(self.calls.items()):
            try:
                answer = self.cluster.get_result(call)
            except NodeLostError:
                self._record_exit(rank, None)
                continue
            if rank in self.silent_seconds:
                self.silent_seconds[rank] += elapsed
            if answer is not None:
                lines, code, is_suspended = answer
                self.silent_seconds[rank] = self.silent_seconds.get(rank, 0.0) if is_suspended else 0.0
                for stream, line in lines:
                    self._print_line(rank, stream, line)
                if code is None:
                    self.calls[rank] = self.cluster.call(rank, "poll")
                else:
                    self._record_exit(rank, code)
        silence = {rank: self.silent_seconds.get(rank, 0.0) for rank in self.calls}
        hung = next((rank for rank in silence if silence[rank] > self.limit + WATCHDOG_MARGIN_SECONDS), None)
        if hung is not None and self.hung_rank is None:
            what = f"{self._name(hung)} has been suspended, or has not answered, for {silence[hung]:.0f} s"
            self.cluster.log(f"{what}; all ranks are killed")
            self.hung_rank = hung
            self._kill_after(0.0, what)
        if now > self.kill_at:
            self._kill()
        if not self.calls:
            # The exit of a watchdog shows whether it killed the other ranks, so these are logged last.
            for rank in [rank for rank, code in self.exit_codes.items() if code == -signal.SIGKILL]:
                self.cluster.log(f"{self._name(rank)} {self._describe_end(rank)}")

    def stop(self) -> None:
        """Ask all ranks to save their state and stop."""
        self._kill_after(self.grace, f"it did not exit within {self.grace:g} s after the request to stop")
        for rank in self.calls:
            self.cluster.call(rank, "stop")

    def find_root_cause(self) -> tuple[str, int | None]:
        """Return a sentence about the rank whose exit caused the exits of the other ranks, and its exit code.

        A mistake of the user has priority, because a restart cannot fix it. A rank that was killed because of another
        rank, or that merely lost its connection to another rank, is only the cause if there is no other candidate.
        """

        def precedence(rank: int) -> int:
            code = self.exit_codes[rank]
            if rank in self.killed and code == -signal.SIGKILL:
                return 2
            if code == ExitCode.PEER_GONE:
                return 3
            return {ExitKind.MISTAKE: 0, ExitKind.DONE: 4}.get(classify_exit(code), 1)

        rank = min(self.exit_codes, key=precedence)  # The first of equals in the order of the exits.
        code = self.exit_codes[rank]
        is_common = len(self.exit_codes) > 1 and [*self.exit_codes.values()] == [code] * len(self.slots)
        return f"{'every rank' if is_common else self._name(rank)} {self._describe_end(rank)}", code

    def _name(self, rank: int) -> str:
        return f"rank {rank} on {self.slots[rank].host}"

    def _describe_end(self, rank: int) -> str:
        """Describe the exit of a rank, and why it was killed if it was, as the predicate of a sentence."""
        code = self.exit_codes[rank]
        if code != -signal.SIGKILL:
            return describe_exit(code)
        # A watchdog that reports a hang kills the other ranks of its host before it exits.
        hosts = {self.slots[other].host: other for other, code in self.exit_codes.items() if code == ExitCode.HUNG}
        if rank in self.killed:
            why = f", because {self.kill_reason}"
        elif (watcher := hosts.get(self.slots[rank].host)) is not None:
            why = f", by the watchdog of rank {watcher}"
        else:
            why = "; perhaps the machine ran out of memory (see dmesg)"
        return f"{describe_exit(code)}{why}"

    def _print_line(self, rank: int, stream: str, line: str) -> None:
        print_line(line if rank == 0 or line.startswith("[rank") else f"[rank {rank}] {line}", stream)
        path = Path(line.strip())  # At the end of training, rank 0 prints the path of the checkpoint.
        if rank == 0 and path.parent.name == checkpoint.FOLDER and checkpoint.FILE_PATTERN.fullmatch(path.name):
            self.checkpoint = path

    def _kill_after(self, seconds: float, reason: str) -> None:
        """Limit the time that the remaining ranks have to exit."""
        if (at := time.monotonic() + seconds) < self.kill_at:
            self.kill_at, self.kill_reason = at, reason

    def _kill(self) -> None:
        """Kill the remaining ranks. If they were already killed and have still not exited, record them as lost."""
        for rank in list(self.calls):
            if self.killed:
                self._record_exit(rank, None)
            else:
                self.cluster.call(rank, "kill")
        self.killed.update(self.calls)
        self.kill_at = time.monotonic() + KILL_SECONDS

    def _record_exit(self, rank: int, code: int | None) -> None:
        """Record the exit of a rank. After a failure, limit the time that the other ranks have to exit."""
        del self.calls[rank]
        if rank == self.hung_rank and code == -signal.SIGKILL:
            code = ExitCode.HUNG
        self.exit_codes[rank] = code
        kind, what = classify_exit(code), f"{self._name(rank)} {describe_exit(code)}"
        if kind is not ExitKind.DONE and not self.killed:
            # After a preemption, the other ranks need time to save their state. After the loss of a node, the other
            # ranks detect the loss only after the TCP timeout of 30 s.
            seconds = self.grace if code is None or kind is ExitKind.PREEMPTED else PEER_EXIT_SECONDS
            self._kill_after(seconds, f"it did not exit within {seconds:g} s after {what}")
        # A mistake of the user makes all ranks fail in the same way, so it is printed only once, at the end.
        if kind not in (ExitKind.DONE, ExitKind.MISTAKE) and code != -signal.SIGKILL:
            self.cluster.log(what)
