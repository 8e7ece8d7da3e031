"""Figures of a data set's report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crepe_dist.reports import colours, data_sentences, drawing
from crepe_dist.wording import counted, cut, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"train": colours.BLUE, "validation": colours.ORANGE, "test": colours.GREEN, "unlabelled": colours.GREY}
MAX_BARS = 30
FEATURE_LEN = "feature_len"
LABEL_CELLS = 26
BAR_PITCH = 0.26  # inches from one bar to the next
MARKED = ("50", "90", "95", "99")  # percentiles of the text length


def rows(summary: dict[str, Any]) -> str:
    """Draw the rows that were read, removed, kept and assigned to each split, one bar below the other."""
    counts, end = summary["rows"], summary["rows"]["read"]
    bars = [("read", 0, end, colours.SKY)]
    for key, name, *_ in data_sentences.LOSSES:
        if counts[key]:
            bars.append((name, end - counts[key], counts[key], colours.RED))
            end -= counts[key]
    bars.append(("kept", 0, counts["kept"], colours.SKY))
    start = 0
    for split, count in data_sentences.rows_by_part(summary).items():
        bars.append((f"→ {split}", start, count, COLOURS[split]))
        start += count
    ends = [
        number(count) + (f"  ({percent(count, counts['read'])})" if name != "read" else "")
        for name, _, count, _ in bars
    ]
    with drawing.style():
        figure, axes = _bar_axes([name for name, *_ in bars], ends, counts["read"])
        for y, (_, begin, count, colour) in enumerate(bars):
            axes.barh(y, count, left=begin, height=0.68, color=colour, edgecolor=colour, linewidth=0.8)
            _at_end(axes, begin + count, y, ends[y])
        texts = [f"{name}: {counted(count, 'row')}" for name, _, count, _ in bars]
        description = "Rows read, removed and kept. " + data_sentences.flow(summary)
        return drawing.svg(figure, description, drawing.tooltips(axes, texts))


def classes(summary: dict[str, Any]) -> str:
    """Draw the rows of each class, stacked by split."""
    shown = data_sentences.shown_classes(summary, MAX_BARS)
    totals = data_sentences.totals(summary)
    labels = [cut(summary["classes"][index], LABEL_CELLS) for index in shown]
    ends = [f"{number(totals[index])}  ({percent(totals[index], sum(totals))})" for index in shown]
    with drawing.style():
        figure, axes = _bar_axes(labels, ends, max((totals[index] for index in shown), default=0), top=0.35)
        start, texts = [0] * len(shown), []
        for split in data_sentences.splits(summary):
            counts = [summary["parts"][split]["classes"][index] for index in shown]
            axes.barh(range(len(shown)), counts, left=start, height=0.68, color=COLOURS[split], label=split)
            texts += [f"{label}, {split}: {counted(count, 'row')}" for label, count in zip(labels, counts)]
            start = [a + b for a, b in zip(start, counts)]
        for y, index in enumerate(shown):
            _at_end(axes, totals[index], y, ends[y])
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderpad=0, borderaxespad=0.5, handlelength=1)
        description = "Rows of each class. " + data_sentences.balance(summary)
        return drawing.svg(figure, description, drawing.tooltips(axes, texts))


def lengths(summary: dict[str, Any]) -> str:
    """Draw the histogram of the text lengths; return an empty string if there is nothing to draw."""
    edges, counts = summary["lengths"]["edges"], summary["lengths"]["counts"]
    if not sum(counts):
        return ""
    # The last bin may hold all longer texts: it is drawn as wide as the bin before it, and hatched.
    over = len(counts) > 1 and edges[-1] - edges[-2] > 1.5 * (edges[-2] - edges[-3])
    ends = [*edges[:-1], 2 * edges[-2] - edges[-3]] if over else edges
    last = max(ends[-1], ends[0] + 1)
    length = summary["encoding"]["feature_len"]
    marks = [(f"{share} %", value) for share, value in summary["lengths"]["percentiles"].items() if share in MARKED]
    marks.append((FEATURE_LEN, length))
    with drawing.style():
        figure, axes = drawing.blank(3.1, left=0.7, right=1.3, bottom=0.5, top=1.05)
        wide = [max(b - a, 0) or 1 for a, b in zip(ends, ends[1:])]
        drawn = axes.bar(
            ends[:-1], counts, width=wide, align="edge", color=colours.SKY, edgecolor=colours.BLUE, linewidth=0.5
        )
        if over:
            drawn[-1].set(facecolor="none", hatch="////", edgecolor=colours.BLUE)
        right = last if length > 2 * last or over else max(last, 1.02 * length)
        axes.set_xlim(ends[0], right)
        longest = summary["lengths"]["percentiles"].get("100", edges[-1])
        _ticks(axes, ends, longest if over else None, right)
        _flags(axes, [(_position(value, edges, ends), name, value) for name, value in marks], right)
        axes.set(xlabel="characters", ylabel="texts")
        axes.grid(axis="y")
        texts = [
            count and f"{number(first)} to {number(max(first, after - 1))} characters: {counted(count, 'text')}"
            for first, after, count in zip(edges, edges[1:], counts)
        ]
        description = f"Lengths of the texts. {data_sentences.lengths(summary)} {data_sentences.cutting(summary)}"
        return drawing.svg(figure, description, drawing.tooltips(axes, texts, in_columns=True))


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


def _position(value: float, edges: list[float], ends: list[float]) -> float:
    """Map a length to its position on the axis, where the last bin may be drawn narrower than it is."""
    if value <= edges[-2] or edges[-1] == ends[-1]:
        return value
    return ends[-2] + (value - edges[-2]) / (edges[-1] - edges[-2]) * (ends[-1] - ends[-2])


def _ticks(axes: Axes, ends: list[float], maximum: float | None, right: float) -> None:
    stop = right if maximum is None else ends[-2]
    ticks = [tick for tick in drawing.locator(6, integer=True).tick_values(ends[0], stop) if ends[0] <= tick <= stop]
    labels = [number(tick) for tick in ticks]
    if maximum is not None:
        while ticks and ticks[-1] > right - 0.14 * (right - ends[0]):
            ticks.pop(), labels.pop()
        ticks.append((ends[-2] + ends[-1]) / 2)
        labels.append(f"to {number(maximum)}")
    axes.set_xticks(ticks, labels)
    top = max(patch.get_height() for patch in axes.patches)  # type: ignore[attr-defined]
    axes.set_ylim(0, 1.05 * top)
    counts = [tick for tick in drawing.locator(4, integer=True).tick_values(0, top) if 0 <= tick <= 1.05 * top]
    axes.set_yticks(counts, [number(tick) for tick in counts])


def _flags(axes: Axes, marks: list[tuple[float, str, float]], right: float) -> None:
    """Mark lengths by vertical lines, with labels above the axes; the labels descend so that no line crosses one."""
    inside = sorted(mark for mark in marks if mark[0] <= right)
    above = axes.get_xaxis_transform()
    for row, (x, name, value) in enumerate(reversed(inside)):
        height = 1.04 + 0.12 * row
        colour, width = (colours.RED, 1.6) if name == FEATURE_LEN else (colours.GREY, 0.9)
        axes.plot([x, x], [0, height + 0.08], transform=above, color=colour, linewidth=width, clip_on=False)
        label = f"{name}: {number(value)}"
        axes.annotate(label, (x, height), xycoords=above, xytext=(4, 0), textcoords="offset points")
