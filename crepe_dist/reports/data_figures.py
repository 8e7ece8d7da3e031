"""Figures of a data set's report."""

from __future__ import annotations

from typing import Any

from crepe_dist.reports import drawing
from crepe_dist.reports.drawing import Axes
from crepe_dist.wording import cut, number, percent

COLOURS = {"train": drawing.BLUE, "validation": drawing.ORANGE, "test": drawing.GREEN, "unlabelled": drawing.GREY}
# Rows that are removed, in this order.
LOSSES = (("bad", "unusable"), ("duplicates", "duplicates removed"), ("sampled_out", "left out by sampling"))
MAX_BARS = 30
LABEL_CELLS = 26
BAR_PITCH = 0.26  # inches from one bar to the next
MARKED = ("50", "90", "95", "99")  # percentiles of the text length


def totals(summary: dict[str, Any]) -> list[int]:
    """Count the rows of each class over all splits."""
    return [sum(rows) for rows in zip(*(split["classes"] for split in summary["splits"].values()))]


def largest(counts: list[int], most: int) -> list[int]:
    """Return the indices of the classes to show: all in order, or only the ``most`` largest, largest first."""
    if len(counts) <= most:
        return list(range(len(counts)))
    return sorted(range(len(counts)), key=lambda index: (-counts[index], index))[:most]


def rows(summary: dict[str, Any]) -> str:
    """Draw the rows that were read, removed, kept and assigned to each split, one bar below the other."""
    counts, end = summary["rows"], summary["rows"]["read"]
    bars = [("read", 0, end, drawing.SKY)]
    for key, name in LOSSES:
        if counts[key]:
            bars.append((name, end - counts[key], counts[key], drawing.RED))
            end -= counts[key]
    bars.append(("kept", 0, counts["kept"], drawing.SKY))
    start = 0
    more = {"unlabelled": summary["unlabelled"]} if "unlabelled" in summary else {}
    for name, split in {**summary["splits"], **more}.items():
        bars.append((f"→ {name}", start, split["rows"], COLOURS[name]))
        start += split["rows"]
    ends = [number(counts["read"]), *(f"{number(bar[2])}  ({percent(bar[2], counts['read'])})" for bar in bars[1:])]
    axes = _bar_axes([name for name, *_ in bars], ends, counts["read"])
    for y, (_, begin, count, colour) in enumerate(bars):
        axes.bar(begin, y - 0.34, max(count, 0.003 * counts["read"]), 0.68, colour)
        _at_end(axes, begin + count, y, ends[y])
    return drawing.svg("Rows read, removed and kept", axes)


def classes(summary: dict[str, Any]) -> str:
    """Draw the rows of each class, stacked by split."""
    sums = totals(summary)
    shown = largest(sums, MAX_BARS)
    labels = [cut(summary["classes"][index], LABEL_CELLS) for index in shown]
    ends = [f"{number(sums[index])}  ({percent(sums[index], sum(sums))})" for index in shown]
    axes = _bar_axes(labels, ends, max((sums[index] for index in shown), default=0), top=0.35)
    axes.legend((name, COLOURS[name], "") for name in summary["splits"])
    for y, index in enumerate(shown):
        start = 0
        for name, split in summary["splits"].items():
            axes.bar(start, y - 0.34, split["classes"][index], 0.68, COLOURS[name])
            start += split["classes"][index]
        _at_end(axes, sums[index], y, ends[y])
    return drawing.svg("Rows of each class", axes)


def lengths(summary: dict[str, Any]) -> str:
    """Draw the histogram of the text lengths; return an empty string if there is nothing to draw."""
    edges, counts = summary["lengths"]["edges"], summary["lengths"]["counts"]
    if not sum(counts):
        return ""
    last, length = edges[-1], summary["encoding"]["feature_len"]
    right = last if length > 2 * last else max(last, 1.02 * length)
    most = 1.05 * max(counts)
    axes = Axes(2.4, (0, right), (0, most), left=0.7, right=0.2, bottom=0.5, top=0.35)
    for edge, count in zip(edges, counts):
        axes.bar(edge, 0, 0.9 * edges[1], count, drawing.SKY)
    axes.scale_x(((value, number(value)) for value in drawing.round_values(0, right, 6, 1)), "characters")
    axes.scale_y(((value, number(value)) for value in drawing.round_values(0, most, 4, 1)), "texts")
    if length <= right:
        axes.line([(length, 0), (length, most)], drawing.RED, 1.6)
        axes.legend([(f"feature_len: {number(length)}", drawing.RED, "none")])
    return drawing.svg("Lengths of the texts", axes)


def _bar_axes(labels: list[str], ends: list[str], longest: int, top: float = 0.08) -> Axes:
    """Make axes for horizontal bars with a label on the left, a number on the right and no scale."""
    bars = max(len(labels), 1)
    height, limits = BAR_PITCH * bars + 0.05 + top, ((0, max(longest, 1)), (bars - 0.5, -0.5))
    axes = Axes(height, *limits, left=drawing.margin(labels), right=drawing.margin(ends), bottom=0.05, top=top)
    for y, label in enumerate(labels):
        axes.text(0, y, label, (-5, 0), "end")
    return axes


def _at_end(axes: Axes, end: float, y: int, text: str) -> None:
    axes.text(end, y, text, (4, 0), "start")
