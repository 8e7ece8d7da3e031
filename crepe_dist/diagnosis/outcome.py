"""Result of one check: a line of the diagnosis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes:
        name: name of the checked subject, in a word or two.
        shows: facts that were found.
        level: ``ok``; ``note`` if training works, but not as well as it could; ``problem`` if training does not work.
        what, why, remedy: explanation of a note or problem, as in ``crepe_dist.errors.UserError``.
    """

    name: str
    shows: str
    level: Level = "ok"
    what: str = ""
    why: str = ""
    remedy: str = ""
