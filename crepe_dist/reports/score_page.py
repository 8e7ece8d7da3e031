"""Scores of a model on one split: the page of ``evaluate --html`` and the section "Scores" of a run's report.

``page`` renders the page of ``evaluate --html``. ``template_values`` computes the values for the template
``scores.html``, which both pages include. The terminal output also uses the warnings, the intervals and the class
table. Class names and texts are untrusted.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from crepe_dist import formatting
from crepe_dist.data.char_encoder import describe_truncation
from crepe_dist.data.dataset import Dataset
from crepe_dist.formatting import number, percent, pluralize, truncate_to_width
from crepe_dist.model.calibration import reverse_cumsum, wilson_lower_bound
from crepe_dist.reports import drawing
from crepe_dist.reports.page import render
from crepe_dist.runs.group_bootstrap import Z
from crepe_dist.runs.scores import BINS, MILLION, AnyScores, MulticlassScores, MultilabelScores
from crepe_dist.version import __version__

MAX_PAIRS = 10  # Number of most frequent confusions on the page.
MAX_NAMES = 30  # Number of class names in a warning.
MAX_OPEN_ROWS = 30  # A table with more rows than this is collapsed, and the weakest classes are shown above it.
MAX_WEAKEST = 15  # Maximum number of weakest classes above a collapsed table.
TILE_CELLS = 24  # Maximum width of a class name in a tile, in characters.
LABEL_CELLS = 60  # Maximum width of a class name in a table or a sentence, in characters.
MAX_QUOTE_CHARS = 600  # Maximum length of the text of a mistake.
# If the expected calibration error is below the first limit, the probabilities are described as well calibrated. If it
# is above the second limit, a warning is shown.
SMALL_CALIBRATION_ERROR, LARGE_CALIBRATION_ERROR = 0.03, 0.1
# With more classes than this, the confusion matrix shows the most confused classes, and merges the others.
MAX_MATRIX_CLASSES = 30
MATRIX_LABEL_CELLS = 20  # Maximum width of a class name in the confusion matrix, in characters.
OTHER_CLASSES = "other classes"

Tile = tuple[str, str, list[str]]  # name, value and notes


class QuotedRow(NamedTuple):
    """Text of a document, either original or decoded from the character ids, and the place that it was read from."""

    text: str
    place: str


def quote_rows(data: Dataset, name: str, rows: Iterable[int]) -> list[QuotedRow | None]:
    """Return the texts of rows of a split; ``None`` for rows that do not exist."""
    split = data.splits.get(name)
    return [
        QuotedRow(data.text(name, row), str(data.origin(name, row))) if split and row < len(split) else None
        for row in rows
    ]


def page(scores: AnyScores, classes: list[str], quotes: Sequence[QuotedRow | None], about: dict[str, Any]) -> str:
    """Render the page of ``python -m crepe_dist evaluate --html``."""
    classes, about = formatting.escape_nested(classes), formatting.escape_nested(about)
    tiles = summary_tiles(scores, classes, about["split"])
    if isinstance(scores, MulticlassScores):
        notes = ["mean cross-entropy, in nats"]
        if scores.calibration.temperature != 1:
            notes.append(f"before the temperature: {scores.uncalibrated_loss:.4f}")
        tiles.append(("loss", f"{scores.loss:.4f}", notes))
    values = template_values(scores, classes, quotes, about["encoding"])
    return render("evaluation.html", version=__version__, about=about, headline=tiles, scores=values)


def interval(right: Any, documents: Any) -> tuple[Any, Any]:
    """Compute Wilson's 95 % interval of ``right / documents`` (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    return wilson_lower_bound(documents, right, Z), 1 - wilson_lower_bound(documents, documents - right, Z)


def accuracy_interval(scores: MulticlassScores) -> tuple[float, float]:
    """Compute the 95 % interval of the accuracy. If the documents have groups, bootstrap over the groups."""
    if (bounds := scores.group_interval()) is not None:
        return bounds
    low, high = interval(round(scores.accuracy * scores.documents), scores.documents)
    return float(low), float(high)


def describe_interval(scores: MulticlassScores) -> str:
    """Describe the 95 % interval of the accuracy, and the number of groups if the documents have groups."""
    low, high = accuracy_interval(scores)
    return f"95 % interval{over_groups(scores)}: {percent(low)} to {percent(high)}"


