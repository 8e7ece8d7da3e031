"""Watch over ranks that an engine has started, and restart all of them after a failure, from the newest saved state."""

from __future__ import annotations

import os
import secrets
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from crepe_dist.distributed.control import SUPERVISED_AS, Control, Wish
from crepe_dist.distributed.endpoint import SECONDS, USUAL_SECONDS
from crepe_dist.distributed.environment import allowed
from crepe_dist.distributed.launch import THREADS
from crepe_dist.errors import ExitCode, UserError
from crepe_dist.runs import checkpoint
from crepe_dist.runs.result import Result, read_result
from crepe_dist.runs.run_folder import RunFolder
from crepe_dist.settings.config import Config
from crepe_dist.supervising.console import Console
from crepe_dist.supervising.recovery import Meaning, in_words, meaning
from crepe_dist.version import __version__
from crepe_dist.wording import counted

POLL_SECONDS = 0.3
OTHERS_SECONDS = 60.0  # for the other ranks to end, once one has: Gloo notices a lost host after 30 s
ROOM_SECONDS = 5.0  # between looks for further nodes


def variables() -> dict[str, str]:
    """Return the variables that all ranks of a run get: those of this process that do not describe its machine."""
    return {**allowed(os.environ, local=False), SUPERVISED_AS: secrets.token_hex(8)}


def checkpoint_in(line: str) -> Path | None:
    """Return the checkpoint that a line of train's output names, as the line after the result does."""
    path = Path(line.strip())
    return path if path.parent.name == checkpoint.FOLDER and checkpoint.FILE.fullmatch(path.name) else None


def result_of(reported: Path | None) -> Result | None:
    """Read the result of the run that reports a checkpoint.

    Raises:
        UserError: this host does not see the run's folder.
    """
    if reported is None:
        return None
    result = read_result(RunFolder(reported.parent.parent))
    if result is None:
        raise UserError(
            f"the run is finished, but its folder {reported.parent.parent} is not visible on this host",
            remedy="choose a --run-dir that all nodes and this host share",
        )
    return result


class Lost(Exception):
    """The engine's worker, or its node, is gone."""


@dataclass(frozen=True)
class Place:
    """Place of a rank: its host, and the number of its threads."""

    host: str
    threads: int


class Engine(ABC):
    """An engine that runs objects of the class ``Rank``, one for each process."""

    name = ""

    @abstractmethod
    def nodes(self) -> Mapping[str, int]:
        """Map the id of each living node to the number of processes for which it has room when it is idle."""

    @abstractmethod
    def place(self, processes: int) -> list[Place]:
        """Make so many ranks, each in its own slot; return an empty list if they are not free."""

    @abstractmethod
    def call(self, rank: int, method: str, *arguments: Any) -> Any:
        """Call a method of a rank, and return its result, or a handle for ``answer``."""

    @abstractmethod
    def answer(self, handle: Any) -> Any:
        """Return the result of a call; ``None`` if it has not arrived.

        Raises:
            Lost: it will not arrive.
        """

    @abstractmethod
    def release(self) -> None:
        """Remove all ranks, and free their slots."""


@dataclass
class _Group:
    """The ranks of one start.

    Attributes:
        nodes: the nodes that were there.
        calls: pending call of ``Rank.poll`` of each rank that runs.
        ends: exit code of each rank that has ended, in their order; ``None`` if it was lost.
        asked: reason why all were asked to stop: ``stop`` or ``grow``.
    """

    places: list[Place]
    nodes: Mapping[str, int]
    calls: dict[int, Any] = field(default_factory=dict)
    ends: dict[int, int | None] = field(default_factory=dict)
    asked: str = ""
    kill_at: float = float("inf")


def cause_of(ends: Iterable[tuple[int, int | None]]) -> tuple[int, int | None]:
    """Return the rank whose end explains the others', and its exit code, from those of all in the order of their ends.

    A mistake comes first, since no restart mends it; the end of a rank that lost another one explains nothing.
    """
    failed = [(rank, code) for rank, code in ends if meaning(code) is not Meaning.DONE]
    own = [(rank, code) for rank, code in failed if code != ExitCode.PEER_GONE]
    mistakes = [(rank, code) for rank, code in own if meaning(code) is Meaning.MISTAKE]
    return next(iter(mistakes or own or failed), (0, ExitCode.DONE))


