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
from crepe_dist.wording import counted, percent, visible

MOST = 10
MOST_CHARACTERS = 70  # of a text on the terminal
CHUNK = 1024  # documents that are predicted together
Rows = npt.NDArray[np.int64]


def worst(scores: Scores, dataset: Dataset, part: str) -> str:
    """Describe the mistakes whose true class is least probable, for the terminal; empty if there are none."""
    shown = scores.mistakes[:MOST]
    if not shown:
        return ""
    wrong = scores.documents - int(np.trace(scores.confusion))
    lines = [f"the worst {len(shown)} of {counted(wrong, 'mistake')}" if wrong > len(shown) else "all mistakes"]
    for mistake, quote in zip(shown, quotes(dataset, part, [each.row for each in shown])):
        true, (predicted, share) = dataset.classes[mistake.true], mistake.ranking[0]
        place = quote.place if quote else f"row {mistake.row}"
        lines.append(
            f"  {visible(place)}: {visible(true, MOST_CHARACTERS)} {percent(mistake.probability)}, predicted as "
            f"{visible(dataset.classes[predicted], MOST_CHARACTERS)} {percent(share)}"
        )
        lines += [f"      {visible(quote.text, MOST_CHARACTERS)}"] if quote else []
    return "\n".join(lines)


def write(path: Path, predictor: Predictor, dataset: Dataset, part: str, right: npt.NDArray[np.bool_]) -> int:
    """Write all mistakes of a split to a CSV file, those with the least probable true class first; return their number.

    Args:
        right: the documents that are predicted correctly, bool [documents].
    """
    wrong = np.flatnonzero(~right)
    records = _one if predictor.thresholds is None else _several
    write_csv(path, records(predictor, dataset, part, wrong), ["file", "line"])
    return len(wrong)


def _one(predictor: Predictor, dataset: Dataset, part: str, rows: Rows) -> Iterator[dict[str, Any]]:
    """Yield the mistakes of a model that gives one class."""
    true = np.asarray(dataset.splits[part].labels[rows])
    predicted, best, own = (np.empty(len(rows), kind) for kind in (np.int64, np.float64, np.float64))
    for places, logits in _logits(predictor, dataset, part, rows):
        shares = softmax(logits, np.float64)
        predicted[places], best[places] = shares.argmax(axis=1), shares.max(axis=1)
        own[places] = shares[np.arange(len(shares)), true[places]]
    for place in np.argsort(own, kind="stable").tolist():
        about = {
            "true": dataset.classes[true[place]],
            "predicted": dataset.classes[predicted[place]],
            "probability_of_true": round(float(own[place]), 4),
            "probability_of_predicted": round(float(best[place]), 4),
        }
        yield _record(dataset, part, int(rows[place]), about)


def _several(predictor: Predictor, dataset: Dataset, part: str, rows: Rows) -> Iterator[dict[str, Any]]:
    """Yield the mistakes of a model that gives several labels, in the order of the rows; labels are JSON lists."""
    targets = dataset.splits[part].targets
    assert targets is not None
    assert predictor.thresholds is not None
    for places, logits in _logits(predictor, dataset, part, rows):
        decided, wanted = sigmoid(logits) >= predictor.thresholds, targets.shares(rows[places]) > 0
        for place, *both in zip(places.tolist(), wanted, decided):
            names = [
                json.dumps([dataset.classes[i] for i in np.flatnonzero(each)], ensure_ascii=False) for each in both
            ]
            yield _record(dataset, part, int(rows[place]), dict(zip(("true", "predicted"), names)))


def _logits(
    predictor: Predictor, dataset: Dataset, part: str, rows: Rows
) -> Iterator[tuple[Rows, npt.NDArray[np.float32]]]:
    """Yield places in ``rows``, some at a time, and the logits of these rows."""
    for start in range(0, len(rows), CHUNK):
        places = np.arange(start, min(start + CHUNK, len(rows)))
        yield places, predictor.logits(dataset.splits[part].codes(rows[places]))


def _record(dataset: Dataset, part: str, row: int, about: dict[str, Any]) -> dict[str, Any]:
    (quote,) = quotes(dataset, part, [row])
    assert quote is not None
    return {**dataset.origin(part, row).cells(), "split": part, "row": row, **about, "text": quote.text}
