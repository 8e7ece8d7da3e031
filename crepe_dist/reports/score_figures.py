"""Figures of scores on one split: the confusion matrix and the reliability diagram."""

from __future__ import annotations

import numpy as np

from crepe_dist.reports import drawing
from crepe_dist.reports.drawing import Axes
from crepe_dist.runs.scores import BINS, MILLION, Scores
from crepe_dist.wording import cut, number, percent

MAX_CLASSES = 30  # with more classes, the matrix only shows those that are confused most
MAX_WITH_COUNTS = 6  # classes for which cells have room for counts beside percentages
MAX_SLANTED = 16  # classes for which slanted column labels do not overlap
LABEL_CELLS, NARROW_LABEL_CELLS = 24, 16
OTHERS = "the others"
SLANT = 0.62  # height of a slanted label per unit of its width


def confusion(scores: Scores, classes: list[str]) -> str:
    """Draw the confusion matrix as SVG: a row for each true class, a column for each predicted class."""
    names = [cut(name, LABEL_CELLS if len(classes) <= MAX_SLANTED else NARROW_LABEL_CELLS) for name in classes]
    matrix = scores.confusion
    if len(names) > MAX_CLASSES:  # keep those that are confused most, and merge the others
        pairs = [pair[:2] for pair in scores.confused(MAX_CLASSES * MAX_CLASSES)]
        kept = sorted(list(dict.fromkeys(sum(pairs, ())))[: MAX_CLASSES - 1])
        index = np.full(len(names), len(kept))
        index[kept] = range(len(kept))
        matrix = np.zeros((len(kept) + 1, len(kept) + 1), dtype=np.int64)
        np.add.at(matrix, (index[:, None], index[None, :]), scores.confusion)
        names = [*(names[index] for index in kept), OTHERS]
    size = len(names)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    left, is_slanted = drawing.margin(names), size <= MAX_SLANTED
    below = 0.3 + left * (SLANT if is_slanted else 1)
    inside = drawing.WIDTH - left - 0.15
    font_size = min(drawing.FONT_SIZE, 0.85 * drawing.POINTS * inside / size)
    height = min(inside, max(0.9 * size, 1.6)) if size <= MAX_WITH_COUNTS else inside
    axes = Axes(height + below + 0.1, (-0.5, size - 0.5), (size - 0.5, -0.5), left=left, bottom=below)
    for place, name in enumerate(names):
        axes.text(-0.5, place, name, (-5, 0), "end", font_size)
        axes.text(place, size - 0.5, name, (0, 6), "end", font_size, -35 if is_slanted else -90)
    axes.text(size / 2 - 0.5, size - 0.5, "predicted", (0, drawing.POINTS * below - 14))
    for row, column in np.argwhere(matrix).tolist():
        count, share = int(matrix[row, column]), float(shares[row, column])
        # Translucent, so that the text is legible on light and on dark pages.
        colour, opacity = (drawing.FOR, 0.6 * share) if row == column else (drawing.AGAINST, 0.72 * share**0.6)
        axes.bar(column - 0.5, row - 0.5, 1, 1, colour, opacity)
        if size <= MAX_WITH_COUNTS:
            axes.text(column, row, percent(share), (0, -5.5))
            axes.text(column, row, number(count), (0, 5.5))
        elif share >= 0.005:
            axes.text(column, row, f"{100 * share:.0f}", size=min(drawing.FONT_SIZE, 170 / size))
    for edge in np.arange(-0.5, size).tolist():
        axes.line([(-0.5, edge), (size - 0.5, edge)], drawing.GREY, 0.4, opacity=0.25)
        axes.line([(edge, -0.5), (edge, size - 0.5)], drawing.GREY, 0.4, opacity=0.25)
    return drawing.svg(f"Confusion matrix of {len(classes)} classes; the accuracy is {percent(scores.accuracy)}", axes)


def reliability(scores: Scores) -> str:
    """Draw the reliability diagram as SVG: accuracy against the predicted probability (Guo et al. 2017)."""
    documents, right, probability = scores.reliability.T
    used = documents > 0
    height, texts = 3.4, documents / max(documents.sum(), 1)
    axes = Axes(height, (0, 1), (0, 1), left=0.65, right=0.25, bottom=0.95, top=0.3)
    lower = Axes(height, (0, 1), (0, max(texts.max(), 0.01)), left=0.65, right=0.25, bottom=0.42, top=height - 0.87)
    shares = np.divide(right, documents, out=np.zeros(BINS), where=used)
    means = np.divide(probability / MILLION, documents, out=np.zeros(BINS), where=used)
    percents = [(share / 100, f"{share} %") for share in range(0, 101, 20)]
    axes.scale_y(percents, "accuracy")
    lower.scale_x(percents, "predicted probability")
    for edge, share, part in zip(np.arange(BINS) / BINS, shares, texts):
        axes.bar(edge, 0, 0.95 / BINS, share, drawing.FOR, 0.45)
        lower.bar(edge, 0, 0.95 / BINS, part, drawing.GREY)
    axes.line([(0, 0), (1, 1)], drawing.GREY, 1, drawing.DASHED)
    axes.line([(0, 0), (1, 0)], drawing.GREY, 0.8)
    axes.dots(zip(means[used], shares[used]), drawing.RED)
    axes.text(0, 1, "above the dashed line: underconfident; below: overconfident", (0, -10), "start")
    lower.text(0, 0, "texts", (-5, -8), "end")
    description = f"Reliability diagram; the calibration error is {percent(scores.calibration_error)}"
    return drawing.svg(description, axes, lower)
