"""Tables, figures and sentences about a network's scores on one split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crepe_dist import formatting
from crepe_dist.data.char_encoder import read_of_long
from crepe_dist.formatting import counted, cut, number, percent
from crepe_dist.model.calibration import lower_bound
from crepe_dist.reports import score_figures
from crepe_dist.runs.run_record import Quote
from crepe_dist.runs.scores import MILLION, AnyScores, LabelScores, Scores

Z = 1.959964  # 97.5 % quantile of the normal distribution
FEW_ROWS = 50  # a class with fewer training rows is not helped by longer training
MAX_PAIRS = 10
MAX_NAMES = 30
MAX_OPEN_ROWS = 30  # a longer table is folded, and the weakest classes are shown above it
MAX_WEAKEST = 15
TILE_CELLS = 24  # width of a class name in a tile
LABEL_CELLS = 60  # width of a class name in a table or a sentence
MAX_QUOTE_CHARS = 600
SMALL_CALIBRATION_ERROR, LARGE_CALIBRATION_ERROR = 0.03, 0.1

Tile = tuple[str, str, list[str]]  # name, value and notes


def interval(right: Any, documents: Any) -> tuple[Any, Any]:
    """Compute Wilson's 95 % interval of ``right / documents`` (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    return lower_bound(documents, right, Z), 1 - lower_bound(documents, documents - right, Z)


def paired_half_width(only_first: int, only_second: int, documents: int) -> float:
    """Compute half the width of Wald's 95 % interval of the difference of two accuracies on the same documents.

    Args:
        only_first, only_second: number of documents that only one of the two models gets right.
    """
    difference = (only_second - only_first) / documents
    variance = (only_first + only_second) / documents - difference**2
    return Z * math.sqrt(max(variance, 0.0) / documents)


def view(
    scores: AnyScores, classes: list[str], quotes: Sequence[Quote | None] | None, encoding: Mapping[str, Any]
) -> dict[str, Any]:
    """Compute the values for the template ``scores.html``."""
    rows = table(scores, classes)
    weakest = sorted((row for row in rows if row["documents"]), key=lambda row: (row["f1"], -row["documents"]))
    common = {"rows": rows, "weakest": weakest[:MAX_WEAKEST] if len(rows) > MAX_OPEN_ROWS else []}
    if isinstance(scores, LabelScores):
        rows.sort(key=lambda row: (-row["documents"], row["name"]))
        return {**common, "several": True, "calibration": percent(scores.calibration_error), "sure": sure(scores)}
    totals = scores.class_documents
    quotes = quotes or [None] * len(scores.mistakes)
    return {
        **common,
        "several": False,
        "wrong": scores.documents - int(np.trace(scores.confusion)),
        "macro_f1": scores.macro_f1,
        "pairs": [
            (classes[true], classes[predicted], count, percent(count, int(totals[true])))
            for true, predicted, count in scores.confused(MAX_PAIRS)
        ],
        "mistakes": [
            {
                "place": formatting.excerpt(quote.place) if quote else f"row {number(mistake.row)}",
                "true": classes[mistake.true],
                "probability": percent(mistake.probability),
                "ranking": [(classes[index], percent(probability)) for index, probability in mistake.ranking],
                "text": formatting.excerpt(quote.text, MAX_QUOTE_CHARS) if quote else None,
                "read": read_of_long(encoding) if quote and len(quote.text) > encoding["feature_len"] else "",
            }
            for mistake, quote in zip(scores.mistakes, quotes)
        ],
        "calibration": calibration(scores),
        "sure": sure(scores),
        "reduced": len(classes) > score_figures.MAX_CLASSES,
        "confusion": score_figures.confusion(scores, classes),
        "reliability": score_figures.reliability(scores),
        "coverage": score_figures.coverage(scores) if scores.answers.any() else "",
    }


def tiles(scores: AnyScores, classes: list[str], split: str, training: list[int] | None = None) -> list[Tile]:
    """Return the scores for the top of a page.

    Args:
        training: number of training rows in each class, if known.
    """
    texts = counted(scores.documents, "text")
    if isinstance(scores, LabelScores):
        precision, recall = scores.micro
        exact = [] if scores.exact is None else [f"all labels right: {percent(scores.exact)} of the texts"]
        notes = [f"precision {percent(precision)}, recall {percent(recall)}", texts, *exact]
        return [
            (f"{split} micro F1", percent(scores.accuracy), notes),
            ("macro F1", f"{scores.macro_f1:.3f}", [counted(len(classes), "class", "classes")]),
            ("mean average precision", f"{scores.mean_average_precision:.3f}", []),
            ("calibration error", percent(scores.calibration_error), ["mean gap of probability and share of labels"]),
        ]
    low, high = interval(round(scores.accuracy * scores.documents), scores.documents)
    baseline = f"{texts}; majority class: {percent(majority(scores, training)[1])}"
    weakest = int(np.where(scores.tested, scores.f1, np.inf).argmin())
    lowest = f"lowest: {scores.f1[weakest]:.3f}, {cut(classes[weakest], TILE_CELLS)}"
    error, tendency = scores.calibration_error, "overconfident" if is_overconfident(scores) else "underconfident"
    notes = ["well calibrated" if error < SMALL_CALIBRATION_ERROR else tendency]
    if scores.calibration.temperature != 1:
        notes.append(f"before the temperature: {percent(scores.uncalibrated_error)}")
    return [
        (
            f"{split} accuracy",
            percent(scores.accuracy),
            [f"95 % interval: {percent(low)} to {percent(high)}", baseline],
        ),
        ("macro F1", f"{scores.macro_f1:.3f}", [counted(len(classes), "class", "classes"), lowest]),
        ("calibration error", percent(error), [*notes, "mean gap of probability and accuracy"]),
    ]


