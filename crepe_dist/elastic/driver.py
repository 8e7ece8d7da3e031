"""Watch over the ranks of a run, on this host or on a cluster, and restart all of them after a failure."""

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

from crepe_dist.distributed.handshake import SECRET_ENV
from crepe_dist.distributed.launch import NUM_THREADS_ENV
from crepe_dist.distributed.rendezvous import ADDRESS_ENV, PORT_ENV, SECONDS_ENV, read_time_limit
from crepe_dist.distributed.signals import SUPERVISION_ID_ENV, SignalHandler, StepAction
from crepe_dist.elastic.process import WorkerProcess
from crepe_dist.errors import ExitCode, UserError, escape_to_one_line
from crepe_dist.formatting import describe_exit_code, pluralize
from crepe_dist.runs import checkpoint
from crepe_dist.version import __version__

MAX_PROCESSES = 1 << 16
LOOPBACK = "127.0.0.1"
RESUME_HINT = "run the same command again to resume"
SHORT_GROUP_SECONDS = 60.0
PEER_EXIT_SECONDS = 5.0  # for the other ranks to end once a process has ended, of which they hear at once
KILL_SECONDS = 5.0  # until a killed rank must have ended
# Beyond the limit of the ranks' watchdogs, which act first where they can, because they write stacks.
WATCHDOG_MARGIN_SECONDS = 5.0
POLL_SECONDS = 1.0  # at most so much time counts between two looks at the ranks: this process may have been suspended
USAGE_ERROR = 2  # argparse's code for a mistake in the flags
EXIT_MEANINGS = {
    ExitCode.ERROR: "an error that a user can fix",
    USAGE_ERROR: "a mistake in the flags",
    ExitCode.PEER_GONE: "another process ended",
    ExitCode.FAILURE: "unexpected failure",
    ExitCode.STOPPED: "stopped on request",
    ExitCode.HUNG: "no progress",
    ExitCode.INTERRUPTED: "interrupted",
}


class ExitKind(enum.Enum):
    """Meaning of a worker's exit code.

    Attributes:
        MISTAKE: an error that a user can fix; a restart would fail in the same way.
        PREEMPTED: the worker was asked to stop. It has saved its state if its run had begun.
        FAILED: any other failure; a restart may succeed.
    """

    DONE = enum.auto()
    MISTAKE = enum.auto()
    PREEMPTED = enum.auto()
    INTERRUPTED = enum.auto()
    FAILED = enum.auto()


def classify_exit(code: int | None) -> ExitKind:
    """Classify an exit code, negative for a signal; ``None`` if it is unknown because the host is gone."""
    if code == ExitCode.DONE:
        return ExitKind.DONE
    if code in (ExitCode.ERROR, USAGE_ERROR):
        return ExitKind.MISTAKE
    if code in (ExitCode.STOPPED, -signal.SIGTERM):  # the latter before it could handle signals
        return ExitKind.PREEMPTED
    return ExitKind.INTERRUPTED if code == ExitCode.INTERRUPTED else ExitKind.FAILED


def command_exit_code(code: int | None) -> int:
    """Map a worker's exit code to that of the command."""
    if code is None:
        return int(ExitCode.FAILURE)
    return code if code >= 0 else 128 - code


def describe_exit(code: int | None, hang: bool) -> str:
    """Describe a worker's end as the rest of a sentence; ``hang``: it may have been killed to end a hang."""
    if code is None:
        return "was lost with its node"
    if code < 0:
        guess = ", to end a hang" if hang else "; perhaps the machine ran out of memory (see dmesg)"
        return describe_exit_code(code) + guess * (code == -signal.SIGKILL)
    return describe_exit_code(code) + (f" ({EXIT_MEANINGS[code]})" if code in EXIT_MEANINGS else "")


class NodeLostError(Exception):
    """A rank's node, or what the cluster runs beside it, is gone."""


class Slot(NamedTuple):
    """Place of a rank: its host, and the number of its threads, unless the ranks share the host's cores out."""

    host: str
    threads: int | None


class Cluster:
    """The processes of all ranks, and the nodes that they run on: here this host, which has room for any number.

    Attributes:
        name: name for messages.
        poll_seconds: time between looks at the ranks.
    """

    name = "supervise"
    poll_seconds = 0.05

    def __init__(self) -> None:
        self._processes: list[Any] = []

    def variables(self) -> dict[str, str]:
        """Return the variables that all ranks get beside those of their host."""
        return {}

    def free_slots(self) -> int:
        """Return the number of processes for which the living nodes have room when they are idle."""
        return MAX_PROCESSES

    def allocate(self, processes: int) -> list[Slot]:
        """Make so many ranks, each in its own slot; return an empty list if they are not free."""
        self._processes = [WorkerProcess() for _ in range(processes)]
        return [Slot(LOOPBACK, None)] * processes

    def call(self, rank: int, method: str, *arguments: Any) -> Any:
        """Call a method of a rank's process, and return its result, or a handle for ``answer``."""
        return getattr(self._processes[rank], method)(*arguments)

    def get_result(self, handle: Any) -> Any:
        """Return the result of a call; ``None`` if it has not arrived.

        Raises:
            Lost: it will not arrive.
        """
        return handle

    def release(self) -> None:
        """Remove all ranks, and free their slots."""
        for process in self._processes:
            process.kill()
        self._processes = []