def over_groups(scores: MulticlassScores) -> str:
    """Return the end of a phrase that says that an interval is over groups; empty if the documents have no groups."""
    return "" if scores.num_groups is None else f" over {pluralize(scores.num_groups, 'group')}"


def template_values(
    scores: AnyScores, classes: list[str], quotes: Sequence[QuotedRow | None] | None, encoding: Mapping[str, Any]
) -> dict[str, Any]:
    """Compute the values for the template ``scores.html``."""
    rows = table(scores, classes)
    weakest = sorted((row for row in rows if row["documents"]), key=lambda row: (row["f1"], -row["documents"]))
    common: dict[str, Any] = {"rows": rows, "weakest": weakest[:MAX_WEAKEST] if len(rows) > MAX_OPEN_ROWS else []}
    if isinstance(scores, MultilabelScores):
        rows.sort(key=lambda row: (-row["documents"], row["name"]))
        calibration = percent(scores.calibration_error)
        common |= {"is_multilabel": True, "has_groups": False}  # Multilabel intervals are computed from rows.
        return {**common, "calibration": calibration, "selective": selective_table(scores)}
    totals = scores.support
    quotes = quotes or [None] * len(scores.mistakes)
    return {
        **common,
        "is_multilabel": False,
        "has_groups": scores.num_groups is not None,
        "wrong": scores.documents - int(np.trace(scores.confusion)),
        "macro_f1": scores.macro_f1,
        "pairs": [
            (classes[true], classes[predicted], count, percent(count, int(totals[true])))
            for true, predicted, count in scores.top_confusions(MAX_PAIRS)
        ],
        "mistakes": [
            {
                "place": formatting.excerpt(quote.place) if quote else f"row {number(mistake.row)}",
                "true": classes[mistake.true],
                "probability": percent(mistake.probability),
                "ranking": [(classes[index], percent(probability)) for index, probability in mistake.ranking],
                "text": formatting.excerpt(quote.text, MAX_QUOTE_CHARS) if quote else None,
                "read": describe_truncation(encoding) if quote and len(quote.text) > encoding["feature_len"] else "",
            }
            for mistake, quote in zip(scores.mistakes, quotes)
        ],
        "calibration": describe_calibration(scores),
        "selective": selective_table(scores),
        "reduced": len(classes) > MAX_MATRIX_CLASSES,
        "confusion": _confusion_matrix(scores, classes),
        "reliability": _reliability_diagram(scores),
        "coverage": _coverage_curve(scores) if scores.confidence_histogram.any() else "",
    }


def summary_tiles(scores: AnyScores, classes: list[str], split: str, training: list[int] | None = None) -> list[Tile]:
    """Return the tiles with the most important scores, for the top of a page.

    Args:
        training: Number of training rows in each class, if known.
    """
    texts = pluralize(scores.documents, "text")
    if isinstance(scores, MultilabelScores):
        precision, recall = scores.micro_precision_recall
        exact = (
            [] if scores.exact_match is None else [f"all labels correct: {percent(scores.exact_match)} of the texts"]
        )
        notes = [f"precision {percent(precision)}, recall {percent(recall)}", texts, *exact]
        return [
            (f"{split} micro F1", percent(scores.accuracy), notes),
            ("macro F1", f"{scores.macro_f1:.3f}", [pluralize(len(classes), "class", "classes")]),
            ("mean average precision", f"{scores.mean_average_precision:.3f}", []),
            (
                "calibration error",
                percent(scores.calibration_error),
                ["mean difference between probability and label frequency"],
            ),
        ]
    baseline = f"{texts}; majority class: {percent(majority(scores, training)[1])}"
    weakest = int(np.where(scores.has_support, scores.f1, np.inf).argmin())
    lowest = f"lowest: {scores.f1[weakest]:.3f}, {truncate_to_width(classes[weakest], TILE_CELLS)}"
    error, tendency = scores.calibration_error, "overconfident" if is_overconfident(scores) else "underconfident"
    notes = ["well calibrated" if error < SMALL_CALIBRATION_ERROR else tendency]
    if scores.calibration.temperature != 1:
        notes.append(f"before the temperature: {percent(scores.uncalibrated_error)}")
    return [
        (
            f"{split} accuracy",
            percent(scores.accuracy),
            [describe_interval(scores), baseline],
        ),
        ("macro F1", f"{scores.macro_f1:.3f}", [pluralize(len(classes), "class", "classes"), lowest]),
        ("calibration error", percent(error), [*notes, "mean difference between probability and accuracy"]),
    ]


