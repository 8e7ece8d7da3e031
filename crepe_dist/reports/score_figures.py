"""Figures of a network's scores on one split: the confusion matrix and the reliability diagram."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from crepe_dist.reports import colours, drawing
from crepe_dist.runs.scores import BINS, MILLION, Scores
from crepe_dist.wording import counted, cut, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CLASSES = 30  # with more classes, the matrix only shows those that are confused most
MAX_WITH_COUNTS = 6  # classes for which cells have room for counts beside percentages
MAX_SLANTED = 16  # classes for which slanted column labels do not overlap
LABEL_CELLS, NARROW_LABEL_CELLS = 24, 16
OTHERS = "the others"
Box = tuple[float, float, float, float, str]
SLANT = 0.62  # height of a slanted label per unit of its width


def confusion(scores: Scores, classes: list[str]) -> str:
    """Draw the confusion matrix as SVG."""
    description = f"Confusion matrix of {len(classes)} classes; the accuracy is {percent(scores.accuracy)}"
    figure, boxes = _draw_confusion(scores, classes)
    return drawing.svg(figure, description, drawing.tooltips(figure.axes[0], boxes))


def confusion_png(scores: Scores, classes: list[str]) -> tuple[bytes, int, int]:
    """Draw the confusion matrix as a PNG; return it with its width and height in pixels."""
    return drawing.png(draw_confusion(scores, classes))


def draw_confusion(scores: Scores, classes: list[str]) -> Figure:
    """Draw the confusion matrix as a matplotlib figure."""
    return _draw_confusion(scores, classes)[0]


def _draw_confusion(scores: Scores, classes: list[str]) -> tuple[Figure, list[Box]]:
    """Draw the confusion matrix, and describe its cells for ``drawing.tooltips``."""
    width = LABEL_CELLS if len(classes) <= MAX_SLANTED else NARROW_LABEL_CELLS
    matrix, names = _reduced(scores, [cut(name, width) for name in classes])
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = len(names)
    with drawing.style():
        left = drawing.margin(names)
        below = 0.3 + left * (SLANT if size <= MAX_SLANTED else 1)
        inside = drawing.WIDTH - left - 0.15
        font_size = min(drawing.FONT_SIZE, 0.85 * 72 * inside / size)
        height = min(inside, max(0.9 * size, 1.6)) if size <= MAX_WITH_COUNTS else inside
        figure, axes = drawing.blank(height + below + 0.1, left=left, bottom=below)
        axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), xticks=range(size), yticks=range(size))
        axes.set_yticklabels(names, fontsize=font_size)
        slant = 35 if size <= MAX_SLANTED else 90
        axes.set_xticklabels(names, fontsize=font_size, rotation=slant, ha="right", va="center", rotation_mode="anchor")
        axes.tick_params(length=0)
        axes.set_xlabel("predicted", labelpad=2)
        for row, column in np.argwhere(matrix).tolist():
            _cell(axes, row, column, int(matrix[row, column]), float(shares[row, column]), size)
        edges = np.arange(-0.5, size)
        for draw in (axes.hlines, axes.vlines):
            draw(edges, -0.5, size - 0.5, color=colours.GREY, alpha=0.25, linewidth=0.4)
        boxes = [
            (column - 0.5, row - 0.5, column + 0.5, row + 0.5, f"true: {names[row]}\npredicted: {names[column]}\n"
             f"{counted(int(matrix[row, column]), 'text')}, {percent(float(shares[row, column]))} of the true class")
            for row, column in np.argwhere(matrix).tolist()
        ]  # fmt: skip
        return figure, boxes


def _cell(axes: Axes, row: int, column: int, count: int, share: float, size: int) -> None:
    # Translucent, so that the text is legible on light and on dark pages.
    colour = colours.FOR if row == column else colours.AGAINST
    alpha = 0.6 * share if row == column else 0.75 * share**0.6
    axes.add_patch(drawing.square(column, row, colour, alpha))
    if size <= MAX_WITH_COUNTS:
        text, font_size = f"{percent(share)}\n{number(count)}", drawing.FONT_SIZE
    elif share >= 0.005:
        text, font_size = f"{100 * share:.0f}", min(drawing.FONT_SIZE, 170 / size)
    else:
        return
    axes.text(column, row, text, ha="center", va="center", fontsize=font_size)


def _reduced(scores: Scores, names: list[str]) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Reduce the matrix to the ``MAX_CLASSES - 1`` classes that are confused most, and one row for the others."""
    if len(names) <= MAX_CLASSES:
        return scores.confusion, names
    shown: dict[int, None] = {}
    for true, predicted, _ in scores.confused(MAX_CLASSES * MAX_CLASSES):
        for index in (true, predicted):
            if len(shown) < MAX_CLASSES - 1:
                shown[index] = None
    kept = sorted(shown)
    place = np.full(len(names), len(kept))
    place[kept] = range(len(kept))
    matrix = np.zeros((len(kept) + 1, len(kept) + 1), dtype=np.int64)
    np.add.at(matrix, (place[:, None], place[None, :]), scores.confusion)
    return matrix, [*(names[index] for index in kept), OTHERS]


