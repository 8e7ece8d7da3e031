"""Progress of a preparation, or of a download, for whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Progress of a phase: its name, and the bytes read or rows processed, in total 0 if unknown."""

    doing: str
    done: int
    total: int


Show = Callable[[Progress], None]


def ignored(progress: Progress) -> None:
    """Show nothing."""