@dataclass
class _WorkerGroup:
    """The ranks of one start.

    Attributes:
        calls: pending call of ``WorkerProcess.poll`` of each rank that runs.
        ends: exit code of each rank that has ended, in their order; ``None`` if it was lost.
        is_asked: all were asked to stop.
        had_failed: a rank had failed before that.
        kill_at: time at which the remaining ranks are killed.
        is_hung: a rank was suspended, or did not answer, for longer than its watchdog allows.
        silent: seconds since a rank was last seen running, for each rank that has answered once.
        looked: time of the last look at the ranks.
    """

    slots: list[Slot]
    calls: dict[int, Any] = field(default_factory=dict)
    exit_codes: dict[int, int | None] = field(default_factory=dict)
    is_stop_requested: bool = False
    had_failed: bool = False
    kill_at: float = math.inf
    is_killed: bool = False
    is_hung: bool = False
    silent_seconds: dict[int, float] = field(default_factory=dict)
    started_at: float = field(default_factory=time.monotonic)
    last_look: float = math.inf

    def describe_end(self, rank: int) -> str:
        """Describe the end of a rank."""
        return f"rank {rank} on {self.slots[rank].host} {describe_exit(self.exit_codes[rank], hang=self.is_killed)}"


def find_root_cause(exits: Iterable[tuple[int, int | None]]) -> tuple[int, int | None]:
    """Return the rank whose end explains the others', and its exit code, from those of all in the order of their ends.

    A mistake comes first, since no restart mends it; the end of a rank that lost another one explains nothing.
    """
    failed = [(rank, code) for rank, code in exits if classify_exit(code) is not ExitKind.DONE]
    own = [(rank, code) for rank, code in failed if code != ExitCode.PEER_GONE]
    mistakes = [(rank, code) for rank, code in own if classify_exit(code) is ExitKind.MISTAKE]
    return next(iter(mistakes or own or failed), (0, ExitCode.DONE))


