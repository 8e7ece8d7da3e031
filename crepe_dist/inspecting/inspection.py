"""Findings about a data set: wrong labels, contradicting duplicates, classes that overlap, texts to label next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.dataset import Dataset
from crepe_dist.files import write_csv
from crepe_dist.inspecting.confident_learning import label_errors
from crepe_dist.inspecting.corpus import Corpus
from crepe_dist.inspecting.out_of_fold import Floats, OutOfFold
from crepe_dist.predicting.inputs import Input

ERRORS, DUPLICATES, PAIRS, NEXT = "label_errors.csv", "duplicates.csv", "class_pairs.csv", "label_next.csv"
MOST_PAIRS = 100
MOST_NEXT = 1000
Record = dict[str, Any]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Inspection:
    """Findings, as rows of the CSV files; the most urgent first.

    Attributes:
        texts: number of texts, and of those that were scored.
        accuracy: share of the scored texts whose label is the most probable class.
        folds: number of trained folds.
        errors: texts that probably have a wrong label, by the probability of the label.
        duplicates: near duplicates with different labels.
        pairs: pairs of classes that are confused.
        label_next: unlabelled texts between classes.
    """

    texts: tuple[int, int]
    accuracy: float
    folds: int
    errors: list[Record]
    duplicates: list[Record]
    pairs: list[Record]
    label_next: list[Record]

    def write(self, folder: Path) -> list[Path]:
        """Write the CSV files; return their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for name, rows in (
            (ERRORS, self.errors), (DUPLICATES, self.duplicates), (PAIRS, self.pairs), (NEXT, self.label_next)
        ):  # fmt: skip
            if rows:
                write_csv(folder / name, rows)
                written.append(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)  # of an earlier inspection
        return written


def inspect(corpus: Corpus, scored: OutOfFold, unlabelled: Sequence[Input] = ()) -> Inspection:
    """Derive the findings from out-of-fold probabilities.

    Args:
        unlabelled: rows with the texts that ``scored.others`` belongs to.
    """
    labels = corpus.labels[scored.numbers]
    predicted = scored.probabilities.argmax(axis=1)
    wrong = label_errors(scored.probabilities, labels)
    return Inspection(
        (len(corpus), len(labels)),
        float((predicted == labels).mean()),
        scored.folds,
        _errors(corpus, scored, wrong),
        _duplicates(corpus),
        _pairs(corpus.dataset.classes, labels, predicted, wrong),
        _next(corpus.dataset, scored.others, unlabelled),
    )


def _errors(corpus: Corpus, scored: OutOfFold, wrong: Places) -> list[Record]:
    classes = corpus.dataset.classes
    found = []
    for number, shares in zip(scored.numbers[wrong].tolist(), scored.probabilities[wrong]):
        label, suggested = int(corpus.labels[number]), int(shares.argmax())
        found.append(
            {
                **_traced(corpus, number),
                "label": classes[label],
                "suggested": classes[suggested],
                "probability_of_label": round(float(shares[label]), 4),
                "probability_of_suggested": round(float(shares[suggested]), 4),
                "text": corpus.text(number),
            }
        )
    return found


def _duplicates(corpus: Corpus) -> list[Record]:
    groups, labels = corpus.groups, corpus.labels
    members: dict[int, list[int]] = {}
    for number in np.flatnonzero(groups != np.arange(len(groups))).tolist():
        members.setdefault(int(groups[number]), []).append(number)
    found = []
    for first, others in members.items():
        numbers = [first, *others]
        if len({int(labels[number]) for number in numbers}) == 1:
            continue
        for number in numbers:
            label = {"label": corpus.dataset.classes[labels[number]], "suggested": ""}  # for a person to fill in
            found.append({"group": first, **_traced(corpus, number), **label, "text": corpus.text(number)})
    return found


def _traced(corpus: Corpus, number: int) -> Record:
    """Return the columns by which a person, and ``prepare --corrections``, find a text again."""
    split, row = corpus.place(number)
    origin = corpus.dataset.origin(split, row)
    return {**origin.cells(), "split": split, "row": row, "hash": origin.hash}


def _pairs(classes: list[str], labels: npt.NDArray[np.int32], predicted: Places, wrong: Places) -> list[Record]:
    """List pairs of classes that are confused even where the label is probably correct, the largest share first."""
    confused, errors = (np.zeros((len(classes), len(classes)), np.int64) for _ in range(2))
    np.add.at(confused, (labels, predicted), 1)
    np.add.at(errors, (labels[wrong], predicted[wrong]), 1)
    confused -= errors
    counts = np.bincount(labels, minlength=len(classes))
    both = confused + confused.T
    found = []
    for one, other in zip(*np.triu_indices(len(classes), 1)):
        if both[one, other]:
            texts = int(counts[one] + counts[other])
            found.append(
                {
                    "class": classes[one],
                    "other": classes[other],
                    "texts": texts,
                    "confused": int(both[one, other]),
                    "share": round(float(both[one, other] / texts), 4),
                    "likely_label_errors": int(errors[one, other] + errors[other, one]),
                }
            )
    return sorted(found, key=lambda pair: -pair["share"])[:MOST_PAIRS]


def _next(dataset: Dataset, probabilities: Floats, rows: Sequence[Input]) -> list[Record]:
    """List unlabelled texts, those first whose two most probable classes are closest."""
    if not rows:
        return []
    ordered = np.sort(probabilities, axis=1)
    margins = ordered[:, -1] - ordered[:, -2]
    entropies = -(probabilities * np.log(np.maximum(probabilities, 1e-300))).sum(axis=1)
    ranked = np.argsort(-probabilities, axis=1, kind="stable")
    return [
        {
            "line": rows[place].line,
            "class": dataset.classes[ranked[place, 0]],
            "probability": round(float(ordered[place, -1]), 4),
            "second": dataset.classes[ranked[place, 1]],
            "margin": round(float(margins[place]), 4),
            "entropy": round(float(entropies[place]), 4),
            "text": rows[place].text,
        }
        for place in np.argsort(margins, kind="stable")[:MOST_NEXT].tolist()
    ]
