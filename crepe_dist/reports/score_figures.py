"""Figures of scores on one split: confusion matrices, their differences, and the reliability diagram."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from crepe_dist.reports import colours, drawing
from crepe_dist.runs.scores import BINS, MILLION, Scores
from crepe_dist.wording import counted, cut, number, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CLASSES = 30  # with more classes, the matrix only shows those that are confused most
MAX_WITH_COUNTS = 6  # classes for which cells have room for counts beside percentages
MAX_SLANTED = 16  # classes for which slanted column labels do not overlap
LABEL_CELLS, NARROW_LABEL_CELLS = 24, 16
OTHERS = "the others"
SLANT = 0.62  # height of a slanted label per unit of its width


class Cell(NamedTuple):
    """Cell of a matrix of classes: its background, and its number in long and in short."""

    row: int
    column: int
    colour: str
    alpha: float
    text: str
    short: str
    about: str


def confusion(scores: Scores, classes: list[str]) -> str:
    """Draw the confusion matrix as SVG."""
    description = f"Confusion matrix of {len(classes)} classes; the accuracy is {percent(scores.accuracy)}"
    return _svg(*_confusion(scores, classes), description)


def confusion_png(scores: Scores, classes: list[str]) -> tuple[bytes, int, int]:
    """Draw the confusion matrix as a PNG; return it with its width and height in pixels."""
    return drawing.png(_figure(*_confusion(scores, classes)))


def _labels(classes: list[str]) -> list[str]:
    return [cut(name, LABEL_CELLS if len(classes) <= MAX_SLANTED else NARROW_LABEL_CELLS) for name in classes]


def _confusion(scores: Scores, classes: list[str]) -> tuple[list[str], list[Cell]]:
    """Return the labels and the cells of a confusion matrix."""
    pairs = np.array([pair[:2] for pair in scores.confused(MAX_CLASSES * MAX_CLASSES)])
    matrix, names = _reduced(scores.confusion, pairs, _labels(classes))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    cells = []
    for row, column in np.argwhere(matrix).tolist():
        count, share = int(matrix[row, column]), float(shares[row, column])
        about = f"true: {names[row]}\npredicted: {names[column]}\n"
        about += f"{counted(count, 'text')}, {percent(share)} of the true class"
        # Translucent, so that the text is legible on light and on dark pages.
        colour = colours.FOR if row == column else colours.AGAINST
        alpha = 0.6 * share if row == column else 0.72 * share**0.6
        short = f"{100 * share:.0f}" if share >= 0.005 else ""
        cells.append(Cell(row, column, colour, alpha, f"{percent(share)}\n{number(count)}", short, about))
    return names, cells


def _svg(names: list[str], cells: list[Cell], description: str) -> str:
    figure = _figure(names, cells)
    return drawing.svg(figure, description, drawing.tooltips(figure.axes[0], (cell.about for cell in cells)))


def _figure(names: list[str], cells: list[Cell]) -> Figure:
    """Draw a square matrix with a row for each true class and a column for each predicted class."""
    from matplotlib.patches import Rectangle

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
        for cell in cells:
            corner = (cell.column - 0.5, cell.row - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, facecolor=cell.colour, alpha=cell.alpha, edgecolor="none"))
            has_room = size <= MAX_WITH_COUNTS
            axes.text(cell.column, cell.row, cell.text if has_room else cell.short, ha="center", va="center",
                      fontsize=drawing.FONT_SIZE if has_room else min(drawing.FONT_SIZE, 170 / size))  # fmt: skip
        edges = np.arange(-0.5, size)
        for draw in (axes.hlines, axes.vlines):
            draw(edges, -0.5, size - 0.5, color=colours.GREY, alpha=0.25, linewidth=0.4)
        return figure


def _reduced(
    matrix: npt.NDArray[np.int64], pairs: npt.NDArray[np.int64], names: list[str]
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Reduce a matrix to the ``MAX_CLASSES - 1`` classes that come first in ``pairs``, and one row for the others."""
    if len(names) <= MAX_CLASSES:
        return matrix, names
    shown = dict.fromkeys(pairs.ravel().tolist())
    kept = sorted(list(shown)[: MAX_CLASSES - 1])
    index = np.full(len(names), len(kept))
    index[kept] = range(len(kept))
    reduced = np.zeros((len(kept) + 1, len(kept) + 1), dtype=np.int64)
    np.add.at(reduced, (index[:, None], index[None, :]), matrix)
    return reduced, [*(names[index] for index in kept), OTHERS]


def is_reduced(classes: list[str]) -> bool:
    return len(classes) > MAX_CLASSES


def reliability(scores: Scores) -> str:
    """Draw the reliability diagram as SVG: accuracy against the predicted probability (Guo et al. 2017)."""
    from matplotlib.colors import to_rgba

    documents, right, probability = scores.reliability.T
    used = documents > 0
    with drawing.style():
        height = 3.4
        figure, axes = drawing.blank(height, left=0.65, right=0.25, bottom=0.95, top=0.3)
        edges = np.arange(BINS) / BINS
        shares = np.divide(right, documents, out=np.zeros(BINS), where=used)
        means = np.divide(probability / MILLION, documents, out=np.zeros(BINS), where=used)
        axes.bar(edges[used], shares[used], width=1 / BINS, align="edge", color=to_rgba(colours.FOR, 0.45),
                 edgecolor=colours.BLUE, linewidth=0.8)  # fmt: skip
        axes.plot([0, 1], [0, 1], color=colours.GREY, linestyle="--", linewidth=1)
        axes.plot(means[used], shares[used], "o", color=colours.RED, markersize=3, clip_on=False, zorder=3)
        percents = [f"{share} %" for share in range(0, 101, 20)]
        axes.set_yticks(np.linspace(0, 1, 6), percents)
        axes.grid(axis="y")
        axes.tick_params(axis="x", labelbottom=False)
        axes.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        lower = figure.add_axes((axes.get_position().x0, 0.42 / height, axes.get_position().width, 0.45 / height))
        lower.bar(edges, documents / max(documents.sum(), 1), width=1 / BINS, align="edge", color=colours.GREY)
        lower.set(xlim=(0, 1), xlabel="predicted probability", ylim=(0, None), yticks=[])
        lower.set_xticks(np.linspace(0, 1, 6), percents)
        lower.set_ylabel("texts", rotation=0, ha="right", va="center")
        axes.text(0, 1.06, "above the dashed line: underconfident; below: overconfident", transform=axes.transAxes)
        texts = [
            f"probability {100 * edges[i]:.0f}–{100 * (edges[i] + 1 / BINS):.0f} %: "
            f"{counted(int(documents[i]), 'text')}, mean {percent(float(means[i]))}, "
            f"accuracy {percent(float(shares[i]))}"
            for i in np.flatnonzero(used)
        ]
        description = f"Reliability diagram; the calibration error is {percent(scores.calibration_error)}"
        return drawing.svg(figure, description, drawing.tooltips(axes, texts, in_columns=True))
