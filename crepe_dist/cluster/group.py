"""The processes that train together at one time, as the supervisor knows them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from crepe_dist.cluster.hosts import Slot
from crepe_dist.cluster.link import Link
from crepe_dist.cluster.messages import Message
from crepe_dist.cluster.recovery import NOWHERE, Meaning, Position, meaning
from crepe_dist.cluster.rendezvous import Rendezvous
from crepe_dist.errors import ExitCode

FIRST_BEAT_SECONDS = 180.0  # from the start; imports, and the building of kernels, come before it
BEAT_MARGIN_SECONDS = 5.0  # beyond the limit of the worker's own watchdog, which goes first
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
    regrouped: bool = False
    adopted: bool = False  # its agent is gone; it may still run
    ended: bool = False
    code: int | None = None
    killed: bool = False  # by us

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

    def heard(self, message: Message, when: float) -> None:
        """A beat.

        Raises:
            TypeError, ValueError, KeyError: it is not one.
        """
        limit = float(message["limit"])
        position = int(message["epoch"]), int(message["step"])
        if not limit > 0:
            raise ValueError("limit")
        self.beat, self.limit, self.position = when, limit, max(self.position, position)

    def end(self, code: int | None) -> None:
        self.ended, self.code = True, code


@dataclass
class Group:
    """One generation.

    Attributes:
        asked: why all were asked to stop, or empty.
        kill_at: when what is left is killed.
        ends: workers in the order of their ends.
        forming_from: after a regrouping without restart, the position from which all must come farther.
    """

    number: int
    workers: list[Worker]
    rendezvous: Rendezvous
    asked: str = ""
    kill_at: float = math.inf
    hung: Worker | None = None
    ends: list[Worker] = field(default_factory=list)
    told: int = 0  # of ``ends``, how many were acted on
    forming_from: Position | None = None

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

    def cause(self) -> Worker | None:
        """The worker whose end explains the others'; ``None``: all have finished."""
        if self.hung is not None:
            return self.hung
        failed = [worker for worker in self.ends if meaning(worker.code) is not Meaning.DONE]
        return next(
            (worker for worker in failed if worker.code != ExitCode.PEER_GONE and not worker.killed),
            next((worker for worker in failed if not worker.killed), failed[0] if failed else None),
        )


def in_new_order(living: Sequence[Worker]) -> list[str]:
    """Names of hosts: that of the lowest rank first, so that rank 0 is one that knows the state."""
    return list(dict.fromkeys(worker.slot.host for worker in sorted(living, key=lambda worker: worker.rank)))
