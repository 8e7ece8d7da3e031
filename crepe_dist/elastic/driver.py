"""Elastic driver: starts the ranks of a run on this host or on a cluster, and restarts all ranks after a failure."""

from __future__ import annotations

import contextlib
import enum
import math
import os
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from crepe_dist.distributed.endpoint import ADDRESS_ENV, PORT_ENV, SECONDS_ENV, read_time_limit
from crepe_dist.distributed.handshake import SECRET_ENV
from crepe_dist.distributed.launch import NUM_THREADS_ENV
from crepe_dist.distributed.signals import SUPERVISION_ID_ENV, SignalHandler, StepAction
from crepe_dist.elastic.process import WorkerProcess
from crepe_dist.errors import ExitCode, UserError, escape_to_one_line
from crepe_dist.formatting import describe_exit_code, pluralize, timestamp
from crepe_dist.runs import checkpoint
from crepe_dist.version import __version__

MAX_PROCESSES = 1 << 16  # Maximum number of processes of a run.
LOOPBACK = "127.0.0.1"
RESUME_HINT = "run the same command again to resume"
# A group of ranks that runs for less than this number of seconds is short. After two or more short groups in a row, the
# driver waits before it restarts the ranks.
SHORT_GROUP_SECONDS = 60.0
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
USAGE_ERROR = 2  # Exit code of argparse for a mistake in the flags.
# Meanings of exit codes, for messages.
EXIT_MEANINGS = {
    ExitCode.ERROR: "an error that a user can fix",
    USAGE_ERROR: "a mistake in the flags",
    ExitCode.PEER_GONE: "another process ended",
    ExitCode.FAILURE: "a failure that may pass",
    ExitCode.STOPPED: "stopped on request",
    ExitCode.HUNG: "no progress",
    ExitCode.INTERRUPTED: "interrupted",
}


class ExitKind(enum.Enum):
    """Meaning of a worker's exit code.

    Attributes:
        DONE: The worker has finished training.
        MISTAKE: The worker has failed with an error that the user must fix. After a restart, it would fail again.
        PREEMPTED: The worker was asked to stop. If its run had started, it has saved its state.
        INTERRUPTED: The user has pressed Ctrl-C.
        FAILED: The worker has failed in another way. A restart may succeed.
    """

    DONE = enum.auto()
    MISTAKE = enum.auto()
    PREEMPTED = enum.auto()
    INTERRUPTED = enum.auto()
    FAILED = enum.auto()


def classify_exit(code: int | None) -> ExitKind:
    """Classify an exit code.

    Args:
        code: Exit code. It is negative if a signal has ended the process, and ``None`` if the process was lost.
    """
    if code == ExitCode.DONE:
        return ExitKind.DONE
    if code in (ExitCode.ERROR, USAGE_ERROR):
        return ExitKind.MISTAKE
    # A worker that gets SIGTERM before it has installed its signal handlers exits with -SIGTERM.
    if code in (ExitCode.STOPPED, -signal.SIGTERM):
        return ExitKind.PREEMPTED
    return ExitKind.INTERRUPTED if code == ExitCode.INTERRUPTED else ExitKind.FAILED


def command_exit_code(code: int | None) -> int:
    """Map the exit code of a worker to the exit code of the command."""
    if code is None:
        return int(ExitCode.FAILURE)
    return code if code >= 0 else 128 - code


def describe_exit(code: int | None, hang: bool) -> str:
    """Describe the exit of a worker as the predicate of a sentence.

    Args:
        code: Exit code; see ``classify_exit``.
        hang: True if the driver or a watchdog may have killed the worker, to end a hang.
    """
    if code is None:
        return "was lost with its node"
    if code < 0:
        guess = ", to end a hang" if hang else "; perhaps the machine ran out of memory (see dmesg)"
        return describe_exit_code(code) + guess * (code == -signal.SIGKILL)
    return describe_exit_code(code) + (f" ({EXIT_MEANINGS[code]})" if code in EXIT_MEANINGS else "")


class NodeLostError(Exception):
    """A call to a rank failed because its node, or the cluster's process for the rank, was lost."""


