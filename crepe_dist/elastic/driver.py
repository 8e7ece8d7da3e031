"""Elastic driver: starts the ranks of a run on this host or on a cluster, and restarts all ranks after a failure."""

import math
import os
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from crepe_dist.distributed.endpoint import ADDRESS_ENV, PORT_ENV, read_time_limit
from crepe_dist.distributed.handshake import SECRET_ENV
from crepe_dist.distributed.signals import SUPERVISION_ID_ENV, SignalHandler, StepAction
from crepe_dist.elastic.cluster import Cluster, NodeLostError, Slot
from crepe_dist.elastic.exit_codes import ExitKind, classify_exit, command_exit_code
from crepe_dist.elastic.worker_group import WorkerGroup
from crepe_dist.errors import UserError
from crepe_dist.formatting import pluralize

RESUME_HINT = "run the same command again to resume"
# A group of ranks that runs for less than this number of seconds is short. After two or more short groups in a row, the
# driver waits before it restarts the ranks.
SHORT_GROUP_SECONDS = 60.0


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
        # Whether a rank had failed before the request to stop; ``None`` before the request.
        self._had_failed: bool | None = None

    def run(self) -> WorkerGroup:
        """Run training until it is finished, and restart the ranks after failures. Return the group that finished it.

        Raises:
            UserError: Training has failed. The exit code of the error is derived from the exit code of the rank.
            StopRequested: The run was asked to stop, and its state is saved if training had started.
        """
        try:
            group = self._start(self.processes)
            while True:
                self._watch(group)
                if self._is_done(group):
                    return group
                if None in group.exit_codes.values() or self.cluster.has_changed():
                    self.cluster.release()
                    group = self._start(1)
                else:  # No node was lost, so restart in the same slots, which saves time.
                    group = self._start_workers(group.slots)
        finally:
            self.cluster.release()

    def _start(self, min_processes: int) -> WorkerGroup:
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
                    return self._start_workers(places)
                self._sleep(0.0)
            want = pluralize(minimum, "process", "processes")
            shortage = self.cluster.shortage(want, slots)
            if not deadline:
                deadline = time.monotonic() + seconds
                self.cluster.log(f"waiting up to {seconds_for_return or seconds:.0f} s for {want}: {shortage.why}")
            if time.monotonic() > deadline and not seconds_for_return:
                raise shortage
            self._sleep(self.cluster.poll_seconds)

    def _start_workers(self, slots: list[Slot]) -> WorkerGroup:
        """Start a group of ranks in slots."""
        cluster, group = self.cluster, WorkerGroup(self.cluster, slots, self.limit, self.grace)
        hosts = ", ".join(f"{number} on {host}" for host, number in Counter(slot.host for slot in slots).items())
        cluster.log(f"{pluralize(len(slots), 'process', 'processes')} ({hosts})")
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
        group.start(self.arguments, {**self._variables, **rendezvous})
        return group

    def _watch(self, group: WorkerGroup) -> None:
        """Poll the ranks until all have exited. Stop them on request, or if they can have more slots."""
        while group.calls:
            group.poll()
            if self.control.requested_action is StepAction.STOP and self._had_failed is None:
                self._had_failed = group.kill_at < math.inf
                group.stop()
            if group.kill_at == math.inf and self.cluster.has_changed():
                self.cluster.log("a node was lost or has returned, so all ranks save and restart")
                group.stop()
            self.cluster.pause(self.cluster.poll_seconds)

    def _sleep(self, seconds: float) -> None:
        """Sleep. Raise ``StopRequested`` as soon as the run is asked to stop."""
        end = time.monotonic() + seconds
        while self.control.requested_action is not StepAction.STOP:
            if (left := end - time.monotonic()) <= 0:
                return
            self.cluster.pause(min(left, self.cluster.poll_seconds))
        raise self.control.stop_exception(on_all_ranks=True)

    def _is_done(self, group: WorkerGroup) -> bool:
        """Return True if training is done. Return False if all ranks must restart, after a delay where necessary.

        Raises:
            UserError: Training has failed, and a restart cannot help, or no restart is left.
            StopRequested: The run was asked to stop, and its state is saved.
        """
        cause, code = group.find_root_cause()
        reason, is_stop_requested = classify_exit(code), self._had_failed is not None
        if reason is ExitKind.DONE:
            return True
        # A preempted rank has saved its state. After an earlier failure, the newest saved state is on disk.
        is_preempted = ExitKind.PREEMPTED in map(classify_exit, group.exit_codes.values())
        if is_stop_requested and (is_preempted or (self._had_failed and self.restarts_left)):
            raise self.control.stop_exception(on_all_ranks=True)
        is_failure = reason is ExitKind.FAILED
        if reason in (ExitKind.MISTAKE, ExitKind.INTERRUPTED):
            raise UserError(cause, remedy="see the message above", code=command_exit_code(code))
        if is_stop_requested or (is_failure and self.restarts_left == 0):
            why = "the run had been asked to stop" if is_stop_requested else "no restart is left"
            raise UserError(cause, why, RESUME_HINT, code=command_exit_code(code))
        self.restarts_left -= is_failure
        # There is no delay after the first short group. After further short groups, it is 1, 2, 4 … up to 60 s.
        self._short_groups = self._short_groups + 1 if time.monotonic() - group.started_at < SHORT_GROUP_SECONDS else 0
        delay = min(60.0, 2.0 ** min(self._short_groups - 2, 10)) if self._short_groups > 1 else 0.0
        after = f" after {delay:g} s" if delay else ""
        self.cluster.log(f"restarting from the newest saved state{after}; {self.restarts_left} restarts left")
        self._sleep(delay)
        return False
