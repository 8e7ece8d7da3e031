"""The scores of a network on one part of the data, as the pages show them: tables, mistakes, figures, sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from crepe_dist import wording
from crepe_dist.reports import score_figures as figures
from crepe_dist.reports.uncertainty import interval
from crepe_dist.wording import counted, cut, number, percent

if TYPE_CHECKING:
    from crepe_dist.runs.scores import Mistake, Scores

MOST_PAIRS = 10
MOST_NAMES = 30
MOST_OPEN = 30  # classes of a table that is seen at once; of more, the weakest
WEAKEST = 15
LABEL = 60  # cells of a class name in a table or a sentence
QUOTE = 600  # characters
SURE, WELL = 0.1, 0.03  # calibration errors that are large, and small


def view(scores: Scores, classes: list[str], quotes: Sequence[str | None] | None, feature_len: int) -> dict[str, Any]:
    """What the template ``scores.html`` takes.

    Args:
        classes: made visible.
        quotes: the texts of ``scores.mistakes``; ``None`` for one, or for all, where they are not to be had.
        feature_len: characters that the network reads.
    """
    rows = table(scores, classes)
    weakest = sorted((row for row in rows if row["documents"]), key=lambda row: (row["f1"], -row["documents"]))[
        :WEAKEST
    ]
    pairs = [
        {"true": classes[true], "predicted": classes[predicted], "documents": count,
         "share": percent(count, int(scores.confusion[true].sum()))}
        for true, predicted, count in scores.confused(MOST_PAIRS)
    ]  # fmt: skip
    quotes = quotes if quotes is not None else [None] * len(scores.mistakes)
    mistakes = [_mistake(each, classes, quote, feature_len) for each, quote in zip(scores.mistakes, quotes)]
    return {
        "documents": scores.documents,
        "wrong": scores.documents - int(np.trace(scores.confusion)),
        "rows": rows,
        "weakest": weakest if len(rows) > MOST_OPEN else [],
        "macro_f1": scores.macro_f1,
        "textless": sum(not row["documents"] for row in rows),
        "pairs": pairs,
        "mistakes": mistakes,
        "calibration": calibration(scores),
        "calibration_error": scores.calibration_error,
        "reduced": figures.is_reduced(classes),
        "confusion": figures.confusion(scores, classes),
        "reliability": figures.reliability(scores),
    }


def headline(right: float, documents: int, part: str = "test") -> str:
    """The accuracy with its interval; ``documents`` is 0 where it is not known of how many."""
    if not documents:
        return f"{percent(right)} of the {part} texts are classified rightly."
    low, high = interval(round(right * documents), documents)
    return (
        f"{percent(right)} of {counted(documents, f'{part} text')} are classified rightly "
        f"(95 % interval: {percent(low)} to {percent(high)})."
    )


def majority(scores: Scores, classes: list[str], training: list[int] | None) -> tuple[int, float]:
    """The most frequent class, and the accuracy of always answering it.

    Args:
        training: training rows of each class; ``None``: not known, so the most frequent class of this part is taken.
    """
    true = scores.confusion.sum(axis=1)
    counts = training if training and len(training) == len(classes) else true.tolist()
    most = counts.index(max(counts))
    return most, float(true[most] / true.sum())


def calibration(scores: Scores) -> str:
    """Whether its probabilities can be taken at their word."""
    error = scores.calibration_error
    _, right, probability = scores.reliability.T
    surer = float(probability.sum() / 1e6 - right.sum()) / scores.documents
    how = f"On average its probabilities are {percent(error)} off (expected calibration error)"
    if error < WELL:
        return f"{how}: they can be taken as they are."
    tendency = "too high: it is surer than it should be" if surer > 0 else "too low: it is better than it thinks"
    strength = "far " if error > SURE else ""
    return f"{how}; as a whole they are {strength}{tendency}."


def unanswered(scores: Scores, classes: list[str]) -> dict[str, str] | None:
    """What is to be said of the classes that were the answer to no text (what, why, do); ``None`` if there are none."""
    missed = [
        cut(name, LABEL) + ("" if true else " (no text of it was tested)")
        for name, true, predicted in zip(classes, scores.confusion.any(axis=1), scores.confusion.any(axis=0))
        if not predicted
    ]
    if not missed:
        return None
    more = f" and {number(len(missed) - MOST_NAMES)} more" if len(missed) > MOST_NAMES else ""
    return {
        "what": f"{counted(len(missed), 'class is', 'classes are')} never answered",
        "why": ", ".join(missed[:MOST_NAMES]) + more,
        "do": "train longer (--epochs), look at the curves in the run's report.html, or gather more texts of these",
    }


def table(scores: Scores, classes: list[str]) -> list[dict[str, Any]]:
    true, predicted = scores.confusion.sum(axis=1).tolist(), scores.confusion.sum(axis=0).tolist()
    precision, recall, f1 = scores.precision.tolist(), scores.recall.tolist(), scores.f1.tolist()
    wrong = scores.confusion.copy()
    np.fill_diagonal(wrong, 0)
    taken = wrong.argmax(axis=1).tolist()
    rows = []
    for index, name in enumerate(classes):
        count = int(wrong[index, taken[index]])
        rows.append(
            {
                "name": cut(name, LABEL),
                "documents": true[index],
                "precision": percent(precision[index]) if predicted[index] else "–",
                "recall": percent(recall[index]) if true[index] else "–",
                "interval": _interval(round(recall[index] * true[index]), true[index]),
                "f1": f1[index] if true[index] else None,
                "taken": f"{cut(classes[taken[index]], LABEL)} ({number(count)})" if count else "",
            }
        )
    return rows


def _interval(right: int, documents: int) -> str:
    if not documents:
        return "–"
    low, high = interval(right, documents)
    return f"{100 * low:.0f}–{100 * high:.0f}"


def _mistake(mistake: Mistake, classes: list[str], quote: str | None, feature_len: int) -> dict[str, Any]:
    length = len(quote) if quote is not None else 0
    read = f"{number(length)} characters, of which {number(feature_len)} are read" if length > feature_len else ""
    return {
        "row": mistake.row,
        "true": classes[mistake.true],
        "probability": percent(mistake.probability),
        "ranking": [(classes[index], percent(probability)) for index, probability in mistake.ranking],
        "text": None if quote is None else wording.visible(quote, QUOTE),
        "length": read,
    }