class Slot(NamedTuple):
    """Slot for one rank: a place in the cluster that can run a process.

    Attributes:
        host: Host of the rank.
        threads: Number of threads of the rank. If it is ``None``, the cores of the host are divided evenly among its
            ranks.
    """

    host: str
    threads: int | None


class Cluster:
    """Cluster of nodes that run the processes of the ranks. This base class runs all ranks on this host.

    Attributes:
        name: Name of the cluster, for messages.
        poll_seconds: Seconds between two polls of the ranks.
    """

    name = "supervise"
    poll_seconds = 0.05

    def __init__(self) -> None:
        self._processes: list[Any] = []

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Release other resources than slots."""

    def variables(self) -> dict[str, str]:
        """Return environment variables for all ranks, which are added to the environment of their hosts."""
        return {}

    def free_slots(self) -> int:
        """Return the number of slots of the running nodes, including slots that are in use."""
        return MAX_PROCESSES

    def allocate(self, processes: int) -> list[Slot]:
        """Allocate a slot for each process. Return an empty list if there are not enough free slots."""
        self._processes = [WorkerProcess() for _ in range(processes)]
        return [Slot(LOOPBACK, None)] * processes

    def call(self, rank: int, method: str, *arguments: Any) -> Any:
        """Call a method of the ``WorkerProcess`` of a rank, and return a handle for ``get_result``."""
        return getattr(self._processes[rank], method)(*arguments)

    def get_result(self, handle: Any) -> Any:
        """Return the result of a call, or ``None`` if the result has not arrived yet.

        Raises:
            NodeLostError: The result will never arrive, because the node was lost.
        """
        return handle

    def pause(self, seconds: float) -> None:
        """Wait before the next poll of the ranks."""
        time.sleep(seconds)

    def has_changed(self) -> bool:
        """Return whether a node has left or returned since ``allocate``, so that the ranks need other slots."""
        return False

    def seconds_for_return(self) -> float:
        """Return the number of seconds during which a lost node may still return, or 0."""
        return 0.0

    def shortage(self, processes: str, slots: int) -> UserError:
        """Return the error for the case that there are not enough slots for ``processes`` after the time limit."""
        return UserError(
            f"the {self.name} cluster has no slots for {processes}",
            f"all its nodes together have slots for {slots}",
            f"give a lower --processes, or add nodes; {SECONDS_ENV} sets the time limit",
        )

    def release(self) -> None:
        """Kill all ranks, and free their slots."""
        for process in self._processes:
            process.kill()
        self._processes = []


@dataclass
class _WorkerGroup:
    """Ranks that were started together, and their state. Times are values of ``time.monotonic``.

    Attributes:
        slots: Slot of each rank.
        calls: Pending call of ``WorkerProcess.poll`` for each running rank, by rank.
        exit_codes: Exit code of each rank that has exited, by rank, in the order of the exits. The exit code of a lost
            rank is ``None``.
        is_stop_requested: True if all ranks were asked to stop.
        had_failed: True if a rank had failed or stopped before all ranks were asked to stop.
        kill_at: Time when the remaining ranks are killed.
        killed: Ranks that were still running when the remaining ranks were killed.
        is_hung: True if a rank was suspended, or did not answer, for longer than its watchdog allows.
        silent_seconds: Number of seconds that each rank has been suspended or has not answered, by rank. Ranks that
            have never answered are omitted.
        started_at: Time of the start.
        last_look: Time of the last poll of the ranks.
    """

    slots: list[Slot]
    calls: dict[int, Any] = field(default_factory=dict)
    exit_codes: dict[int, int | None] = field(default_factory=dict)
    is_stop_requested: bool = False
    had_failed: bool = False
    kill_at: float = math.inf
    killed: set[int] = field(default_factory=set)
    is_hung: bool = False
    silent_seconds: dict[int, float] = field(default_factory=dict)
    started_at: float = field(default_factory=time.monotonic)
    last_look: float = math.inf

    def describe_end(self, rank: int) -> str:
        """Return a sentence that describes the exit of a rank."""
        # A watchdog that reports a hang kills the other ranks of its host before it exits.
        hang = rank in self.killed or ExitCode.HUNG in self.exit_codes.values()
        return f"rank {rank} on {self.slots[rank].host} {describe_exit(self.exit_codes[rank], hang)}"


def find_root_cause(exits: Iterable[tuple[int, int | None]]) -> tuple[int, int | None]:
    """Return the rank whose exit caused the exits of the other ranks, and its exit code.

    A mistake of the user has priority, because a restart cannot fix it. A rank that merely lost its connection to
    another rank is not the cause, unless there is no other candidate. If all ranks have finished, return
    ``ExitCode.DONE``.

    Args:
        exits: Ranks and their exit codes, in the order of the exits.
    """
    failed = [(rank, code) for rank, code in exits if classify_exit(code) is not ExitKind.DONE]
    own = [(rank, code) for rank, code in failed if code != ExitCode.PEER_GONE]
    mistakes = [(rank, code) for rank, code in own if classify_exit(code) is ExitKind.MISTAKE]
    return next(iter(mistakes or own or failed), (0, ExitCode.DONE))


@dataclass
class ElasticDriver:
    """Driver of one training run.

    Args:
        cluster: Cluster that runs the processes.
        arguments: Command-line arguments of the Python interpreter, for each process.
        processes: Number of processes to start with. After the loss of a node, fewer processes may be started.
        restarts_left: Number of remaining restarts after failures. Restarts after preemptions do not count.
        control: Signal handler that receives requests to stop.
        limit: Time limit of the watchdogs in seconds. A watchdog ends its rank after this time without progress.
        grace: Seconds between the request to stop and the kill of a rank that has not exited.
    """

    cluster: Cluster
    arguments: Sequence[str]
    processes: int
    restarts_left: int
    control: SignalHandler
    limit: float
    grace: float = 60.0

    def __post_init__(self) -> None:
        self._variables = {**self.cluster.variables(), SUPERVISION_ID_ENV: secrets.token_hex(8)}
        self._short_groups = 0  # Number of short groups in a row.
        self.checkpoint: Path | None = None  # The last checkpoint that rank 0 printed.

    def run(self) -> None:
        """Run training until it is finished, and restart the ranks after failures.

        Raises:
            UserError: Training has failed. The exit code of the error is derived from the exit code of the rank.
            StopRequested: The run was asked to stop, and its state is saved if training had started.
        """
        try:
            group = self._start(self.processes)
            while True:
                while group.calls:
                    self._watch(group)
                    self.cluster.pause(self.cluster.poll_seconds)
                self._log_kills(group)
                if self._is_done(group):
                    return
                if None in group.exit_codes.values() or self.cluster.has_changed():
                    self.cluster.release()
                    group = self._start(1)
                else:  # No node was lost, so restart in the same slots, which saves time.
                    group = self._start_workers(_WorkerGroup(group.slots))
        finally:
            self.cluster.release()

    def _start(self, min_processes: int) -> _WorkerGroup:
        """Start as many ranks as the cluster has slots for, but at most ``processes`` and at least ``min_processes``.

        Wait for lost nodes that may return, and for free slots if necessary. Raise ``UserError`` if there are too few
        slots after the time limit.
        """
        seconds = read_time_limit(os.environ)
        deadline = 0.0
        while True:
            slots = self.cluster.free_slots()
            seconds_for_return = self.cluster.seconds_for_return()
            minimum = self.processes if seconds_for_return else min_processes
            for processes in range(min(self.processes, slots), minimum - 1, -1):
                if places := self.cluster.allocate(processes):
                    return self._start_workers(_WorkerGroup(places))
                self._check_stop()
            want = pluralize(minimum, "process", "processes")
            shortage = self.cluster.shortage(want, slots)
            if not deadline:
                deadline = time.monotonic() + seconds
                self._log(f"waiting up to {seconds_for_return or seconds:.0f} s for {want}: {shortage.why}")
            if time.monotonic() > deadline and not seconds_for_return:
                raise shortage
            self._sleep(self.cluster.poll_seconds)

    def _start_workers(self, group: _WorkerGroup) -> _WorkerGroup:
        """Start the processes of a group in its slots."""
        slots, cluster = group.slots, self.cluster
        hosts = ", ".join(f"{number} on {host}" for host, number in Counter(slot.host for slot in slots).items())
        self._log(f"{pluralize(len(slots), 'process', 'processes')} ({hosts})")
        call = cluster.call(0, "free_port")
        try:
            while (port := cluster.get_result(call)) is None:
                self._sleep(cluster.poll_seconds)
        except NodeLostError:
            group.exit_codes[0] = None
            return group
        # A process of an earlier group may still be running on a lost node. It does not know the new secret, so it
        # cannot join this group.
        secret = {SECRET_ENV: secrets.token_hex(32)}
        rendezvous = {"WORLD_SIZE": str(len(slots)), ADDRESS_ENV: slots[0].host, PORT_ENV: str(port), **secret}
        for rank, slot in enumerate(slots):
            threads = {} if slot.threads is None else {NUM_THREADS_ENV: str(slot.threads)}
            variables = {**threads, **self._variables, **rendezvous, "RANK": str(rank)}
            cluster.call(rank, "start", self.arguments, os.getcwd(), variables, __version__)
            group.calls[rank] = cluster.call(rank, "poll")
        return group

    def _check_stop(self) -> None:
        if self.control.requested_action is StepAction.STOP:
            raise self.control.stop_exception(on_all_ranks=True)

    def _sleep(self, seconds: float) -> None:
        """Sleep. Raise ``StopRequested`` as soon as the run is asked to stop."""
        end = time.monotonic() + seconds
        self._check_stop()
        while (left := end - time.monotonic()) > 0:
            self.cluster.pause(min(left, self.cluster.poll_seconds))
            self._check_stop()

    def _watch(self, group: _WorkerGroup) -> None:
        """Poll the ranks once: print their output, and handle exits, hangs and requests to stop."""
        now = time.monotonic()
        elapsed = min(max(0.0, now - group.last_look), POLL_SECONDS)
        group.last_look = now
        for rank, call in list(group.calls.items()):
            try:
                answer = self.cluster.get_result(call)
            except NodeLostError:
                self._record_exit(group, rank, None)
                continue
            if rank in group.silent_seconds:
                group.silent_seconds[rank] += elapsed
            if answer is not None:
                lines, code, is_suspended = answer
                group.silent_seconds[rank] = group.silent_seconds.get(rank, 0.0) if is_suspended else 0.0
                for stream, line in lines:
                    self._print_line(rank, stream, line)
                if code is None:
                    group.calls[rank] = self.cluster.call(rank, "poll")
                else:
                    self._record_exit(group, rank, code)
        hung = [
            rank for rank in group.calls if group.silent_seconds.get(rank, 0.0) > self.limit + WATCHDOG_MARGIN_SECONDS
        ]
        if hung and not group.is_hung:
            host, seconds = group.slots[hung[0]].host, group.silent_seconds[hung[0]]
            what = f"rank {hung[0]} on {host} has been suspended, or has not answered, for {seconds:.0f} s"
            self._log(f"{what}; all ranks are killed")
            group.is_hung, group.kill_at = True, min(group.kill_at, now)
        if self.control.requested_action is StepAction.STOP and not group.is_stop_requested:
            self._request_stop(group)
        if group.kill_at == math.inf and self.cluster.has_changed():
            self._log("a node has returned, so all ranks save and restart")
            self._stop(group)
        if now > group.kill_at:
            self._kill(group)

    def _print_line(self, rank: int, stream: str, line: str) -> None:
        print_line(line if rank == 0 or line.startswith("[rank") else f"[rank {rank}] {line}", stream)
        path = Path(line.strip())  # At the end of training, rank 0 prints the path of the checkpoint.
        if rank == 0 and path.parent.name == checkpoint.FOLDER and checkpoint.FILE_PATTERN.fullmatch(path.name):
            self.checkpoint = path

    def _log(self, text: str) -> None:
        # The text may come from another host, so its control characters are escaped.
        print_line(f"{timestamp()} {self.cluster.name}: {escape_to_one_line(text)}", "stderr")

    def _request_stop(self, group: _WorkerGroup) -> None:
        """Ask all ranks to save their state and stop."""
        group.is_stop_requested, group.had_failed = True, group.kill_at < math.inf
        self._stop(group)

    def _stop(self, group: _WorkerGroup) -> None:
        group.kill_at = min(group.kill_at, time.monotonic() + self.grace)
        for rank in group.calls:
            self.cluster.call(rank, "stop")

    def _kill(self, group: _WorkerGroup) -> None:
        """Kill the remaining ranks. If they were already killed and have still not exited, record them as lost."""
        for rank in list(group.calls):
            if group.killed:
                self._record_exit(group, rank, None)
            else:
                self.cluster.call(rank, "kill")
        group.killed.update(group.calls)
        group.kill_at = time.monotonic() + KILL_SECONDS

    def _record_exit(self, group: _WorkerGroup, rank: int, code: int | None) -> None:
        """Record the exit of a rank. After a failure, limit the time that the other ranks have to exit."""
        del group.calls[rank]
        if group.is_hung and code == -signal.SIGKILL:
            code = ExitCode.HUNG
        group.exit_codes[rank] = code
        if classify_exit(code) is not ExitKind.DONE:
            # After a preemption, the other ranks need time to save their state. After the loss of a node, the other
            # ranks detect the loss only after the TCP timeout of 30 s.
            seconds = self.grace if code is None or classify_exit(code) is ExitKind.PREEMPTED else PEER_EXIT_SECONDS
            group.kill_at = min(group.kill_at, time.monotonic() + seconds)
        # A mistake of the user makes all ranks fail in the same way, so it is printed only once, at the end.
        if classify_exit(code) not in (ExitKind.DONE, ExitKind.MISTAKE) and code != -signal.SIGKILL:
            self._log(group.describe_end(rank))

    def _log_kills(self, group: _WorkerGroup) -> None:
        """Log the ranks that were killed by SIGKILL.

        This is called after all ranks have exited, because the exit of a watchdog shows whether it killed them.
        """
        for rank, code in group.exit_codes.items():
            if code == -signal.SIGKILL:
                self._log(group.describe_end(rank))

    def _is_done(self, group: _WorkerGroup) -> bool:
        """Return True if training is done. Return False if all ranks must restart, after a delay where necessary.

        Raises:
            UserError: Training has failed, and a restart cannot help, or no restart is left.
            StopRequested: The run was asked to stop, and its state is saved.
        """
        rank, code = find_root_cause(group.exit_codes.items())
        reason = classify_exit(code)
        if reason is ExitKind.DONE:
            return True
        # A preempted rank has saved its state. After an earlier failure, the newest saved state is on disk.
        has_saved = ExitKind.PREEMPTED in map(classify_exit, group.exit_codes.values()) or (
            group.had_failed and self.restarts_left
        )
        if group.is_stop_requested and has_saved:
            raise self.control.stop_exception(on_all_ranks=True)
        is_failure = reason is ExitKind.FAILED
        if reason in (ExitKind.MISTAKE, ExitKind.INTERRUPTED):
            raise UserError(group.describe_end(rank), remedy="see the message above", code=command_exit_code(code))
        if group.is_stop_requested or (is_failure and self.restarts_left == 0):
            why = "the run had been asked to stop" if group.is_stop_requested else "no restart is left"
            raise UserError(group.describe_end(rank), why, RESUME_HINT, code=command_exit_code(code))
        self.restarts_left -= is_failure
        # There is no delay after the first short group. After further short groups, it is 1, 2, 4 … up to 60 s.
        self._short_groups = self._short_groups + 1 if time.monotonic() - group.started_at < SHORT_GROUP_SECONDS else 0
        delay = min(60.0, 2.0 ** min(self._short_groups - 2, 10)) if self._short_groups > 1 else 0.0
        after = f" after {delay:g} s" if delay else ""
        self._log(f"restarting from the newest saved state{after}; {self.restarts_left} restarts left")
        self._sleep(delay)
        return False


def print_line(line: str, stream: str) -> None:
    """Print a line to ``stdout`` or ``stderr``."""
    with contextlib.suppress(OSError, ValueError):  # The stream may be closed.
        print(line, file=getattr(sys, stream), flush=True)