def majority(scores: MulticlassScores, training: list[int] | None) -> tuple[int, float]:
    """Return the majority class, and the accuracy of a model that always predicts it.

    The majority class is the most frequent class of the training rows. If the numbers of training rows are unknown, the
    majority class is the most frequent class of the split.
    """
    true = scores.support
    counts = training if training and len(training) == len(true) else true.tolist()
    most = counts.index(max(counts))
    return most, float(true[most] / true.sum())


def describe_calibration(scores: MulticlassScores) -> str:
    """Describe how well the predicted probabilities are calibrated."""
    error, temperature = scores.calibration_error, scores.calibration.temperature
    before = f" ({percent(scores.uncalibrated_error)} before temperature {temperature:.2f})" if temperature != 1 else ""
    verdict = "they are well calibrated"
    if error >= SMALL_CALIBRATION_ERROR:
        tendency = "too high (overconfident)" if is_overconfident(scores) else "too low (underconfident)"
        verdict = f"they are {'far ' * (error > LARGE_CALIBRATION_ERROR)}{tendency}"
    return f"The expected calibration error of the probabilities is {percent(error)}{before}: {verdict}."


def selective_table(scores: AnyScores) -> list[list[str]]:
    """Return the table of selective predictions. The first row contains the headings.

    A row contains a required precision, its threshold, the coverage (the fraction of the texts or labels that are
    predicted at this threshold), and the precision on the split. For multilabel models, there is no column for the
    threshold. Return an empty list if there are no selective predictions.
    """
    rows, headings = [], ["coverage of labels"] if scores.is_multilabel else ["threshold", "coverage"]
    for selective in scores.selective_scores:
        threshold = [] if scores.is_multilabel else [percent(selective["thresholds"][0])]
        precision = f"{selective['precision']:.3f}"
        rows.append([f"{selective['asked']:.2f}", *threshold, percent(selective["covered"]), precision])
    return [["required precision", *headings, "precision"], *rows] if rows else []


def is_overconfident(scores: MulticlassScores) -> bool:
    """Return True if the mean predicted probability is higher than the accuracy."""
    _, right, probability = scores.reliability.T
    return float(probability.sum()) / MILLION > float(right.sum())


def never_predicted_warning(scores: MulticlassScores, classes: list[str]) -> dict[str, str] | None:
    """Warn about classes with test texts that were never predicted. Return ``None`` if there are none."""
    indices = np.flatnonzero(scores.has_support & ~scores.is_predicted)
    if not len(indices):
        return None
    names = ", ".join(truncate_to_width(classes[index], LABEL_CELLS) for index in indices[:MAX_NAMES])
    return {
        "what": f"{pluralize(len(indices), 'class is', 'classes are')} never predicted",
        "why": names + (", …" if len(indices) > MAX_NAMES else ""),
    }


def table(scores: AnyScores, classes: list[str]) -> list[dict[str, Any]]:
    """Tabulate precision, recall and F1, one row per class.

    A row of single-label scores also has the most frequent confusion of the class (``confused_with``). A row of
    multilabel scores has the threshold of the label (``threshold``) and its average precision (``average``).
    """
    documents, tested, predicted, f1 = scores.support, scores.has_support, scores.is_predicted, scores.f1
    precision, recall = scores.precision, scores.recall
    confused = reversed(scores.top_confusions()) if isinstance(scores, MulticlassScores) else ()
    # The order is reversed, so the most frequent confusion of a class comes last and replaces the others.
    most_confused = {true: (predicted, texts) for true, predicted, texts in confused}
    rows = []
    for index, name in enumerate(classes):
        count, is_tested = int(documents[index]), bool(tested[index])
        bounds = scores.group_interval(index) if isinstance(scores, MulticlassScores) and is_tested else None
        low, high = bounds or interval(round(float(recall[index]) * count), count)
        row = {
            "name": truncate_to_width(name, LABEL_CELLS),
            "documents": count,
            "precision": percent(precision[index]) if predicted[index] else "–",
            "recall": percent(recall[index]) if is_tested else "–",
            "interval": f"{100 * low:.0f}–{100 * high:.0f}" if is_tested else "–",
            "f1": float(f1[index]) if is_tested else None,
        }
        if isinstance(scores, MulticlassScores):
            most, texts = most_confused.get(index, (0, 0))
            row["confused_with"] = f"{truncate_to_width(classes[most], LABEL_CELLS)} ({number(texts)})" if texts else ""
        else:
            row["average"] = float(scores.average_precision[index]) if is_tested else None
            row["threshold"] = percent(scores.thresholds[index])
        rows.append(row)
    return rows


