"""Sections of a benchmark: each has a limited time, and its failure leaves its rows so far and the other sections."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Row = dict[str, Any]


class OutOfTime(BaseException):
    """End of the time of a section; not an ``Exception``, so that no section takes it for a failure of its own."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise ``OutOfTime`` in the block if it takes longer."""
    before = signal.signal(signal.SIGALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measured(section: Callable[[], Iterable[Row]], seconds: float) -> Row:
    """Run a section for at most ``seconds``; return its rows and, if it failed, the error."""
    rows: list[Row] = []
    begun, error = time.monotonic(), ""
    try:
        with limited(seconds):
            for row in section():
                rows.append(row)
                print(", ".join(f"{name} {shown}" for name, shown in cells(row)), file=sys.stderr, flush=True)
    except OutOfTime:
        error = f"not finished after {seconds:.0f} s"
    except Exception as failed:
        error = _in_a_line(failed)
    return {"seconds": time.monotonic() - begun, **({"error": error} if error else {}), "rows": rows}


def cells(row: Row) -> Iterator[tuple[str, str]]:
    """Yield names and values of a row for display; the JSON has the rest."""
    for name, value in row.items():
        if isinstance(value, (str, int, float)):
            yield name, f"{value:,.4g}" if isinstance(value, float) else str(value)[:200]


def table(title: str, section: Row) -> str:
    """Format a section as a Markdown table."""
    names = list(dict.fromkeys(name for row in section["rows"] for name, _ in cells(row)))
    lines = [
        names,
        ["---"] * len(names),
        *([dict(cells(row)).get(name, "") for name in names] for row in section["rows"]),
    ]
    rows = [f"| {' | '.join(line)} |" for line in lines if names]
    return "\n".join([f"\n## {title}, {section['seconds']:.0f} s\n", *rows, section.get("error", "")])


def tried(work: Callable[[], Row]) -> Row:
    """Return the row, or an error in its place, so that the other rows of a section are measured."""
    try:
        return work()
    except Exception as error:
        return {"error": _in_a_line(error)}


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _out_of_time(number: int, frame: FrameType | None) -> None:
    raise OutOfTime