class Driver:
    """Driver of one training run.

    Args:
        processes: largest number of processes.
        max_restarts: restarts after failures; preemptions do not count.
    """

    def __init__(self, engine: Engine, config: Config, processes: int, max_restarts: int, control: Control) -> None:
        self._engine = engine
        self._flags = config.to_flags()
        self._processes = processes
        self._restarts_left = max_restarts
        self._control = control
        self._console = Console(name=engine.name)
        self._variables = variables()
        self._checkpoint: Path | None = None
        self._next_look = 0.0  # for further nodes

    def run(self) -> Result | None:
        """Train until the end; return the result, unless the command has none, as after a dry run.

        Raises:
            UserError: training failed.
            Stopped: it was asked to stop, and all is saved.
        """
        fewest = self._processes
        try:
            while True:
                group = self._start(fewest)
                while len(group.ends) < len(group.places):
                    self._watch(group)
                self._engine.release()
                if self._is_done(group):
                    return result_of(self._checkpoint)
                fewest = 1
        finally:
            self._engine.release()

    def _start(self, fewest: int) -> _Group:
        """Start as many ranks as there is room for."""
        seconds = float(os.environ.get(SECONDS) or USUAL_SECONDS)
        due, noted = time.monotonic() + seconds, False
        while True:
            nodes = self._engine.nodes()
            room = sum(nodes.values())
            for processes in range(self._processes, fewest - 1, -1):
                if processes <= room and (places := self._engine.place(processes)):
                    return self._fill(_Group(places, nodes))
                self._check_stop()
            want = counted(fewest, "process", "processes")
            if not noted:
                self._console.say(
                    f"waiting up to {seconds:g} s for {want}; the cluster has room for {room} if it is idle"
                )
                noted = True
            if time.monotonic() > due:
                raise UserError(
                    f"the {self._engine.name} cluster has no room for {want}",
                    f"all its nodes together have room for {room}",
                    f"give a lower --processes, or add nodes; {SECONDS} sets the time limit",
                )
            time.sleep(POLL_SECONDS)

    def _fill(self, group: _Group) -> _Group:
        """Start the processes of a group."""
        places, engine = group.places, self._engine
        hosts = ", ".join(f"{number} on {host}" for host, number in Counter(each.host for each in places).items())
        self._console.say(f"{counted(len(places), 'process', 'processes')} ({hosts})")
        try:
            port = self._wait(engine.call(0, "free_port"))
        except Lost:
            return replace(group, places=places[:1], ends={0: None})
        for rank, place in enumerate(places):
            own = {THREADS: str(place.threads), **self._variables}
            meeting = len(places), places[0].host, port
            engine.call(rank, "start", rank, *meeting, self._flags, os.getcwd(), own, __version__)
            group.calls[rank] = engine.call(rank, "poll")
        return group

    def _wait(self, handle: Any) -> Any:
        while (answer := self._engine.answer(handle)) is None:
            self._check_stop()
            time.sleep(POLL_SECONDS)
        return answer

    def _check_stop(self) -> None:
        if self._control.wish is Wish.STOP:
            raise self._control.stopped(on_all_ranks=True)

    def _watch(self, group: _Group) -> None:
        """Read what the ranks print, and act on their ends and on requests to stop."""
        for rank, call in list(group.calls.items()):
            try:
                answer = self._engine.answer(call)
            except Lost:
                self._end(group, rank, None)
                continue
            if answer is not None:
                self._show(rank, answer[0])
                if answer[1] is None:
                    group.calls[rank] = self._engine.call(rank, "poll")
                else:
                    self._end(group, rank, answer[1])
        now = time.monotonic()
        if self._control.wish is Wish.STOP and group.asked != "stop":
            self._ask(group, "stop")
        if not group.ends and not group.asked and len(group.places) < self._processes and now > self._next_look:
            self._next_look = now + ROOM_SECONDS
            if self._engine.nodes().keys() - group.nodes.keys():
                self._console.say("there is another node: asking all to save and stop")
                self._ask(group, "grow")
        if now > group.kill_at:
            for rank in list(group.calls):
                self._end(group, rank, None)
        time.sleep(POLL_SECONDS)

    def _show(self, rank: int, lines: list[str]) -> None:
        for line in lines:
            self._console.show(rank, "stdout", line)
            if rank == 0 and (path := checkpoint_in(line)):
                self._checkpoint = path

    def _ask(self, group: _Group, why: str) -> None:
        """Ask all ranks to save and stop."""
        group.asked = why
        group.kill_at = min(group.kill_at, time.monotonic() + OTHERS_SECONDS)
        for rank in group.calls:
            self._engine.call(rank, "stop")

    def _end(self, group: _Group, rank: int, code: int | None) -> None:
        """Record the end of a rank, and limit the time of the others after a failure."""
        del group.calls[rank]
        group.ends[rank] = code
        if meaning(code) is not Meaning.DONE:
            group.kill_at = min(group.kill_at, time.monotonic() + OTHERS_SECONDS)
            self._console.say(f"rank {rank} on {group.places[rank].host} {in_words(code, hang=False)}")

    def _is_done(self, group: _Group) -> bool:
        """Return whether the run is done; else all restart."""
        rank, code = cause_of(group.ends.items())
        reason = meaning(code)
        if reason is Meaning.DONE:
            return True
        if group.asked == "stop" and ExitCode.STOPPED in group.ends.values():
            raise self._control.stopped(on_all_ranks=True)  # one such rank proves that the state was saved
        title = f"rank {rank} on {group.places[rank].host} {in_words(code, hang=False)}"
        if reason in (Meaning.MISTAKE, Meaning.INTERRUPTED):
            is_interrupted = reason is Meaning.INTERRUPTED
            code_of_all = ExitCode.INTERRUPTED if is_interrupted else ExitCode.ERROR
            raise UserError(title, remedy="see its message above", code=code_of_all)
        if group.asked == "stop":
            raise UserError(title, "it had been asked to stop", "run the same command again", code=ExitCode.FAILURE)
        if reason is not Meaning.PREEMPTED and group.asked != "grow":
            if self._restarts_left == 0:
                raise UserError(title, "no restart is left", "run the same command again", code=ExitCode.FAILURE)
            self._restarts_left -= 1
        self._console.say(f"restarting from the newest saved state; {self._restarts_left} restarts left")
        return False
