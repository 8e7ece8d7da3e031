"""Tables and figures of several labels per document: in the pages of a run and of ``evaluate``."""

from __future__ import annotations

from typing import Any

from crepe_dist.reports.page import render
from crepe_dist.reports.score_tables import LABEL_CELLS, MAX_OPEN_ROWS, MAX_WEAKEST
from crepe_dist.reports.uncertainty import interval
from crepe_dist.runs.label_scores import LabelScores
from crepe_dist.version import __version__
from crepe_dist.wording import clean, counted, cut, percent


def label_score_page(scores: LabelScores, classes: list[str], about: dict[str, Any]) -> str:
    """Render the page of ``evaluate --html``.

    Args:
        about: values of ``checkpoint``, ``data`` and ``part`` (the split).
    """
    classes, about = clean(classes), clean(about)
    return render(
        "evaluation.html",
        version=__version__,
        about=about,
        headline=tiles(scores, about["part"]),
        labels=view(scores, classes),
    )


def tiles(scores: LabelScores, split: str) -> list[tuple[str, str, list[str]]]:
    """Return the scores for the top of a page: name, value and notes of each."""
    precision, recall = scores.micro
    top = [f"precision at {k}: {percent(value)}" for k, value in scores.precision_at.items()]
    exact = [] if scores.exact is None else [f"all labels right: {percent(scores.exact)} of the texts"]
    return [
        (
            f"{split} micro F1",
            percent(scores.accuracy),
            [f"precision {percent(precision)}, recall {percent(recall)}", counted(scores.documents, "text"), *exact],
        ),
        ("macro F1", f"{scores.macro_f1:.3f}", [counted(len(scores.labels), "class", "classes")]),
        ("mean average precision", f"{scores.mean_average_precision:.3f}", top),
    ]


def view(scores: LabelScores, classes: list[str]) -> dict[str, Any]:
    """Compute the values for the template ``labels.html``.

    Args:
        classes: class names, after ``wording.clean``.
    """
    rows = table(scores, classes)
    tested = [row for row in rows if row["documents"]]
    return {
        "rows": sorted(rows, key=lambda row: (-row["documents"], row["name"])),
        "weakest": sorted(tested, key=lambda row: row["f1"])[:MAX_WEAKEST] if len(rows) > MAX_OPEN_ROWS else [],
        "calibration": percent(scores.calibration_error),
    }


def table(scores: LabelScores, classes: list[str]) -> list[dict[str, Any]]:
    """Tabulate the scores of each class."""
    rows = []
    for name, right, (hit, false, _), precision, recall, f1, average, threshold in zip(
        classes,
        scores.labels.tolist(),
        scores.decisions.tolist(),
        scores.precision.tolist(),
        scores.recall.tolist(),
        scores.f1.tolist(),
        scores.average_precision.tolist(),
        scores.thresholds.tolist(),
    ):
        low, high = interval(hit, right) if right else (0.0, 0.0)
        rows.append(
            {
                "name": cut(name, LABEL_CELLS),
                "documents": right,
                "precision": percent(precision) if hit + false else "–",
                "recall": percent(recall) if right else "–",
                "interval": f"{100 * low:.0f}–{100 * high:.0f}" if right else "–",
                "f1": f1 if right else None,
                "average": average if right else None,
                "threshold": percent(threshold),
            }
        )
    return rows
