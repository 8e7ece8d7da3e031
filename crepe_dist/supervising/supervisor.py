"""The supervisor: starts a group of workers, watches it, and restarts it from the newest checkpoint when it fails.

One thread makes all decisions. Messages of agents and signals reach it through one queue. ``_note`` only records an
event; ``_react`` decides on its consequences.
"""

from __future__ import annotations

import math
import os
import queue
import secrets
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from crepe_dist import invocation
from crepe_dist.distributed.control import SUPERVISED_AS
from crepe_dist.distributed.environment import allowed, group_variables
from crepe_dist.distributed.hosts import LOOPBACK, Host, Slot, allocate
from crepe_dist.distributed.messages import Message
from crepe_dist.distributed.stacks import REQUEST
from crepe_dist.distributed.store import Store
from crepe_dist.errors import ExitCode, UserError
from crepe_dist.supervising.console import Console
from crepe_dist.supervising.fleet import REMOTE, Fleet, mistake
from crepe_dist.supervising.group import Group, Worker
from crepe_dist.supervising.link import Link
from crepe_dist.supervising.recovery import NOWHERE, BackOff, Meaning, meaning, own_code

OWN_END_SECONDS = 5.0  # for the other workers to end by themselves after one has failed
DUMP_SECONDS = 2.0  # for workers to write their stacks
CATCH_UP_SECONDS = 0.5  # for beats that arrived while this process was suspended (Ctrl-Z)


@dataclass(frozen=True)
class Options:
    """Options of the supervisor.

    Args:
        processes: largest number of processes.
        hosts: hosts in the order of ranks.
        min_processes: smallest number of processes; with fewer slots, the supervisor waits for hosts.
        max_restarts: restarts after failures; preemptions do not count.
        grace: seconds between asking a worker to stop and killing it.
        interface: network interface of the rendezvous and of Gloo.
        address: IPv4 address of the interface.
        remote: command that reaches another host; the host's name and one shell command are appended.
    """

    processes: int = 1
    hosts: tuple[Host, ...] = (Host("localhost", 1),)
    min_processes: int = 1
    max_restarts: int = 10
    grace: float = 30.0
    interface: str = LOOPBACK
    address: str = "127.0.0.1"
    remote: tuple[str, ...] = REMOTE


