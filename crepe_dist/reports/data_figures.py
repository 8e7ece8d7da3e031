"""Figures of a data set's report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crepe_dist.reports import drawing
from crepe_dist.wording import cut, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    with drawing.style():
        figure, axes = _bar_axes([name for name, *_ in bars], ends, counts["read"])
        for y, (_, begin, count, colour) in enumerate(bars):
            axes.barh(y, count, left=begin, height=0.68, color=colour, edgecolor=colour, linewidth=0.8)
            _at_end(axes, begin + count, y, ends[y])
        return drawing.svg(figure, "Rows read, removed and kept")


def classes(summary: dict[str, Any]) -> str:
    """Draw the rows of each class, stacked by split."""
    sums = totals(summary)
    shown = largest(sums, MAX_BARS)
    labels = [cut(summary["classes"][index], LABEL_CELLS) for index in shown]
    ends = [f"{number(sums[index])}  ({percent(sums[index], sum(sums))})" for index in shown]
    with drawing.style():
        figure, axes = _bar_axes(labels, ends, max((sums[index] for index in shown), default=0), top=0.35)
        start = [0] * len(shown)
        for name, split in summary["splits"].items():
            counts = [split["classes"][index] for index in shown]
            axes.barh(range(len(shown)), counts, left=start, height=0.68, color=COLOURS[name], label=name)
            start = [a + b for a, b in zip(start, counts)]
        for y, index in enumerate(shown):
            _at_end(axes, sums[index], y, ends[y])
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderpad=0, borderaxespad=0.5, handlelength=1)
        return drawing.svg(figure, "Rows of each class")


def lengths(summary: dict[str, Any]) -> str:
    """Draw the histogram of the text lengths; return an empty string if there is nothing to draw."""
    edges, counts = summary["lengths"]["edges"], summary["lengths"]["counts"]
    if not sum(counts):
        return ""
    last, length = edges[-1], summary["encoding"]["feature_len"]
    right = last if length > 2 * last else max(last, 1.02 * length)
    with drawing.style():
        figure, axes = drawing.blank(2.4, left=0.7, right=0.2, bottom=0.5, top=0.35)
        axes.bar(edges[:-1], counts, width=edges[1], align="edge", color=drawing.SKY, edgecolor=drawing.BLUE,
                 linewidth=0.5)  # fmt: skip
        axes.set(xlim=(0, right), xlabel="characters", ylabel="texts")
        axes.xaxis.set_major_locator(drawing.locator(6))
        axes.yaxis.set_major_locator(drawing.locator(4))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: number(value))
        axes.grid(axis="y")
        if length <= right:
            axes.axvline(length, color=drawing.RED, linewidth=1.6, label=f"feature_len: {number(length)}")
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderpad=0, borderaxespad=0.5, handlelength=1)
        return drawing.svg(figure, "Lengths of the texts")


def _bar_axes(labels: list[str], ends: list[str], longest: int, top: float = 0.08) -> tuple[Figure, Axes]:
    """Make axes for horizontal bars with a label on the left, a number on the right and no scale."""
    bars = max(len(labels), 1)
    height = BAR_PITCH * bars + 0.05 + top
    figure, axes = drawing.blank(height, left=drawing.margin(labels), right=drawing.margin(ends), bottom=0.05, top=top)
    axes.set(xlim=(0, max(longest, 1)), ylim=(bars - 0.5, -0.5), xticks=[], yticks=range(len(labels)))
    axes.set_yticklabels(labels)
    axes.tick_params(axis="y", length=0)
    axes.spines["bottom"].set_visible(False)
    return figure, axes


def _at_end(axes: Axes, end: float, y: int, text: str) -> None:
    axes.annotate(
        text, (end, y), xytext=(4, 0), textcoords="offset points", va="center_baseline", annotation_clip=False
    )
