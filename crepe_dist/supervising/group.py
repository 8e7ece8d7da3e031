"""The processes that train together at one time, as the supervisor knows them."""

from __future__ import annotations

import math
import signal
import time
from dataclasses import dataclass, field

from crepe_dist.distributed import processes
from crepe_dist.distributed.hosts import Slot
from crepe_dist.distributed.messages import Message
from crepe_dist.distributed.store import Rendezvous
from crepe_dist.errors import ExitCode
from crepe_dist.supervising.link import Link
from crepe_dist.supervising.recovery import NOWHERE, Meaning, Position, meaning

FIRST_BEAT_SECONDS = 180.0  # from the start; imports, and the building of kernels, come before it
BEAT_MARGIN_SECONDS = 5.0  # beyond the limit of the worker's own watchdog, which goes first
KILL_SECONDS = 5.0  # for a kill to be reported
OWN_END_SECONDS = 10.0  # for a worker that said it hangs to end by itself


@dataclass
class Worker:
    """One process; times are those of ``time.monotonic``."""

    name: str
    slot: Slot
    link: Link
    pid: int = 0  # 0: not known yet
    began: int | None = None  # see ``processes``
    started: float = field(default_factory=time.monotonic)
    beat: float | None = None
    limit: float = math.inf  # seconds without a beat
    position: Position = NOWHERE
    hangs_since: float | None = None
    adopted: bool = False  # its agent is gone; it may still run
    ended: bool = False
    code: int | None = None
    killed: bool = False  # by us
    noted: bool = False  # that it sends what is no message

    @property
    def rank(self) -> int:
        return self.slot.rank

    @property
    def hangs_at(self) -> float:
        """When to take it for hung if nothing more is heard of it."""
        if self.adopted:
            return math.inf
        own = math.inf if self.hangs_since is None else self.hangs_since + OWN_END_SECONDS
        if self.beat is None:
            return min(own, self.started + FIRST_BEAT_SECONDS)
        return min(own, self.beat + self.limit + BEAT_MARGIN_SECONDS)

    @property
    def title(self) -> str:
        """For a person to read."""
        return f"rank {self.rank} (pid {self.pid} on {self.slot.host})"

    def tell(self, message: Message) -> None:
        """Sends it to the worker's control channel."""
        self.link.send({"kind": "send", "worker": self.name, "message": message})

    def hear(self, message: Message, when: float) -> str:
        """Takes note of what it sent; what there is to say about it, if anything."""
        try:
            kind = message["kind"]
            if kind == "beat":
                self._take_beat(message, when)
            elif kind == "hung":
                self.hangs_since = self.hangs_since or when
                return "sees no progress"
            else:
                raise ValueError(kind)
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            if not self.noted:  # once, or a worker out of its mind would flood the terminal
                self.noted = True
                return f"sent what is no message and ignored: {error!r}"
        return ""

    def _take_beat(self, message: Message, when: float) -> None:
        self.beat = when
        limit = float(message.get("limit") or math.inf)  # none: its watchdog is off
        if not limit > 0:
            raise ValueError(f"limit {limit}")
        self.limit = limit
        if message.get("epoch") is not None and message.get("step") is not None:  # before training it has neither
            self.position = max(self.position, (int(message["epoch"]), int(message["step"])))

    def end(self, code: int | None) -> None:
        self.ended, self.code = True, code


@dataclass
class Group:
    """One generation.

    Attributes:
        asked: why all were asked to stop, or empty.
        kill_at: when what is left is killed.
        ends: workers in the order of their ends.
    """

    number: int
    workers: list[Worker]
    rendezvous: Rendezvous
    asked: str = ""
    kill_at: float = math.inf
    hung: Worker | None = None
    ends: list[Worker] = field(default_factory=list)
    told: int = 0  # of ``ends``, how many were acted on

    @property
    def living(self) -> list[Worker]:
        return [worker for worker in self.workers if not worker.ended]

    @property
    def position(self) -> Position:
        return max((worker.position for worker in self.workers), default=NOWHERE)

    def find(self, name: object) -> Worker | None:
        return next((worker for worker in self.workers if worker.name == name), None)

    def end(self, worker: Worker, code: int | None) -> None:
        if not worker.ended:
            worker.end(code)
            self.ends.append(worker)

    def fresh_ends(self) -> list[Worker]:
        """Those that ended since the last call."""
        fresh = self.ends[self.told :]
        self.told = len(self.ends)
        return fresh

    def cause(self) -> Worker | None:
        """The worker whose end explains the others'; ``None``: all have finished."""
        if self.hung is not None:
            return self.hung
        failed = [worker for worker in self.ends if meaning(worker.code) is not Meaning.DONE]
        return next(
            (worker for worker in failed if worker.code != ExitCode.PEER_GONE and not worker.killed),
            next((worker for worker in failed if not worker.killed), failed[0] if failed else None),
        )

    def ask(self, asked: str, why: str, grace: float) -> None:
        """Asks all to save and stop within ``grace`` seconds."""
        self.asked = asked
        self.kill_at = min(self.kill_at, time.monotonic() + grace)
        for worker in self.living:
            worker.tell({"kind": "stop", "why": why})

    def late(self) -> Worker | None:
        """One that is taken for hung."""
        now = time.monotonic()
        return next((worker for worker in self.living if worker.hangs_at <= now), None)

    def kill(self) -> None:
        """Kills all that live; what was killed before and has not been reported, by other means."""
        self.kill_by_pid()
        for worker in self.living:
            if worker.killed and not worker.adopted:
                worker.link.kill()  # an agent that does not answer; its end is noted, and the worker's with it
            worker.link.send({"kind": "signal", "worker": worker.name, "signal": int(signal.SIGKILL)})
            worker.killed = True
        self.kill_at = time.monotonic() + KILL_SECONDS

    def kill_by_pid(self) -> None:
        """Kills those of this machine whose agent is gone or does not answer."""
        for worker in self.living:
            if worker.link.local and worker.began is not None and (worker.killed or worker.adopted):
                processes.kill(worker.pid, worker.began)

    def look_at_adopted(self) -> None:
        """Notes the ends that no agent reports."""
        for worker in self.living:
            if worker.adopted and (worker.began is None or not processes.runs(worker.pid, worker.began)):
                self.end(worker, None)
