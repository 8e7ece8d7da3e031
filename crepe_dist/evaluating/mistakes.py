"""Wrong predictions with the rows of the source that they are about: the worst on the terminal, all in a CSV file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.dataset import Dataset
from crepe_dist.files import write_csv
from crepe_dist.model.calibration import softmax
from crepe_dist.predicting.predictor import Predictor, sigmoid
from crepe_dist.runs.run_record import quotes
from crepe_dist.runs.scores import Scores
from crepe_dist.wording import counted, excerpt, percent

MOST = 10
MOST_CHARACTERS = 70  # of a text on the terminal
CHUNK = 1024  # documents that are predicted together
Rows = npt.NDArray[np.int64]


def worst(scores: Scores, dataset: Dataset, split: str) -> str:
    """Describe the mistakes whose true class is least probable, for the terminal; empty if there are none."""
    shown = scores.mistakes[:MOST]
    if not shown:
        return ""
    wrong = scores.documents - int(np.trace(scores.confusion))
    lines = [f"the worst {len(shown)} of {counted(wrong, 'mistake')}" if wrong > len(shown) else "all mistakes"]
    for mistake, quote in zip(shown, quotes(dataset, split, [mistake.row for mistake in shown])):
        true, (predicted, share) = dataset.classes[mistake.true], mistake.ranking[0]
        source = quote.place if quote else f"row {mistake.row}"
        lines.append(
            f"  {excerpt(source)}: {excerpt(true, MOST_CHARACTERS)} {percent(mistake.probability)}, predicted as "
            f"{excerpt(dataset.classes[predicted], MOST_CHARACTERS)} {percent(share)}"
        )
        lines += [f"      {excerpt(quote.text, MOST_CHARACTERS)}"] if quote else []
    return "\n".join(lines)


def write(path: Path, predictor: Predictor, dataset: Dataset, split: str, right: npt.NDArray[np.bool_]) -> int:
    """Write all mistakes of a split to a CSV file; return their number.

    Those of a model that gives one class are sorted by the probability of the true class.

    Args:
        right: the documents that are predicted correctly, bool [documents].
    """
    wrong = np.flatnonzero(~right)
    rows = _mistakes(predictor, dataset, split, wrong)
    ordered = sorted(rows, key=lambda row: row[0]) if predictor.thresholds is None else rows
    write_csv(path, (_record(dataset, split, row, about) for _, row, about in ordered), ["file", "line"])
    return len(wrong)


def _mistakes(
    predictor: Predictor, dataset: Dataset, split: str, rows: Rows
) -> Iterator[tuple[float, int, dict[str, Any]]]:
    """Yield the probability of the true class (0 for several labels), the row, and columns about each mistake."""
    documents, classes = dataset.splits[split], np.array(dataset.classes, dtype=object)
    for start in range(0, len(rows), CHUNK):
        numbers = rows[start : start + CHUNK]
        logits = predictor.logits(documents.codes(numbers))
        if predictor.thresholds is not None:
            wanted, decided = documents.targets.shares(numbers) > 0, sigmoid(logits) >= predictor.thresholds
            for row, *masks in zip(numbers.tolist(), wanted, decided):
                true, predicted = (json.dumps(classes[mask].tolist(), ensure_ascii=False) for mask in masks)
                yield 0.0, row, {"true": true, "predicted": predicted}
            continue
        for row, label, shares in zip(numbers.tolist(), documents.labels[numbers], softmax(logits, np.float64)):
            best = int(shares.argmax())
            yield (
                float(shares[label]),
                row,
                {
                    "true": classes[label],
                    "predicted": classes[best],
                    "probability_of_true": round(float(shares[label]), 4),
                    "probability_of_predicted": round(float(shares[best]), 4),
                },
            )


def _record(dataset: Dataset, split: str, row: int, about: dict[str, Any]) -> dict[str, Any]:
    (quote,) = quotes(dataset, split, [row])
    assert quote is not None
    return {**dataset.origin(split, row).cells(), "split": split, "row": row, **about, "text": quote.text}
