"""The supervisor's view of the processes that train together."""

from __future__ import annotations

import math
import signal
import time
from dataclasses import dataclass, field

from crepe_dist.distributed import processes
from crepe_dist.distributed.hosts import Slot
from crepe_dist.distributed.messages import Message
from crepe_dist.distributed.store import Store
from crepe_dist.errors import ExitCode
from crepe_dist.supervising.link import Link
from crepe_dist.supervising.recovery import NOWHERE, Meaning, Position, in_words, meaning

FIRST_BEAT_SECONDS = 180.0  # from the start of a worker, which first imports and compiles kernels
BEAT_MARGIN_SECONDS = 5.0  # beyond the limit of the worker's own watchdog, which should act first
KILL_SECONDS = 5.0  # until the agent must have reported a kill


@dataclass
class Worker:
    """A worker process; all times are readings of ``time.monotonic``."""

    name: str
    slot: Slot
    link: Link
    pid: int = 0  # 0: not known yet
    began: int | None = None  # start time as in ``processes``
    started: float = field(default_factory=time.monotonic)
    beat: float | None = None
    limit: float = math.inf  # longest time without a beat, in seconds
    position: Position = NOWHERE
    reported_hang: bool = False  # its watchdog ends it
    ended: bool = False
    code: int | None = None
    killed: bool = False  # by the supervisor
    noted: bool = False  # a malformed message has been reported

    @property
    def rank(self) -> int:
        return self.slot.rank

    @property
    def hangs_at(self) -> float:
        """The time from which the worker counts as hung unless it sends another beat."""
        if self.beat is None:
            return self.started + FIRST_BEAT_SECONDS
        return self.beat + self.limit + BEAT_MARGIN_SECONDS

    @property
    def title(self) -> str:
        """The worker as messages name it."""
        return f"rank {self.rank} (pid {self.pid} on {self.slot.host})"

    def tell(self, message: Message) -> None:
        """Send a message to the worker's control channel."""
        self.link.send({"kind": "send", "worker": self.name, "message": message})

    def hear(self, message: Message, when: float) -> str:
        """Record a message of the worker; return a remark for the terminal, or an empty string."""
        try:
            kind = message["kind"]
            if kind == "beat":
                self._take_beat(message, when)
            elif kind == "hung":
                self.reported_hang = True
                return "reports no progress"
            else:
                raise ValueError(kind)
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            if not self.noted:  # once only: a faulty worker must not flood the terminal
                self.noted = True
                return f"sent a malformed message, which is ignored: {error!r}"
        return ""

    def _take_beat(self, message: Message, when: float) -> None:
        self.beat = when
        limit = float(message.get("limit") or math.inf)  # null: its watchdog is off
        if not limit > 0:
            raise ValueError(f"limit {limit}")
        self.limit = limit
        if message.get("epoch") is not None and message.get("step") is not None:  # null before training
            self.position = max(self.position, (int(message["epoch"]), int(message["step"])))


@dataclass
class Group:
    """The workers of one generation, that is, from one start or restart to the next.

    Attributes:
        requested: reason why all were asked to stop, ``signal`` or ``grow``; empty if they were not.
        had_failed: a worker had failed before all were asked to stop.
        kill_at: time at which the remaining workers are killed.
        hung: worker that hangs.
    """

    workers: list[Worker]
    store: Store
    requested: str = ""
    had_failed: bool = False
    kill_at: float = math.inf
    hung: Worker | None = None
    ends: list[Worker] = field(default_factory=list)
    seen_ends: int = 0  # length of ``ends`` at the last call of ``fresh_ends``

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
            worker.ended, worker.code = True, code
            self.ends.append(worker)

    def fresh_ends(self) -> list[Worker]:
        """Return the workers that ended since the last call."""
        fresh = self.ends[self.seen_ends :]
        self.seen_ends = len(self.ends)
        return fresh

    def cause(self) -> Worker | None:
        """Return the worker whose end explains the others'; ``None`` if all have finished."""
        if self.hung is not None:
            return self.hung
        failed = [worker for worker in self.ends if meaning(worker.code) is not Meaning.DONE]
        return next(
            (worker for worker in failed if worker.code != ExitCode.PEER_GONE and not worker.killed),
            next((worker for worker in failed if not worker.killed), failed[0] if failed else None),
        )

    def end_of(self, worker: Worker) -> str:
        """Describe a worker's end as the rest of a sentence."""
        hang = worker.killed or any(peer.reported_hang for peer in self.workers if peer is not worker)
        return in_words(worker.code, hang)

    def ask(self, requested: str, why: str, grace: float) -> None:
        """Ask all workers to save and stop within ``grace`` seconds."""
        self.requested, self.had_failed = requested, self.cause() is not None
        self.kill_at = min(self.kill_at, time.monotonic() + grace)
        for worker in self.living:
            worker.tell({"kind": "stop", "why": why})

    def overdue(self) -> Worker | None:
        """Return a worker that counts as hung, if there is one."""
        now = time.monotonic()
        return next((worker for worker in self.living if worker.hangs_at <= now), None)

    def kill(self) -> None:
        """Kill all living workers; on the second call, also the agents that have not reported the first."""
        for worker in self.living:
            if worker.killed:
                worker.link.kill()
            worker.link.send({"kind": "signal", "worker": worker.name, "signal": int(signal.SIGKILL)})
            worker.killed = True
        self.kill_at = time.monotonic() + KILL_SECONDS

    def lose(self, link: Link) -> None:
        """Record the loss of an agent; kill its workers if they run on this machine, else the kernel ends them."""
        for worker in self.living:
            if worker.link is link:
                if link.local and worker.began is not None:
                    processes.kill(worker.pid, worker.began)
                self.end(worker, None)
