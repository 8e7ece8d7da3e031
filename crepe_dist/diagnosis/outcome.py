"""One line of a diagnosis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Check:
    """What was looked at or tried, and what came of it.

    Attributes:
        name: of it, in a word or two.
        shows: what is there.
        level: ok; note, where training works but something is less than it could be; problem, where it does not.
        what, why, remedy: as in ``crepe_dist.errors.UserError``, of a note or problem.
    """

    name: str
    shows: str
    level: Level = "ok"
    what: str = ""
    why: str = ""
    remedy: str = ""
