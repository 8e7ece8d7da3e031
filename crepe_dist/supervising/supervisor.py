"""Starts a group of workers, watches it, and starts it again from its newest checkpoint when it fails.

One thread decides: all that happens (messages of agents, signals) comes to it through one inbox. Handling an event only
notes what is so; what follows from it is decided in ``_react``.
"""

from __future__ import annotations

import math
import os
import secrets
import signal
import time
from collections.abc import Mapping, Sequence

from crepe_dist.distributed.control import SUPERVISED_AS
from crepe_dist.distributed.environment import allowed, group_variables
from crepe_dist.distributed.horovod_internals import rendezvous_scopes
from crepe_dist.distributed.hosts import Slot, allocate
from crepe_dist.distributed.messages import Message
from crepe_dist.distributed.store import Rendezvous
from crepe_dist.errors import ExitCode, UserError
from crepe_dist.supervising.console import Console
from crepe_dist.supervising.fleet import Fleet
from crepe_dist.supervising.group import Group, Worker
from crepe_dist.supervising.inbox import Inbox
from crepe_dist.supervising.link import Link
from crepe_dist.supervising.recovery import NOWHERE, BackOff, Meaning, Restarts, after, in_words, meaning, own_code
from crepe_dist.supervising.ssh_errors import mistake
from crepe_dist.supervising.supervisor_options import Options

OWN_END_SECONDS = 5.0  # for the others to end by themselves once one has failed
DUMP_SECONDS = 2.0  # for workers to write their stacks
CATCH_UP_SECONDS = 0.5  # for beats that came while this process itself was stopped (Ctrl-Z)
ADOPTED_SECONDS = 0.05  # between looks at processes whose agent is gone


