"""Measured points of a benchmark, in a CSV file that a repeated command extends."""

from __future__ import annotations

import csv
from pathlib import Path

Point = dict[str, str]


def read(path: Path) -> list[Point]:
    """Read the points that were measured before."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def append(path: Path, point: Point) -> None:
    """Save a point; the names of the first one are the header."""
    is_new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(point), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(point)