def majority(scores: Scores, training: list[int] | None) -> tuple[int, float]:
    """Return the most frequent class (of the training rows, if known), and the accuracy of always answering it."""
    true = scores.class_documents
    counts = training if training and len(training) == len(true) else true.tolist()
    most = counts.index(max(counts))
    return most, float(true[most] / true.sum())


def calibration(scores: Scores) -> str:
    """Describe how well the predicted probabilities are calibrated."""
    error, temperature = scores.calibration_error, scores.calibration.temperature
    before = f" ({percent(scores.uncalibrated_error)} before temperature {temperature:.2f})" if temperature != 1 else ""
    verdict = "it is well calibrated"
    if error >= SMALL_CALIBRATION_ERROR:
        tendency = "too high (overconfident)" if is_overconfident(scores) else "too low (underconfident)"
        verdict = f"they are {'far ' * (error > LARGE_CALIBRATION_ERROR)}{tendency}"
    return f"The expected calibration error of its probabilities is {percent(error)}{before}: {verdict}."


def sure(scores: AnyScores) -> list[list[str]]:
    """Tabulate the answers that are as sure as asked, below a row of headings; empty without any."""
    rows, head = [], ["labels found" if scores.several else "texts"]
    for each in scores.sure_answers:
        *above, of_class = each["covered"]
        least = [] if scores.several or above else [percent(each["thresholds"][0])]
        found = [of_class, *above[::-1], 1 - sum(each["covered"])] if above else [of_class]
        rows.append([f"{each['asked']:.2f}", *least, *map(percent, found), f"{each['precision']:.3f}"])
        head = ["a class", *(f"level {number}" for number in range(len(above), 0, -1)), "none"] if above else head
    return [["asked", *["threshold"] * (len(rows[0]) - len(head) - 2), *head, "precision"], *rows] if rows else []


def is_overconfident(scores: Scores) -> bool:
    """Return whether the predicted probabilities are higher than the accuracy, overall."""
    _, right, probability = scores.reliability.T
    return float(probability.sum()) / MILLION > float(right.sum())


def unanswered(
    scores: Scores, classes: list[str], rows: Sequence[int] | None, *, trains_longer: bool = True
) -> dict[str, str] | None:
    """Warn about tested classes that were never predicted (``what``, ``why``, ``do``); ``None`` if there are none."""
    places = np.flatnonzero(scores.tested & ~scores.predicted)
    if not len(places):
        return None
    names = ", ".join(cut(classes[place], LABEL_CELLS) for place in places[:MAX_NAMES])
    if rows is not None and all(rows[place] < FEW_ROWS for place in places):
        remedy = f"collect more such texts (fewer than {FEW_ROWS} training rows each), or merge classes"
    else:
        remedy = f"{'train longer (--epochs), ' * trains_longer}read the training curves, or collect more such texts"
    return {
        "what": f"{counted(len(places), 'class is', 'classes are')} never predicted",
        "why": names + (", …" if len(places) > MAX_NAMES else ""),
        "do": remedy,
    }


def table(scores: AnyScores, classes: list[str]) -> list[dict[str, Any]]:
    """Tabulate precision, recall and F1, one row per class.

    There is also the most frequent confusion of a class (``taken``), or the threshold of one of several labels and its
    average precision (``average``).
    """
    documents, tested, predicted, f1 = scores.class_documents, scores.tested, scores.predicted, scores.f1
    precision, recall = scores.precision, scores.recall
    confused = reversed(scores.confused()) if isinstance(scores, Scores) else ()
    taken = {true: (predicted, texts) for true, predicted, texts in confused}  # the most frequent one of a class stays
    rows = []
    for index, name in enumerate(classes):
        count, is_tested = int(documents[index]), bool(tested[index])
        low, high = interval(round(float(recall[index]) * count), count)
        row = {
            "name": cut(name, LABEL_CELLS),
            "documents": count,
            "precision": percent(precision[index]) if predicted[index] else "–",
            "recall": percent(recall[index]) if is_tested else "–",
            "interval": f"{100 * low:.0f}–{100 * high:.0f}" if is_tested else "–",
            "f1": float(f1[index]) if is_tested else None,
        }
        if isinstance(scores, Scores):
            most, texts = taken.get(index, (0, 0))
            row["taken"] = f"{cut(classes[most], LABEL_CELLS)} ({number(texts)})" if texts else ""
        else:
            row["average"] = float(scores.average_precision[index]) if is_tested else None
            row["threshold"] = percent(scores.thresholds[index])
        rows.append(row)
    return rows