class Supervisor:
    """Supervisor of one training run.

    Args:
        command: command line of every worker.
        environment: environment of the supervisor; workers get the allowed part of it.
        cwd: working directory of the workers; default: the current one.
    """

    def __init__(
        self,
        command: Sequence[str],
        options: Options,
        environment: Mapping[str, str] = os.environ,
        cwd: str | None = None,
        console: Console | None = None,
    ) -> None:
        self._command = list(command)
        self._options = options
        self._environment = dict(environment)
        self._cwd = cwd or os.getcwd()
        self._console = console or Console()
        self._say = self._console.say
        # Numbers of signals, and messages with their sender and time of arrival.
        # A SimpleQueue: a signal handler may put into it while it interrupts a get.
        self._events: queue.SimpleQueue[int | tuple[Link, Message | str, float]] = queue.SimpleQueue()
        self._signals: list[int] = []
        self._fleet = Fleet(options.hosts, options.remote, self._environment, self._cwd, options.grace, self._deliver)
        self._group: Group | None = None
        self._id = secrets.token_hex(8)
        self._generation = -1
        self._restarts_left = options.max_restarts
        self._failures, self._preemptions = BackOff(), BackOff()
        self._reached = NOWHERE

    def signal(self, number: int) -> None:
        """Receive a signal; called by the handlers of SIGTERM, SIGINT and SIGHUP."""
        self._events.put(number)

    def run(self) -> int:
        """Train until the end; return the exit code.

        Raises:
            UserError: the agent or the workers cannot be started.
        """
        try:
            while True:
                if not self._form():
                    return int(ExitCode.INTERRUPTED if self._signals[0] == signal.SIGINT else ExitCode.STOPPED)
                self._watch()
                code = self._decide()
                if code is not None:
                    return code
        finally:
            self._close()

    # Starting.

    def _form(self) -> bool:
        """Start a generation as soon as enough hosts answer; return false if a signal arrives first."""
        reported: dict[str, str] = {}
        while not self._signals:
            self._fleet.tick(time.monotonic())
            # Wait for hosts that are being tried for the first time: a start must not leave out a host that is up.
            if not self._fleet.trying():
                slots = allocate(self._fleet.ready(), self._options.processes)
                missing = self._fleet.missing()
                enough = len(slots) >= self._options.min_processes
                if missing and missing.keys() != reported.keys():
                    reported = missing
                    names = ", ".join(f"{name} ({why})" for name, why in missing.items())
                    self._say(f"no answer from {names}; {'continuing without' if enough else 'waiting'}")
                if enough:
                    self._start(slots)
                    return True
            self._pump(self._fleet.next_time())
        return False

    def _start(self, slots: Sequence[Slot]) -> None:
        """Start the next generation, one worker per slot."""
        old = self._group
        self._generation += 1
        store = Store(self._options.address)
        workers = [Worker(f"g{self._generation}-r{slot.rank}", slot, self._fleet.link(slot.host)) for slot in slots]
        self._group = Group(workers, store)
        hosts = ", ".join(f"{slot.local_size} on {slot.host}" for slot in slots if slot.local_rank == 0)
        self._say(f"generation {self._generation}: {len(slots)} process{'es'[: 2 * (len(slots) > 1)]} ({hosts})")
        for worker in workers:
            base = allowed(self._environment, worker.link.local)
            variables = group_variables(worker.slot, store.endpoint, self._options.interface, base, self._generation)
            env = {"PYTHONUNBUFFERED": "1", **base, **variables, SUPERVISED_AS: self._id, **invocation.passed_on()}
            message = {"kind": "start", "worker": worker.name, "argv": self._command, "env": env, "cwd": self._cwd}
            try:
                worker.link.send(message)
            except ValueError as error:
                remedy = "put the flags into a file (--config), and unset variables that training does not need"
                raise UserError("the flags and environment of a worker are too long", str(error), remedy) from error
        if old is not None:
            old.store.close()

    # Events.

    def _deliver(self, link: Link, message: Message | str) -> None:
        """Queue a message; called from the links' threads.

        Workers' output is printed at once, in the link's thread: a blocked terminal must not block the supervisor.
        """
        if isinstance(message, dict) and message["kind"] == "output":
            rank = int(message["worker"].partition("-r")[2])
            self._console.show(rank, message["stream"], message["line"])
        else:
            self._events.put((link, message, time.monotonic()))

    def _pump(self, until: float) -> None:
        """Wait for an event, at most until the time ``until``; record all that have arrived."""
        wait = max(0.0, min(until - time.monotonic(), 3600.0))
        with suppress(queue.Empty):
            event = self._events.get(timeout=wait)
            while True:
                if isinstance(event, int):
                    self._signals.append(event)
                else:
                    self._note(*event)
                event = self._events.get_nowait()

    def _note(self, link: Link, message: Message | str, when: float) -> None:
        if isinstance(message, str):
            self._say(f"{link.host}: {message}")
            return
        kind = message["kind"]
        if kind == "hello":
            self._fleet.answered(link)
        elif kind == "note":
            self._say(f"{link.host}: {message['text']}")
        elif kind == "lost":
            self._note_lost(link, message["code"], message["why"])
        elif self._group is not None:
            worker = self._group.find(message["worker"])
            if worker is None:  # of an earlier generation
                return
            if kind == "started":
                worker.pid, worker.began = message["pid"], message["began"]
            elif kind == "exit":
                self._group.end(worker, message["code"])
            elif kind == "from":
                remark = worker.hear(message["message"], when)
                if remark:
                    self._say(f"{worker.title} {remark}")

    def _note_lost(self, link: Link, code: int, why: str) -> None:
        if self._fleet.lost(link, why, time.monotonic()):
            self._say(f"the agent on {link.host} is gone: {why}")
            if self._group is not None:
                self._group.lose(link)
        # After the first start, training continues without the host.
        elif not link.local and self._group is None and (error := mistake(link.host, code, why)):
            raise error

    # Watching.

    def _watch(self) -> None:
        assert self._group is not None
        while self._group.living:
            self._pump(self._next_time(self._group))
            self._react()
        self._report_ends(self._group)

    def _next_time(self, group: Group) -> float:
        return min(group.kill_at, self._fleet.next_time(), *(worker.hangs_at for worker in group.living))

    def _react(self) -> None:
        group = self._group
        assert group is not None
        now = time.monotonic()
        self._fleet.tick(now)
        if self._signals and group.requested != "signal":
            why = signal.Signals(self._signals[0]).name
            self._say(f"{why}: asking all to save and stop; killing after {self._options.grace:g} s")
            group.ask("signal", why, self._options.grace)
        if signal.SIGINT in self._signals[1:] and not any(worker.killed for worker in group.living):
            group.kill_at = now
        fresh = self._report_ends(group)
        if fresh and group.living:
            self._limit_the_rest(group, fresh)
        if not group.requested and group.kill_at == math.inf:
            self._grow(group)
        if group.kill_at == math.inf and group.overdue() is not None:
            self._spend(CATCH_UP_SECONDS, group)
            hung = group.overdue()
            if hung is not None:
                self._dump(group, hung)
        if time.monotonic() >= group.kill_at:
            group.kill()

    def _limit_the_rest(self, group: Group, fresh: Sequence[Worker]) -> None:
        """Limit the time of the remaining workers to end by themselves after others have failed."""
        failed = [worker for worker in fresh if meaning(worker.code) is not Meaning.DONE]
        if not failed:
            return
        stopped = meaning(failed[0].code) is Meaning.PREEMPTED
        if group.kill_at == math.inf:
            group.kill_at = time.monotonic() + (self._options.grace if stopped else OWN_END_SECONDS)
        elif group.requested and any(
            meaning(worker.code) is not Meaning.PREEMPTED and worker.code != ExitCode.PEER_GONE for worker in failed
        ):
            group.kill_at = min(group.kill_at, time.monotonic() + OWN_END_SECONDS)

    def _grow(self, group: Group) -> None:
        """Ask all workers to save and stop if a host is back and the group can grow."""
        if len(allocate(self._fleet.ready(), self._options.processes)) <= len(group.workers):
            return
        used = {worker.slot.host for worker in group.workers}
        names = ", ".join(host.name for host in self._fleet.ready() if host.name not in used) or "a host"
        self._say(f"{names} is back: asking all to save and stop")
        group.ask("grow", f"host {names} is back", self._options.grace)

    def _dump(self, group: Group, hung: Worker) -> None:
        """Let all workers write their stacks, then have them killed."""
        group.hung = hung
        silent = time.monotonic() - (hung.started if hung.beat is None else hung.beat)
        self._say(f"{hung.title} has sent nothing for {silent:.0f} s; all processes write their stacks and are killed")
        for worker in group.living:
            for number in (REQUEST, signal.SIGCONT):  # a suspended process writes its stacks, too
                worker.link.send({"kind": "signal", "worker": worker.name, "signal": int(number)})
        self._spend(DUMP_SECONDS, group)
        group.kill_at = time.monotonic()

    def _spend(self, seconds: float, group: Group) -> None:
        """Record events for that long, or until all workers have ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and group.living:
            self._pump(until)

    # Afterwards.

    def _decide(self) -> int | None:
        """Return the exit code, or ``None`` to restart; wait for the restart's delay."""
        group = self._group
        assert group is not None
        self._reached = max(self._reached, group.position)
        cause = group.cause()
        code = None if cause is None else int(ExitCode.HUNG) if cause is group.hung else cause.code
        reason = Meaning.DONE if cause is None else meaning(code)
        if self._signals:
            if self._signals[0] == signal.SIGINT:
                return int(ExitCode.INTERRUPTED)
            if any(worker.code == ExitCode.STOPPED for worker in group.ends):
                return int(ExitCode.STOPPED)  # one such worker proves that the state was saved
            if group.had_failed and reason is Meaning.FAILED and self._restarts_left:
                return int(ExitCode.STOPPED)  # the signal came before the restart; the newest saved state is there
            return 0 if cause is None else own_code(code)
        if cause is None:
            self._say("finished")
            return 0
        if reason in (Meaning.MISTAKE, Meaning.INTERRUPTED):
            return own_code(code)
        if group.requested == "grow" and (reason is Meaning.PREEMPTED or cause.killed):
            return None
        if reason is Meaning.PREEMPTED:
            delay = self._preemptions.next(self._reached)
            what = f"{cause.title} was preempted: restarting"
        elif self._restarts_left == 0:
            self._say(f"giving up: {cause.title} {group.end_of(cause)}, and no restart is left")
            return own_code(code)
        else:
            self._restarts_left -= 1
            delay = self._failures.next(self._reached)
            what = "restarting from the newest checkpoint"
        after = f" after {delay:g} s" if delay else ""
        self._say(f"{what}{after}; {self._restarts_left} of {self._options.max_restarts} restarts left")
        restart_at = time.monotonic() + delay
        while time.monotonic() < restart_at and not self._signals:
            self._fleet.tick(time.monotonic())
            self._pump(min(restart_at, self._fleet.next_time()))
        return None

    def _close(self) -> None:
        group = self._group
        if group is not None:
            if group.living:
                group.kill()
            group.store.close()
        self._fleet.close()

    def _report_ends(self, group: Group) -> list[Worker]:
        """Print and return the workers that ended since the last call."""
        ends = group.fresh_ends()
        for worker in ends:
            if worker.code != 0 and not worker.killed:
                self._say(f"{worker.title} {group.end_of(worker)}")
        return ends
