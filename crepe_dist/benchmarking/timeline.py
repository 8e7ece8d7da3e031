"""Overlap of all-reduce and backward pass, from a timeline that Horovod 0.28.1 wrote (HOROVOD_TIMELINE)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

GRADIENT = re.compile(r"allreduce\.\d")  # in the name of a tensor; other collectives have names in words
WARM_UP = 3  # steps; Horovod caches its negotiations in the first


class Span(NamedTuple):
    """All-reduce of one gradient in one step, in microseconds: ready on rank 0, began, and ended."""

    ready: float
    began: float
    ended: float


def read(path: Path) -> list[dict[str, Any]]:
    """Read the events of a timeline; its array is not closed if the process did not end by itself."""
    text = path.read_text(encoding="utf-8").rstrip().rstrip(",")
    events: list[dict[str, Any]] = json.loads(text if text.endswith("]") else text + "]")
    return events


def steps(events: Iterable[dict[str, Any]]) -> list[tuple[Span, ...]]:
    """Return the all-reduces of each step, one for each gradient."""
    spans: dict[int, list[Span]] = {}
    opened: dict[int, list[tuple[str, float]]] = {}
    ready: dict[int, float] = {}
    for event in events:
        tensor = event["pid"]
        if event.get("name") == "process_name" and GRADIENT.search(event["args"].get("name", "")):
            spans[tensor], opened[tensor] = [], []
        if tensor not in spans or event["ph"] not in ("B", "E"):
            continue
        if event["ph"] == "B":
            opened[tensor].append((event["name"], event["ts"]))
            continue
        name, began = opened[tensor].pop()
        if name.startswith("NEGOTIATE"):
            ready[tensor] = began
        elif not opened[tensor]:
            spans[tensor].append(Span(ready[tensor], began, event["ts"]))
    return list(zip(*spans.values()))


def hidden(step: Sequence[Span]) -> tuple[float, float]:
    """Return the time that all-reduces of a step took, and the part of it before the last gradient was ready."""
    last = max(each.ready for each in step)
    total = early = 0.0
    until = 0.0  # time up to which intervals have been counted
    for _, began, ended in sorted(step, key=lambda each: each.began):
        began = max(began, until)
        if ended > began:
            total += ended - began
            early += max(0.0, min(ended, last) - began)
            until = ended
    return total, early


def overlap(path: Path) -> dict[str, float]:
    """Summarise a timeline.

    Returns:
        ``steps``; ``allreduce_ms``, the time of a step in which gradients travel; and ``overlap``, the share of it
        before the backward pass had computed the last gradient, 0 to 1.

    Raises:
        ValueError: it holds too few all-reduces of gradients.
    """
    found = [hidden(step) for step in steps(read(path))[WARM_UP:]]
    total = sum(each for each, _ in found)
    if not total:
        raise ValueError("the timeline holds no all-reduces of gradients")
    return {
        "steps": len(found),
        "allreduce_ms": total / len(found) / 1000,
        "overlap": sum(early for _, early in found) / total,
    }