class Supervisor:
    """One training, from its start to its end.

    Args:
        command: of a worker; the same for all.
        options: see there.
        environment: of the supervisor; the workers get what is allowed.
        cwd: folder of the workers.
        console: where their lines and its own are shown.
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
        self._inbox = Inbox(self._console)
        deliver = self._inbox.deliver
        self._fleet = Fleet(options.hosts, options.remote, self._environment, self._cwd, options.grace, deliver)
        self._group: Group | None = None
        self._id = secrets.token_hex(8)
        self._generation = -1
        self._restarts = Restarts(options.max_restarts)
        self._preemptions = BackOff()
        self._reached = NOWHERE

    def signal(self, number: int) -> None:
        """To be called by the handlers of SIGTERM, SIGINT and SIGHUP."""
        self._inbox.signal(number)

    def run(self) -> int:
        """Until the training has ended; the exit code.

        Raises:
            UserError: agent or workers cannot be started at all.
        """
        try:
            while True:
                if not self._form():
                    return int(ExitCode.INTERRUPTED if self._inbox.signals[0] == signal.SIGINT else ExitCode.STOPPED)
                self._watch()
                code = self._decide()
                if code is not None:
                    return code
        finally:
            self._close()

    # Starting.

    def _form(self) -> bool:
        """Starts a generation as soon as enough hosts answer; false if a signal came first."""
        told: dict[str, str] = {}
        while not self._inbox.signals:
            self._fleet.tick(time.monotonic())
            # Those that are being tried are waited for, so that a start does not leave out a host that is there.
            if not self._fleet.trying():
                slots = allocate(self._fleet.ready(), self._options.processes)
                missing = self._fleet.missing()
                enough = len(slots) >= self._options.min_processes
                if missing and missing.keys() != told.keys():
                    told = missing
                    names = ", ".join(f"{name} ({why})" for name, why in missing.items())
                    self._say(f"no answer from {names}; {'going on without' if enough else 'waiting'}")
                if enough:
                    self._start(slots)
                    return True
            self._pump(self._fleet.next_time())
        return False

    def _start(self, slots: Sequence[Slot]) -> None:
        """Start the next generation, one worker in each of these places."""
        old = self._group
        self._generation += 1
        rendezvous = Rendezvous(self._options.address, rendezvous_scopes(slots))
        workers = [Worker(f"g{self._generation}-r{slot.rank}", slot, self._fleet.link(slot.host)) for slot in slots]
        self._console.ranks = {worker.name: worker.rank for worker in workers}
        self._group = Group(self._generation, workers, rendezvous)
        places = ", ".join(f"{slot.local_size} on {slot.host}" for slot in slots if slot.local_rank == 0)
        self._say(f"generation {self._generation}: {len(slots)} process{'es'[: 2 * (len(slots) > 1)]} ({places})")
        place = (rendezvous.address, rendezvous.port)
        for worker in workers:
            base = allowed(self._environment, worker.link.local)
            variables = group_variables(worker.slot, place, self._options.interface, self._generation)
            env = {"PYTHONUNBUFFERED": "1", **base, **variables, SUPERVISED_AS: self._id}
            message = {"kind": "start", "worker": worker.name, "argv": self._command, "env": env, "cwd": self._cwd}
            try:
                worker.link.send(message)
            except ValueError as error:
                remedy = "put the flags into a file (--config), and unset variables that are not needed"
                raise UserError("flags and environment of a worker are too long", str(error), remedy) from error
        if old is not None:
            old.rendezvous.close()

    # Events.

    def _pump(self, until: float) -> None:
        """Wait for an event until then; note it and all others that are there."""
        for link, message, when in self._inbox.take(until):
            try:
                self._note(link, message, when)
            except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
                self._say(f"{link.host}: ignored a message that is none ({error!r})")

    def _note(self, link: Link, message: Message | str, when: float) -> None:
        if isinstance(message, str):
            self._say(f"{link.host}: {message}")
            return
        kind = message["kind"]
        if kind == "hello":
            self._fleet.answered(link)
        elif kind == "note":
            self._say(f"{link.host}: {message.get('text')}")
        elif kind == "lost":
            self._note_lost(link, int(message["code"]), str(message.get("why")))
        elif self._group is not None:
            worker = self._group.find(message.get("worker"))
            if worker is None or worker.link is not link:
                return
            if kind == "started":
                worker.pid, worker.began = int(message["pid"]), int(message["began"])
            elif kind == "exit":
                self._group.end(worker, int(message["code"]))
            elif kind == "from":
                said = worker.hear(message["message"], when)
                if said:
                    self._say(f"{worker.title} {said}")

    def _note_lost(self, link: Link, code: int, why: str) -> None:
        if not self._fleet.lost(link, why, time.monotonic()):
            error = None if link.local or self._group else mistake(link.host, code, why)
            if error is not None:  # later it is the same as a host that is gone: what trains goes on
                raise error
            return
        self._say(f"the agent on {link.host} is gone: {why}")
        if self._group is None:
            return
        for worker in self._group.living:
            if worker.link is link and link.local and worker.pid:
                worker.adopted = True
                self._group.kill_at = min(self._group.kill_at, time.monotonic() + self._options.grace)
            elif worker.link is link:
                self._group.end(worker, None)

    # Watching.

    def _watch(self) -> None:
        assert self._group is not None
        while self._group.living:
            self._pump(self._next_time(self._group))
            self._react()
        self._tell_ends(self._group)

    def _next_time(self, group: Group) -> float:
        adopted = time.monotonic() + ADOPTED_SECONDS
        workers = [adopted if worker.adopted else worker.hangs_at for worker in group.living]
        return min(group.kill_at, self._fleet.next_time(), *workers)

    def _react(self) -> None:
        group = self._group
        assert group is not None
        now = time.monotonic()
        self._fleet.tick(now)
        group.look_at_adopted()
        if self._inbox.signals and group.asked != "signal":
            why = signal.Signals(self._inbox.signals[0]).name
            self._say(f"{why}: asking all to save and stop; killing after {self._options.grace:g} s")
            group.ask("signal", why, self._options.grace)
        if signal.SIGINT in self._inbox.signals[1:] and not any(worker.killed for worker in group.living):
            group.kill_at = now
        fresh = self._tell_ends(group)
        if fresh and group.living:
            self._limit_the_rest(group, fresh)
        if not group.asked and group.kill_at == math.inf:
            self._grow(group)
        if group.kill_at == math.inf and group.late() is not None:
            self._spend(CATCH_UP_SECONDS, group)
            late = group.late()
            if late is not None:
                self._dump(group, late)
        if time.monotonic() >= group.kill_at:
            group.kill()

    def _limit_the_rest(self, group: Group, fresh: Sequence[Worker]) -> None:
        """Set the time that the others have to end by themselves, now that some have ended."""
        failed = [worker for worker in fresh if meaning(worker.code) is not Meaning.DONE]
        if not failed:
            return
        stopped = meaning(failed[0].code) is Meaning.PREEMPTED
        if group.kill_at == math.inf:
            group.kill_at = time.monotonic() + (self._options.grace if stopped else OWN_END_SECONDS)
        elif group.asked and any(
            meaning(worker.code) is not Meaning.PREEMPTED and worker.code != ExitCode.PEER_GONE for worker in failed
        ):
            group.kill_at = min(group.kill_at, time.monotonic() + OWN_END_SECONDS)

    def _grow(self, group: Group) -> None:
        """Ask all to save and stop once a host that came back makes room for a larger group."""
        if len(allocate(self._fleet.ready(), self._options.processes)) <= len(group.workers):
            return
        used = {worker.slot.host for worker in group.workers}
        names = ", ".join(host.name for host in self._fleet.ready() if host.name not in used) or "a host"
        self._say(f"{names} is back: asking all to save and stop")
        group.ask("grow", f"host {names} is back", self._options.grace)

    def _dump(self, group: Group, late: Worker) -> None:
        group.hung = late
        silent = time.monotonic() - (late.started if late.beat is None else late.beat)
        self._say(f"{late.title} was not heard of for {silent:.0f} s; all write their stacks and are killed")
        for worker in group.living:
            worker.link.send({"kind": "dump", "worker": worker.name})
        self._spend(DUMP_SECONDS, group)
        group.kill_at = time.monotonic()

    def _spend(self, seconds: float, group: Group) -> None:
        """Hears what comes in that time, while any live."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and group.living:
            self._pump(until)

    # Afterwards.

    def _decide(self) -> int | None:
        """The exit code; ``None``: start again."""
        group = self._group
        assert group is not None
        self._reached = max(self._reached, group.position)
        cause = group.cause()
        code = None if cause is None else int(ExitCode.HUNG) if cause is group.hung else cause.code
        sense = Meaning.DONE if cause is None else meaning(code)
        if self._inbox.signals:
            if self._inbox.signals[0] == signal.SIGINT:
                return int(ExitCode.INTERRUPTED)
            if any(worker.code == ExitCode.STOPPED for worker in group.ends):
                return int(ExitCode.STOPPED)  # one that says so has seen the state saved; another may have been killed
            return 0 if cause is None else own_code(code)
        if cause is None:
            self._say("finished")
            return 0
        if sense in (Meaning.MISTAKE, Meaning.INTERRUPTED):
            return own_code(code)
        if group.asked == "grow" and (sense is Meaning.PREEMPTED or cause.killed):
            return None
        if sense is Meaning.PREEMPTED:
            delay = self._preemptions.next(self._reached)
            self._say(f"{cause.title} was preempted: starting again{after(delay)}; {self._left()}")
        else:
            taken = self._restarts.take(self._reached)
            if taken is None:
                self._say(f"giving up: {cause.title} {in_words(code, cause.killed)}, and no restart is left")
                return own_code(code)
            delay = taken
            self._say(f"starting again from the newest checkpoint{after(delay)}; {self._left()}")
        again = time.monotonic() + delay
        while time.monotonic() < again and not self._inbox.signals:
            self._wait(again)
        return None

    def _wait(self, until: float) -> None:
        """For an event, while the fleet is looked after."""
        self._fleet.tick(time.monotonic())
        self._pump(min(until, self._fleet.next_time()))

    def _close(self) -> None:
        group = self._group
        if group is not None:
            if group.living:
                group.kill()
            group.rendezvous.close()
        self._fleet.close()
        if group is not None:
            group.kill_by_pid()

    # Words.

    def _tell_ends(self, group: Group) -> list[Worker]:
        """Says what ended since the last call, and returns it."""
        fresh = group.fresh_ends()
        for worker in fresh:
            if worker.code != 0 and not worker.killed:
                by_a_peer = any(other.hangs_since is not None for other in group.workers if other is not worker)
                self._say(f"{worker.title} {in_words(worker.code, by_a_peer)}")
        return fresh

    def _left(self) -> str:
        return f"{self._restarts.left} of {self._options.max_restarts} restarts left"
