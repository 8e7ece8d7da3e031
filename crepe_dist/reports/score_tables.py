"""Tables, figures and sentences about a network's scores on one split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crepe_dist import wording
from crepe_dist.data.alphabet import read_of_long
from crepe_dist.reports import score_figures
from crepe_dist.reports.uncertainty import interval
from crepe_dist.runs.run_record import Quote
from crepe_dist.runs.scores import BINS, MILLION, Mistake, Scores
from crepe_dist.wording import counted, cut, number, percent

FEW_ROWS = 50  # a class with fewer training rows is not helped by longer training
MAX_PAIRS = 10
MAX_NAMES = 30
MAX_OPEN_ROWS = 30  # a longer table is folded, and the weakest classes are shown above it
MAX_WEAKEST = 15
TILE_CELLS = 24  # width of a class name in a tile
LABEL_CELLS = 60  # width of a class name in a table or a sentence
MAX_QUOTE_CHARS = 600
THRESHOLDS = (6, 9, 12, 14)  # in intervals of the predicted probability: 40, 60, 80 and 93 %
SMALL_CALIBRATION_ERROR, LARGE_CALIBRATION_ERROR = 0.03, 0.1


def view(
    scores: Scores, classes: list[str], quotes: Sequence[Quote | None] | None, encoding: Mapping[str, Any]
) -> dict[str, Any]:
    """Compute the values for the template ``scores.html``.

    Args:
        classes: class names, after ``wording.clean``.
        quotes: texts of ``scores.mistakes``; ``None`` for texts that are not available, or instead of the list.
        encoding: encoding of the texts, as in ``Encoding.to_dict``.
    """
    rows = table(scores, classes)
    weakest = sorted((row for row in rows if row["documents"]), key=lambda row: (row["f1"], -row["documents"]))[
        :MAX_WEAKEST
    ]
    pairs = [
        {"true": classes[true], "predicted": classes[predicted], "documents": count,
         "share": percent(count, int(scores.confusion[true].sum()))}
        for true, predicted, count in scores.confused(MAX_PAIRS)
    ]  # fmt: skip
    quotes = quotes if quotes is not None else [None] * len(scores.mistakes)
    mistakes = [_mistake(each, classes, quote, encoding) for each, quote in zip(scores.mistakes, quotes)]
    return {
        "documents": scores.documents,
        "wrong": scores.documents - int(np.trace(scores.confusion)),
        "rows": rows,
        "weakest": weakest if len(rows) > MAX_OPEN_ROWS else [],
        "macro_f1": scores.macro_f1,
        "untested": sum(not row["documents"] for row in rows),
        "pairs": pairs,
        "mistakes": mistakes,
        "calibration": calibration(scores),
        "answered": answered(scores),
        "reduced": score_figures.is_reduced(classes),
        "confusion": score_figures.confusion(scores, classes),
        "reliability": score_figures.reliability(scores),
    }


def tiles(
    scores: Scores, classes: list[str], split: str, training: list[int] | None = None
) -> list[tuple[str, str, list[str]]]:
    """Return the scores for the top of a page: name, value and notes of each.

    Args:
        training: number of training rows in each class, if known.
    """
    low, high = interval(round(scores.accuracy * scores.documents), scores.documents)
    _, baseline = majority(scores, classes, training)
    f1, tested = scores.f1, scores.confusion.any(axis=1)
    weakest = int(np.where(tested, f1, np.inf).argmin())
    error = scores.calibration_error
    verdict = "overconfident" if is_overconfident(scores) else "underconfident"
    return [
        (
            f"{split} accuracy",
            percent(scores.accuracy),
            [
                f"95 % interval: {percent(low)} to {percent(high)}",
                f"{counted(scores.documents, 'text')}; majority class: {percent(baseline)}",
            ],
        ),
        (
            "macro F1",
            f"{scores.macro_f1:.3f}",
            [
                counted(len(classes), "class", "classes"),
                f"lowest: {f1[weakest]:.3f}, {cut(classes[weakest], TILE_CELLS)}",
            ],
        ),
        (
            "calibration error",
            percent(error),
            [
                "well calibrated" if error < SMALL_CALIBRATION_ERROR else verdict,
                *([f"before the temperature: {percent(scores.uncalibrated_error)}"] if is_calibrated(scores) else []),
                "mean gap of probability and accuracy",
            ],
        ),
    ]


def headline(accuracy: float, documents: int, split: str = "test") -> str:
    """State the accuracy with its 95 % interval; without the interval if ``documents`` is 0 (unknown)."""
    if not documents:
        return f"The {split} accuracy is {percent(accuracy)}."
    low, high = interval(round(accuracy * documents), documents)
    return (
        f"The {split} accuracy is {percent(accuracy)} on {counted(documents, 'text')} "
        f"(95 % interval: {percent(low)} to {percent(high)})."
    )


def majority(scores: Scores, classes: list[str], training: list[int] | None) -> tuple[int, float]:
    """Compute the majority-class baseline: the most frequent class, and the accuracy of always answering it.

    Args:
        training: number of training rows in each class; ``None`` falls back to the counts of the scored split.
    """
    true = scores.confusion.sum(axis=1)
    counts = training if training and len(training) == len(classes) else true.tolist()
    most = counts.index(max(counts))
    return most, float(true[most] / true.sum())


def calibration(scores: Scores) -> str:
    """Describe how well the predicted probabilities are calibrated."""
    error = scores.calibration_error
    sentence = f"The expected calibration error of its probabilities is {percent(error)}"
    if is_calibrated(scores):
        sentence += f" ({percent(scores.uncalibrated_error)} before temperature {scores.calibration.temperature:.2f})"
    if error < SMALL_CALIBRATION_ERROR:
        return f"{sentence}: it is well calibrated."
    strength = "far " if error > LARGE_CALIBRATION_ERROR else ""
    tendency = "too high (overconfident)" if is_overconfident(scores) else "too low (underconfident)"
    return f"{sentence}; overall they are {strength}{tendency}."


def is_calibrated(scores: Scores) -> bool:
    """Return whether the probabilities have a temperature of their own."""
    return scores.calibration.temperature != 1


def answered(scores: Scores) -> list[dict[str, str]]:
    """Tabulate the share of texts that reach a probability, and the accuracy on them, for some thresholds."""
    found = []
    for place in (0, *THRESHOLDS):
        documents, right, _ = scores.reliability[place:].sum(axis=0).tolist()
        if documents and (not place or documents < scores.documents):
            found.append(
                {
                    "least": f"{100 * place / BINS:.0f} %" if place else "any",
                    "share": percent(documents, scores.documents),
                    "accuracy": percent(right, documents),
                }
            )
    return found


def is_overconfident(scores: Scores) -> bool:
    """Return whether the predicted probabilities are higher than the accuracy, overall."""
    _, right, probability = scores.reliability.T
    return float(probability.sum()) / MILLION > float(right.sum())


def unanswered(
    scores: Scores, classes: list[str], rows: Sequence[int] | None = None, *, trains_longer: bool = True
) -> dict[str, str] | None:
    """Warn about classes that were never predicted (``what``, ``why``, ``do``); ``None`` if there are none.

    Args:
        scores: result on the test split.
        classes: names of all classes.
        rows: training rows of each class, if known. With fewer than ``FEW_ROWS``, only more texts help.
        trains_longer: recommend to train longer; false for a model that overfits.
    """
    missed = [
        cut(name, LABEL_CELLS) + ("" if true else " (not in the test split)")
        for name, true, predicted in zip(classes, scores.confusion.any(axis=1), scores.confusion.any(axis=0))
        if not predicted
    ]
    if not missed:
        return None
    more = f" and {number(len(missed) - MAX_NAMES)} more" if len(missed) > MAX_NAMES else ""
    answered = scores.confusion.any(axis=0)
    if rows is not None and all(count < FEW_ROWS for count, seen in zip(rows, answered) if not seen):
        remedy = f"collect more such texts (fewer than {FEW_ROWS} training rows each), or merge classes"
    else:
        remedy = "train longer (--epochs), " if trains_longer else ""
        remedy += "read the training curves in the run's report.html, or collect more such texts"
    return {
        "what": f"{counted(len(missed), 'class is', 'classes are')} never predicted",
        "why": ", ".join(missed[:MAX_NAMES]) + more,
        "do": remedy,
    }


def table(scores: Scores, classes: list[str]) -> list[dict[str, Any]]:
    """Tabulate precision, recall, F1 and the most frequent confusion, one row per class."""
    true, predicted = scores.confusion.sum(axis=1).tolist(), scores.confusion.sum(axis=0).tolist()
    precision, recall, f1 = scores.precision.tolist(), scores.recall.tolist(), scores.f1.tolist()
    wrong = scores.confusion.copy()
    np.fill_diagonal(wrong, 0)
    mistaken_for = wrong.argmax(axis=1).tolist()
    rows = []
    for index, name in enumerate(classes):
        other = mistaken_for[index]
        count = int(wrong[index, other])
        rows.append(
            {
                "name": cut(name, LABEL_CELLS),
                "documents": true[index],
                "precision": percent(precision[index]) if predicted[index] else "–",
                "recall": percent(recall[index]) if true[index] else "–",
                "interval": _interval(round(recall[index] * true[index]), true[index]),
                "f1": f1[index] if true[index] else None,
                "taken": f"{cut(classes[other], LABEL_CELLS)} ({number(count)})" if count else "",
            }
        )
    return rows


def _interval(right: int, documents: int) -> str:
    if not documents:
        return "–"
    low, high = interval(right, documents)
    return f"{100 * low:.0f}–{100 * high:.0f}"


def _mistake(mistake: Mistake, classes: list[str], quote: Quote | None, encoding: Mapping[str, Any]) -> dict[str, Any]:
    length = len(quote.text) if quote else 0
    is_cut = length > encoding["feature_len"]
    read = f"of {number(length)} characters, {read_of_long(encoding)} are read" if is_cut else ""
    return {
        "place": wording.visible(quote.place) if quote else f"row {number(mistake.row)}",
        "true": classes[mistake.true],
        "probability": percent(mistake.probability),
        "ranking": [(classes[index], percent(probability)) for index, probability in mistake.ranking],
        "text": None if quote is None else wording.visible(quote.text, MAX_QUOTE_CHARS),
        "length": read,
    }