@dataclass
class ElasticDriver:
    """Driver of one training run.

    Args:
        arguments: arguments of Python for each process.
        processes: largest number of processes.
        restarts_left: restarts after failures; preemptions do not count.
        control: source of requests to stop.
        limit: seconds without progress after which a rank's watchdog ends it.
        grace: seconds between asking a rank to stop and killing it.
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
        self._short_groups = 0  # in a row
        self.checkpoint: Path | None = None  # the last one that rank 0 named

    def run(self) -> None:
        """Train until the end.

        Raises:
            UserError: training failed; its code is that of the rank.
            Stopped: it was asked to stop, and all is saved.
        """
        try:
            group = self._start(self.processes)
            while True:
                while group.calls:
                    self._watch(group)
                    time.sleep(self.cluster.poll_seconds)
                if self._is_done(group):
                    return
                if None in group.exit_codes.values():
                    self.cluster.release()
                    group = self._start(1)
                else:  # in the same places, which saves time
                    group = self._start_workers(_WorkerGroup(group.slots))
        finally:
            self.cluster.release()

    def _start(self, min_processes: int) -> _WorkerGroup:
        """Start as many ranks as there is room for."""
        seconds = read_time_limit(os.environ)
        due, want = 0.0, pluralize(min_processes, "process", "processes")
        while True:
            room = self.cluster.free_slots()
            for processes in range(min(self.processes, room), min_processes - 1, -1):
                if places := self.cluster.allocate(processes):
                    return self._start_workers(_WorkerGroup(places))
                self._check_stop()
            if not due:
                due = time.monotonic() + seconds
                self._log(f"waiting up to {seconds:g} s for {want}; the whole cluster has room for {room}")
            if time.monotonic() > due:
                raise UserError(
                    f"the {self.cluster.name} cluster has no room for {want}",
                    f"all its nodes together have room for {room}",
                    f"give a lower --processes, or add nodes; {SECONDS_ENV} sets the time limit",
                )
            self._sleep(self.cluster.poll_seconds)

    def _start_workers(self, group: _WorkerGroup) -> _WorkerGroup:
        """Start the processes of a group."""
        places, cluster = group.slots, self.cluster
        hosts = ", ".join(f"{number} on {host}" for host, number in Counter(each.host for each in places).items())
        self._log(f"{pluralize(len(places), 'process', 'processes')} ({hosts})")
        call = cluster.call(0, "free_port")
        try:
            while (port := cluster.get_result(call)) is None:
                self._sleep(cluster.poll_seconds)
        except NodeLostError:
            group.exit_codes[0] = None
            return group
        # A process that is left of an earlier start, on a node that was lost, cannot join this one.
        secret = {SECRET_ENV: secrets.token_hex(32)}
        meeting = {"WORLD_SIZE": str(len(places)), ADDRESS_ENV: places[0].host, PORT_ENV: str(port), **secret}
        for rank, place in enumerate(places):
            threads = {} if place.threads is None else {NUM_THREADS_ENV: str(place.threads)}
            variables = {**threads, **self._variables, **meeting, "RANK": str(rank)}
            cluster.call(rank, "start", self.arguments, os.getcwd(), variables, __version__)
            group.calls[rank] = cluster.call(rank, "poll")
        return group

    def _check_stop(self) -> None:
        if self.control.requested_action is StepAction.STOP:
            raise self.control.stop_exception(on_all_ranks=True)

    def _sleep(self, seconds: float) -> None:
        """Sleep, unless all is to stop."""
        end = time.monotonic() + seconds
        self._check_stop()
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, self.cluster.poll_seconds))
            self._check_stop()

    def _watch(self, group: _WorkerGroup) -> None:
        """Read what the ranks print, and act on their ends, on hangs, and on requests to stop."""
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
            place, seconds = group.slots[hung[0]], group.silent_seconds[hung[0]]
            what = f"rank {hung[0]} on {place.host} has been suspended, or has not answered, for {seconds:.0f} s"
            self._log(f"{what}; all ranks are killed")
            group.is_hung, group.kill_at = True, min(group.kill_at, now)
        if self.control.requested_action is StepAction.STOP and not group.is_stop_requested:
            self._request_stop(group)
        if now > group.kill_at:
            self._kill(group)

    def _print_line(self, rank: int, stream: str, line: str) -> None:
        _print(line if rank == 0 or line.startswith("[rank") else f"[rank {rank}] {line}", stream)
        path = Path(line.strip())  # train names its checkpoint after the result
        if rank == 0 and path.parent.name == checkpoint.FOLDER and checkpoint.FILE_PATTERN.fullmatch(path.name):
            self.checkpoint = path

    def _log(self, text: str) -> None:
        # The text may come from another host, so control characters are escaped.
        _print(f"{self.cluster.name}: {escape_to_one_line(text)}", "stderr")

    def _request_stop(self, group: _WorkerGroup) -> None:
        """Ask all ranks to save and stop."""
        group.is_stop_requested, group.had_failed = True, group.kill_at < math.inf
        group.kill_at = min(group.kill_at, time.monotonic() + self.grace)
        for rank in group.calls:
            self.cluster.call(rank, "stop")

    def _kill(self, group: _WorkerGroup) -> None:
        """Kill the ranks that have not ended; give up those that were killed before."""
        for rank in list(group.calls):
            if group.is_killed:
                self._record_exit(group, rank, None)
            else:
                self.cluster.call(rank, "kill")
        group.is_killed, group.kill_at = True, time.monotonic() + KILL_SECONDS

    def _record_exit(self, group: _WorkerGroup, rank: int, code: int | None) -> None:
        """Record the end of a rank, and limit the time of the others after a failure."""
        del group.calls[rank]
        if group.is_hung and code == -signal.SIGKILL:
            code = ExitCode.HUNG
        group.exit_codes[rank] = code
        if classify_exit(code) is not ExitKind.DONE:
            # A rank that was asked to stop makes the others save; of a lost node they hear by TCP, after 30 s.
            seconds = self.grace if code is None or classify_exit(code) is ExitKind.PREEMPTED else PEER_EXIT_SECONDS
            group.kill_at = min(group.kill_at, time.monotonic() + seconds)
        if classify_exit(code) not in (
            ExitKind.DONE,
            ExitKind.MISTAKE,
        ):  # a mistake is that of all ranks, and told at the end
            self._log(group.describe_end(rank))

    def _is_done(self, group: _WorkerGroup) -> bool:
        """Return whether the run is done; else all restart."""
        rank, code = find_root_cause(group.exit_codes.items())
        reason = classify_exit(code)
        if reason is ExitKind.DONE:
            return True
        # A rank that has saved proves that the state is on disk; after a failure, the newest one is.
        has_saved = ExitKind.PREEMPTED in map(classify_exit, group.exit_codes.values()) or (
            group.had_failed and self.restarts_left
        )
        if group.is_stop_requested and has_saved:
            raise self.control.stop_exception(on_all_ranks=True)
        is_failure = reason is ExitKind.FAILED
        if reason in (ExitKind.MISTAKE, ExitKind.INTERRUPTED):
            raise UserError(group.describe_end(rank), remedy="see the message above", code=command_exit_code(code))
        if group.is_stop_requested or (is_failure and self.restarts_left == 0):
            why = "it had been asked to stop" if group.is_stop_requested else "no restart is left"
            raise UserError(group.describe_end(rank), why, RESUME_HINT, code=command_exit_code(code))
        self.restarts_left -= is_failure
        # None at first, then 1, 2, 4 … up to 60 s for groups that end soon.
        self._short_groups = self._short_groups + 1 if time.monotonic() - group.started_at < SHORT_GROUP_SECONDS else 0
        delay = min(60.0, 2.0 ** min(self._short_groups - 2, 10)) if self._short_groups > 1 else 0.0
        after = f" after {delay:g} s" if delay else ""
        self._log(f"restarting from the newest saved state{after}; {self.restarts_left} restarts left")
        self._sleep(delay)
        return False


def _print(line: str, stream: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # it is closed
        print(line, file=getattr(sys, stream), flush=True)
