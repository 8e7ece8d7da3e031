"""Tables, figures and sentences about a network's scores on one split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crepe_dist import wording
from crepe_dist.data.alphabet import read_of_long
from crepe_dist.reports import score_figures
from crepe_dist.reports.uncertainty import interval
from crepe_dist.runs.checkpoint import AnyScores
from crepe_dist.runs.label_scores import LabelScores
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

Tile = tuple[str, str, list[str]]  # name, value and notes


def view(
    scores: Scores, classes: list[str], quotes: Sequence[Quote | None] | None, encoding: Mapping[str, Any]
) -> dict[str, Any]:
    """Compute the values for the template ``scores.html``."""
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
    mistakes = [_mistake(*pair, classes, encoding) for pair in zip(scores.mistakes, quotes)]
    return {
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


def label_view(scores: LabelScores, classes: list[str]) -> dict[str, Any]:
    """Compute the values for the template ``labels.html``."""
    rows = table(scores, classes)
    tested = [row for row in rows if row["documents"]]
    return {
        "rows": sorted(rows, key=lambda row: (-row["documents"], row["name"])),
        "weakest": sorted(tested, key=lambda row: row["f1"])[:MAX_WEAKEST] if len(rows) > MAX_OPEN_ROWS else [],
        "calibration": percent(scores.calibration_error),
    }


def tiles(scores: Scores, classes: list[str], split: str, training: list[int] | None = None) -> list[Tile]:
    """Return the scores for the top of a page."""
    low, high = interval(round(scores.accuracy * scores.documents), scores.documents)
    _, baseline = majority(scores, classes, training)
    f1 = scores.f1
    weakest = int(np.where(scores.tested, f1, np.inf).argmin())
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


def label_tiles(scores: LabelScores, split: str) -> list[Tile]:
    """Return the scores of several labels for the top of a page."""
    precision, recall = scores.micro
    top = [f"precision at {k}: {percent(value)}" for k, value in scores.precision_at.items()]
    exact = [] if scores.exact is None else [f"all labels right: {percent(scores.exact)} of the texts"]
    return [
        (
            f"{split} micro F1",
            percent(scores.accuracy),
            [f"precision {percent(precision)}, recall {percent(recall)}", counted(scores.documents, "text"), *exact],
        ),
        ("macro F1", f"{scores.macro_f1:.3f}", [counted(len(scores.tested), "class", "classes")]),
        ("mean average precision", f"{scores.mean_average_precision:.3f}", top),
    ]


def majority(scores: Scores, classes: list[str], training: list[int] | None) -> tuple[int, float]:
    """Return the most frequent class (of the training rows, if known), and the accuracy of always answering it."""
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
    rows = []
    for threshold in (0, *THRESHOLDS):
        documents, right, _ = scores.reliability[threshold:].sum(axis=0).tolist()
        if documents and (not threshold or documents < scores.documents):
            rows.append(
                {
                    "least": f"{100 * threshold / BINS:.0f} %" if threshold else "any",
                    "share": percent(documents, scores.documents),
                    "accuracy": percent(right, documents),
                }
            )
    return rows


def is_overconfident(scores: Scores) -> bool:
    """Return whether the predicted probabilities are higher than the accuracy, overall."""
    _, right, probability = scores.reliability.T
    return float(probability.sum()) / MILLION > float(right.sum())


def unanswered(
    scores: Scores, classes: list[str], rows: Sequence[int] | None = None, *, trains_longer: bool = True
) -> dict[str, str] | None:
    """Warn about tested classes that were never predicted (``what``, ``why``, ``do``); ``None`` if there are none."""
    places = np.flatnonzero(scores.tested & ~scores.predicted)
    missed = [cut(classes[place], LABEL_CELLS) for place in places]
    if not missed:
        return None
    more = f" and {number(len(missed) - MAX_NAMES)} more" if len(missed) > MAX_NAMES else ""
    if rows is not None and all(rows[place] < FEW_ROWS for place in places):
        remedy = f"collect more such texts (fewer than {FEW_ROWS} training rows each), or merge classes"
    else:
        remedy = "train longer (--epochs), " if trains_longer else ""
        remedy += "read the training curves in the run's report.html, or collect more such texts"
    return {
        "what": f"{counted(len(missed), 'class is', 'classes are')} never predicted",
        "why": ", ".join(missed[:MAX_NAMES]) + more,
        "do": remedy,
    }


def table(scores: AnyScores, classes: list[str]) -> list[dict[str, Any]]:
    """Tabulate precision, recall and F1, one row per class.

    There is also the most frequent confusion of a class (``taken``), or the threshold of one of several labels and its
    average precision.
    """
    if isinstance(scores, Scores):
        documents, right, more = scores.confusion.sum(axis=1), np.diag(scores.confusion), _confused(scores, classes)
    else:
        documents, right, more = scores.class_documents, scores.decisions[:, 0], _thresholds(scores)
    rows = []
    for name, count, hits, is_predicted, precision, recall, f1, cells in zip(
        classes,
        documents.tolist(),
        right.tolist(),
        scores.predicted,
        scores.precision.tolist(),
        scores.recall.tolist(),
        scores.f1.tolist(),
        more,
    ):
        low, high = interval(hits, count)
        rows.append(
            {
                "name": cut(name, LABEL_CELLS),
                "documents": count,
                "precision": percent(precision) if is_predicted else "–",
                "recall": percent(recall) if count else "–",
                "interval": f"{100 * low:.0f}–{100 * high:.0f}" if count else "–",
                "f1": f1 if count else None,
                **cells,
            }
        )
    return rows


def _confused(scores: Scores, classes: list[str]) -> list[dict[str, Any]]:
    wrong = scores.confusion.copy()
    np.fill_diagonal(wrong, 0)
    return [
        {"taken": f"{cut(classes[index], LABEL_CELLS)} ({number(count)})" if count else ""}
        for index, count in zip(wrong.argmax(axis=1).tolist(), wrong.max(axis=1).tolist())
    ]


def _thresholds(scores: LabelScores) -> list[dict[str, Any]]:
    return [
        {"average": average if has else None, "threshold": percent(threshold)}
        for average, threshold, has in zip(scores.average_precision.tolist(), scores.thresholds.tolist(), scores.tested)
    ]


def _mistake(mistake: Mistake, quote: Quote | None, classes: list[str], encoding: Mapping[str, Any]) -> dict[str, Any]:
    length = len(quote.text) if quote else 0
    read = f"of {number(length)} characters, {read_of_long(encoding)} are read" * (length > encoding["feature_len"])
    return {
        "place": wording.excerpt(quote.place) if quote else f"row {number(mistake.row)}",
        "true": classes[mistake.true],
        "probability": percent(mistake.probability),
        "ranking": [(classes[index], percent(probability)) for index, probability in mistake.ranking],
        "text": None if quote is None else wording.excerpt(quote.text, MAX_QUOTE_CHARS),
        "length": read,
    }