def _confusion_matrix(scores: MulticlassScores, classes: list[str]) -> list[tuple[str, list[tuple[int, float]]]]:
    """Return the confusion matrix.

    Each row contains the true class, and for each predicted class the number and the proportion of the texts.
    """
    names = [truncate_to_width(name, MATRIX_LABEL_CELLS) for name in classes]
    matrix = scores.confusion
    if len(names) > MAX_MATRIX_CLASSES:  # Show the classes that are confused most, and merge the other classes.
        pairs = [pair[:2] for pair in scores.top_confusions(MAX_MATRIX_CLASSES * MAX_MATRIX_CLASSES)]
        shown = sorted(list(dict.fromkeys(sum(pairs, ())))[: MAX_MATRIX_CLASSES - 1])
        index = np.full(len(names), len(shown))
        index[shown] = range(len(shown))
        matrix = np.zeros((len(shown) + 1, len(shown) + 1), dtype=np.int64)
        true, predicted, documents = scores.confusion_cells
        np.add.at(matrix, (index[true], index[predicted]), documents)
        names = [*(names[index] for index in shown), OTHER_CLASSES]
    proportions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    return [(name, list(zip(*row))) for name, *row in zip(names, matrix.tolist(), proportions.tolist())]


def _reliability_diagram(scores: MulticlassScores) -> str:
    """Draw the reliability diagram as SVG: accuracy against the predicted probability (Guo et al. 2017)."""
    from matplotlib.colors import to_rgba

    documents, right, probability = scores.reliability.T
    used = documents > 0
    with drawing.style():
        height = 3.4
        figure, axes = drawing.blank(height, left=0.65, right=0.25, bottom=0.95, top=0.3)
        edges = np.arange(BINS) / BINS
        accuracies = np.divide(right, documents, out=np.zeros(BINS), where=used)
        means = np.divide(probability / MILLION, documents, out=np.zeros(BINS), where=used)
        axes.bar(edges[used], accuracies[used], width=1 / BINS, align="edge", color=to_rgba(drawing.FOR, 0.45),
                 edgecolor=drawing.BLUE, linewidth=0.8)  # fmt: skip
        axes.plot([0, 1], [0, 1], color=drawing.GREY, linestyle="--", linewidth=1)
        axes.plot(means[used], accuracies[used], "o", color=drawing.RED, markersize=3, clip_on=False, zorder=3)
        percents = [f"{value} %" for value in range(0, 101, 20)]
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


def _coverage_curve(scores: MulticlassScores) -> str:
    """Draw the coverage curve as SVG: the precision against the fraction of the texts that reach each threshold."""
    texts, right = reverse_cumsum(scores.confidence_histogram[:, :2].T)
    texts, right = texts[right > 0], right[right > 0]
    with drawing.style():
        figure, axes = drawing.blank(3.0, left=0.85, right=0.25, bottom=0.45, top=0.3)
        bounds = wilson_lower_bound(texts, right), 1 - wilson_lower_bound(texts, texts - right)
        axes.fill_between(texts / texts[0], *bounds, color=drawing.SKY, alpha=0.25, linewidth=0)
        axes.plot(texts / texts[0], right / texts, color=drawing.BLUE, linewidth=1.6)
        for selective in scores.selective_scores:
            coverage, precision = selective["covered"], selective["precision"]
            axes.plot(coverage, precision, "s", color=drawing.ORANGE, markersize=4, clip_on=False)
        lowest = axes.dataLim.ymin
        axes.set(xlim=(0, 1), ylim=(lowest - 0.1 * (1.01 - lowest), 1.0), xlabel="coverage", ylabel="precision")
        axes.yaxis.set_major_locator(drawing.locator(5, integer=False))
        drawing.label_with_percents(axes.xaxis, axes.yaxis)
        axes.grid(axis="y")
        legend = "line: precision, with its 90 % interval; squares: required precisions"
        axes.text(0, 1.06, legend, transform=axes.transAxes)
        return drawing.svg(figure, "Precision of the predictions by coverage")
