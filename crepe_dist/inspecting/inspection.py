"""Findings about a data set: wrong labels, classes that overlap, texts to label next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.files.csv_cells import write_csv
from crepe_dist.inspecting.corpus import Corpus, Rows
from crepe_dist.inspecting.out_of_fold import Floats

ERRORS, PAIRS, LABEL_NEXT = "label_errors.csv", "class_pairs.csv", "label_next.csv"
MAX_PAIRS = 100
Record = dict[str, Any]
Issues = dict[str, list[Record]]  # rows of the CSV files by their names; the most urgent first


def find_issues(corpus: Corpus, probabilities: Floats) -> Issues:
    """Find wrong labels, and classes that overlap, by out-of-fold probabilities."""
    labels, predicted = corpus.labels, probabilities.argmax(axis=1)
    wrong = find_label_errors(probabilities, labels)
    pairs = _find_confused_pairs(corpus.dataset.classes, labels, predicted, wrong)
    return {ERRORS: _describe_errors(corpus, probabilities[wrong], wrong), PAIRS: pairs}


def write_issues(findings: Issues, folder: Path) -> list[Path]:
    """Write the CSV files that have rows, and remove the others of an earlier inspection; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in findings.items():
        if rows:
            write_csv(folder / name, rows)
        else:
            (folder / name).unlink(missing_ok=True)
    return [folder / name for name, rows in findings.items() if rows]


def find_label_errors(probabilities: Floats, labels: npt.NDArray[np.int32]) -> Rows:
    """Find texts whose label is probably wrong by confident learning (Northcutt et al. 2021, arXiv:1911.00068).

    Return their rows, the least probable label first.

    A network is confident of a class if its probability is at least the mean that it has among the texts labelled with
    it; of several such classes the most probable one counts (the paper's equation 1). The share of a class's texts of
    which the network is confident that they belong elsewhere estimates the share of its labels that are wrong. So many
    texts of the class are returned, those with the least probable labels ("prune by class"), but none whose label is
    the most probable class.

    Args:
        probabilities: out-of-fold probabilities, float64 [n, classes].
        labels: given labels, int32 [n].
    """
    classes = probabilities.shape[1]
    of_label = probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=classes)
    means = np.where(counts > 0, np.bincount(labels, of_label, classes) / np.maximum(counts, 1), np.inf)
    confident = np.where(probabilities >= means, probabilities, -1.0)
    is_confident = confident.max(axis=1) > 0
    is_other = is_confident & (confident.argmax(axis=1) != labels)
    sure, other = (np.bincount(labels[mask], minlength=classes) for mask in (is_confident, is_other))
    wrong = np.rint(counts * other / np.maximum(sure, 1)).astype(np.int64)
    order = np.lexsort((of_label, labels))  # by class, the least probable first
    rank = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[order]]
    errors = order[rank < wrong[labels[order]]]
    errors = errors[probabilities[errors].argmax(axis=1) != labels[errors]]
    return np.asarray(errors[np.argsort(of_label[errors], kind="stable")])


def _describe_errors(corpus: Corpus, probabilities: Floats, wrong: Rows) -> list[Record]:
    """List texts with the columns by which a person, and ``prepare --corrections``, find them again."""
    classes = corpus.dataset.classes
    errors = []
    for number, shares in zip(wrong.tolist(), probabilities):
        label, suggested = int(corpus.labels[number]), int(shares.argmax())
        split, row = corpus.locate(number)
        origin = corpus.dataset.origin(split, row)
        errors.append(
            {
                **origin.cells(),
                "split": split,
                "row": row,
                "hash": origin.hash,
                "label": classes[label],
                "suggested": classes[suggested],
                "probability_of_label": round(float(shares[label]), 4),
                "probability_of_suggested": round(float(shares[suggested]), 4),
                "text": corpus.dataset.text(split, row),
            }
        )
    return errors


def _find_confused_pairs(
    classes: list[str], labels: npt.NDArray[np.int32], predicted: Rows, wrong: Rows
) -> list[Record]:
    """List pairs of classes that are confused even where the label is probably correct, the largest share first."""
    confused, errors = (np.zeros((len(classes), len(classes)), np.int64) for _ in range(2))
    np.add.at(confused, (labels, predicted), 1)
    np.add.at(errors, (labels[wrong], predicted[wrong]), 1)
    confused, errors = confused - errors + (confused - errors).T, errors + errors.T
    counts = np.bincount(labels, minlength=len(classes))
    pairs = [
        {
            "class": classes[first],
            "other": classes[second],
            "texts": int(counts[first] + counts[second]),
            "confused": int(confused[first, second]),
            "share": round(float(confused[first, second] / (counts[first] + counts[second])), 4),
            "likely_label_errors": int(errors[first, second]),
        }
        for first, second in np.argwhere(np.triu(confused, 1)).tolist()
    ]
    return sorted(pairs, key=lambda pair: -pair["share"])[:MAX_PAIRS]