def is_reduced(classes: list[str]) -> bool:
    return len(classes) > MAX_CLASSES


def reliability(scores: Scores) -> str:
    """Draw the reliability diagram as SVG: accuracy against the predicted probability (Guo et al. 2017)."""
    from matplotlib.colors import to_rgba

    documents, right, probability = scores.reliability.T
    used = documents > 0
    with drawing.style():
        figure, axes = drawing.blank(3.2, left=0.65, right=0.25, bottom=0.95)
        edges = np.arange(BINS) / BINS
        shares = np.divide(right, documents, out=np.zeros(BINS), where=used)
        means = np.divide(probability / MILLION, documents, out=np.zeros(BINS), where=used)
        axes.bar(edges[used], shares[used], width=1 / BINS, align="edge", color=to_rgba(colours.FOR, 0.45),
                 edgecolor=colours.BLUE, linewidth=0.8)  # fmt: skip
        axes.plot([0, 1], [0, 1], color=colours.GREY, linestyle="--", linewidth=1)
        axes.plot(means[used], shares[used], "o", color=colours.RED, markersize=3, clip_on=False, zorder=3)
        _percent_axis(axes)
        axes.tick_params(axis="x", labelbottom=False)
        axes.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        lower = figure.add_axes((axes.get_position().x0, 0.42 / 3.2, axes.get_position().width, 0.45 / 3.2))
        lower.bar(edges, documents / max(documents.sum(), 1), width=1 / BINS, align="edge", color=colours.GREY)
        lower.set(xlim=(0, 1), xlabel="predicted probability", ylim=(0, None), yticks=[])
        lower.set_xticks(np.linspace(0, 1, 6), [f"{share} %" for share in range(0, 101, 20)])
        lower.set_ylabel("texts", rotation=0, ha="right", va="center")
        axes.text(0.03, 0.93, "above the line: underconfident", transform=axes.transAxes, va="center")
        axes.text(0.97, 0.07, "below the line: overconfident", transform=axes.transAxes, va="center", ha="right")
        boxes = [
            (edges[place], 0, edges[place] + 1 / BINS, 1, f"probability {100 * edges[place]:.0f}–"
             f"{100 * (edges[place] + 1 / BINS):.0f} %: {counted(int(documents[place]), 'text')}, mean "
             f"{percent(float(means[place]))}, accuracy {percent(float(shares[place]))}")
            for place in np.flatnonzero(used)
        ]  # fmt: skip
        description = f"Reliability diagram; the calibration error is {percent(scores.calibration_error)}"
        return drawing.svg(figure, description, drawing.tooltips(axes, boxes))


def _percent_axis(axes: Axes) -> None:
    axes.set_yticks(np.linspace(0, 1, 6), [f"{share} %" for share in range(0, 101, 20)])
    axes.grid(axis="y")
    axes.set_axisbelow(True)
