"""Figures of a data set's report."""

from __future__ import annotations

from typing import Any

from crepe_dist.formatting import cut, number, percent
from crepe_dist.reports import drawing

Bar = tuple[str, list[Any], str]  # name; lanes of parts, which are start, size and colour; what stands at the end
COLOURS = {"train": "blue", "validation": "orange", "test": "green", "unlabelled": "grey"}
# Rows that are removed, in this order.
LOSSES = (("bad", "unusable"), ("duplicates", "duplicates removed"), ("sampled_out", "left out by sampling"))
MAX_BARS = 30
LABEL_CELLS = 26
MARKED = ("50", "90", "95", "99")  # percentiles of the text length


def totals(summary: dict[str, Any]) -> list[int]:
    """Count the rows of each class over all splits."""
    return [sum(rows) for rows in zip(*(split["classes"] for split in summary["splits"].values()))]


def largest(counts: list[int], most: int) -> list[int]:
    """Return the indices of the classes to show: all in order, or only the ``most`` largest, largest first."""
    if len(counts) <= most:
        return list(range(len(counts)))
    return sorted(range(len(counts)), key=lambda index: (-counts[index], index))[:most]


def rows(summary: dict[str, Any]) -> list[Bar]:
    """Return bars of the rows that were read, removed, kept and assigned to each split."""
    counts, end = summary["rows"], summary["rows"]["read"]
    bars = [("read", 0, end, "sky")]
    for key, name in LOSSES:
        if counts[key]:
            bars.append((name, end - counts[key], counts[key], "red"))
            end -= counts[key]
    bars.append(("kept", 0, counts["kept"], "sky"))
    start = 0
    more = {"unlabelled": summary["unlabelled"]} if "unlabelled" in summary else {}
    for name, split in {**summary["splits"], **more}.items():
        bars.append((f"→ {name}", start, split["rows"], COLOURS[name]))
        start += split["rows"]
    ends = [number(counts["read"]), *(f"{number(bar[2])}  ({percent(bar[2], counts['read'])})" for bar in bars[1:])]
    return [(name, [[part]], end) for (name, *part), end in zip(bars, ends)]


def classes(summary: dict[str, Any]) -> list[Bar]:
    """Return bars of the rows of each class, divided by split."""
    sums, bars = totals(summary), []
    for index in largest(sums, MAX_BARS):
        parts, start = [], 0
        for name, split in summary["splits"].items():
            parts.append((start, split["classes"][index], COLOURS[name]))
            start += split["classes"][index]
        end = f"{number(start)}  ({percent(start, sum(sums))})"
        bars.append((cut(summary["classes"][index], LABEL_CELLS), [parts], end))
    return bars


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
