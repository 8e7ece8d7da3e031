"""Figures of scores on one split: the confusion matrix, the reliability diagram, and precision by coverage."""

from __future__ import annotations

import numpy as np

from crepe_dist.formatting import cut, percent
from crepe_dist.model.calibration import above, lower_bound
from crepe_dist.reports import drawing
from crepe_dist.runs.scores import BINS, MILLION, Scores

MAX_CLASSES = 30  # with more classes, the matrix only shows those that are confused most
LABEL_CELLS = 20
OTHERS = "the others"


def confusion(scores: Scores, classes: list[str]) -> list[tuple[str, list[tuple[int, float]]]]:
    """Return the confusion matrix: each true class, and the number and share of its texts for each predicted class."""
    names = [cut(name, LABEL_CELLS) for name in classes]
    matrix = scores.confusion
    if len(names) > MAX_CLASSES:  # keep those that are confused most, and merge the others
        pairs = [pair[:2] for pair in scores.confused(MAX_CLASSES * MAX_CLASSES)]
        kept = sorted(list(dict.fromkeys(sum(pairs, ())))[: MAX_CLASSES - 1])
        index = np.full(len(names), len(kept))
        index[kept] = range(len(kept))
        matrix = np.zeros((len(kept) + 1, len(kept) + 1), dtype=np.int64)
        true, predicted, documents = scores.cells
        np.add.at(matrix, (index[true], index[predicted]), documents)
        names = [*(names[index] for index in kept), OTHERS]
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    return [(name, list(zip(*row))) for name, *row in zip(names, matrix.tolist(), shares.tolist())]


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
        axes.bar(edges[used], shares[used], width=1 / BINS, align="edge", color=to_rgba(drawing.FOR, 0.45),
                 edgecolor=drawing.BLUE, linewidth=0.8)  # fmt: skip
        axes.plot([0, 1], [0, 1], color=drawing.GREY, linestyle="--", linewidth=1)
        axes.plot(means[used], shares[used], "o", color=drawing.RED, markersize=3, clip_on=False, zorder=3)
        percents = [f"{share} %" for share in range(0, 101, 20)]
        axes.set_yticks(np.linspace(0, 1, 6), percents)
        axes.grid(axis="y")
        axes.tick_params(axis="x", labelbottom=False)
        axes.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        lower = figure.add_axes((axes.get_position().x0, 0.42 / height, axes.get_position().width, 0.45 / height))
        lower.bar(edges, documents / max(documents.sum(), 1), width=1 / BINS, align="edge", color=drawing.GREY)
        lower.set(xlim=(0, 1), xlabel="predicted probability", ylim=(0, None), yticks=[])
        lower.set_xticks(np.linspace(0, 1, 6), percents)
        lower.set_ylabel("texts", rotation=0, ha="right", va="center")
        axes.text(0, 1.06, "above the dashed line: underconfident; below: overconfident", transform=axes.transAxes)
        description = f"Reliability diagram; the calibration error is {percent(scores.calibration_error)}"
        return drawing.svg(figure, description)


def coverage(scores: Scores) -> str:
    """Draw precision against the share of the texts that are answered, by the threshold, as SVG."""
    texts, right = above(scores.answers[:, :2].T)
    texts, right = texts[right > 0], right[right > 0]
    with drawing.style():
        figure, axes = drawing.blank(3.0, left=0.85, right=0.25, bottom=0.45, top=0.3)
        bounds = lower_bound(texts, right), 1 - lower_bound(texts, texts - right)
        axes.fill_between(texts / texts[0], *bounds, color=drawing.SKY, alpha=0.25, linewidth=0)
        axes.plot(texts / texts[0], right / texts, color=drawing.BLUE, linewidth=1.6)
        for each in scores.sure_answers:
            axes.plot(sum(each["covered"]), each["precision"], "s", color=drawing.ORANGE, markersize=4, clip_on=False)
        least = axes.dataLim.ymin
        axes.set(xlim=(0, 1), ylim=(least - 0.1 * (1.01 - least), 1.0), xlabel="texts answered", ylabel="precision")
        axes.yaxis.set_major_locator(drawing.locator(5, integer=False))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
        axes.grid(axis="y")
        axes.text(0, 1.06, "line: a class, and its 90 % interval; squares: as asked", transform=axes.transAxes)
        return drawing.svg(figure, "Precision of the answers by the share of the texts that are answered")
