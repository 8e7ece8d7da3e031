"""Issues in a data set: probable label errors and pairs of classes that overlap."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.files.csv_cells import write_csv
from crepe_dist.inspecting.corpus import Corpus, Rows
from crepe_dist.inspecting.out_of_fold import Floats

# Names of the CSV files.
ERRORS, PAIRS = "label_errors.csv", "class_pairs.csv"
# Maximum number of pairs of classes in a CSV file.
MAX_PAIRS = 100
# Row of a CSV file.
Record = dict[str, Any]
# Rows of each CSV file, by its name. The most urgent rows come first.
Issues = dict[str, list[Record]]


def find_issues(corpus: Corpus, probabilities: Floats) -> Issues:
    """Find probable label errors and overlapping classes from out-of-fold probabilities, float64 [texts, classes]."""
    labels, predicted = corpus.labels, probabilities.argmax(axis=1)
    wrong = find_label_errors(probabilities, labels)
    pairs = _find_confused_pairs(corpus.dataset.classes, labels, predicted, wrong)
    return {ERRORS: _describe_errors(corpus, probabilities[wrong], wrong), PAIRS: pairs}


def write_issues(issues: Issues, folder: Path) -> list[Path]:
    """Write the CSV files that have rows, and return their paths. Remove the other files of an earlier inspection."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in issues.items():
        if rows:
            write_csv(folder / name, rows)
        else:
            (folder / name).unlink(missing_ok=True)
    return [folder / name for name, rows in issues.items() if rows]


def find_label_errors(probabilities: Floats, labels: npt.NDArray[np.int32]) -> Rows:
    """Find probable label errors by confident learning (Northcutt et al. 2021, arXiv:1911.00068).

    A network is confident of a class for a text if the probability of the class is at least the mean of its
    probabilities over the texts with this label. If a network is confident of multiple classes, the most probable of
    them counts (equation 1 of the paper). To estimate the fraction of wrong labels in a class, take the texts with this
    label that have a confident class. The estimate is the fraction of these texts whose confident class is not the
    label. This fraction of the texts in the class is returned, starting with the least probable labels ("prune by
    class"). However, a text is not returned if its label is the most probable class.

    Args:
        probabilities: Out-of-fold probabilities, float64 [texts, classes].
        labels: Labels of the texts, int32 [texts].

    Returns:
        Numbers of the texts, sorted by the probability of the label, in ascending order.
    """
    num_classes = probabilities.shape[1]
    label_probs = probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=num_classes)
    means = np.where(counts > 0, np.bincount(labels, label_probs, num_classes) / np.maximum(counts, 1), np.inf)
    confident = np.where(probabilities >= means, probabilities, -1.0)
    is_confident = confident.max(axis=1) > 0
    is_other = is_confident & (confident.argmax(axis=1) != labels)
    num_confident, num_other = (np.bincount(labels[mask], minlength=num_classes) for mask in (is_confident, is_other))
    num_wrong = np.rint(counts * num_other / np.maximum(num_confident, 1)).astype(np.int64)
    order = np.lexsort((label_probs, labels))  # Sorted by class, and then by the probability of the label.
    rank = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[order]]
    errors = order[rank < num_wrong[labels[order]]]
    errors = errors[probabilities[errors].argmax(axis=1) != labels[errors]]
    return np.asarray(errors[np.argsort(label_probs[errors], kind="stable")])


def _describe_errors(corpus: Corpus, probabilities: Floats, wrong: Rows) -> list[Record]:
    """Describe texts as rows of a CSV file, with the columns that ``prepare --corrections`` needs to identify them."""
    classes = corpus.dataset.classes
    errors = []
    for number, probs in zip(wrong.tolist(), probabilities):
        label, suggested = int(corpus.labels[number]), int(probs.argmax())
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
                "probability_of_label": round(float(probs[label]), 4),
                "probability_of_suggested": round(float(probs[suggested]), 4),
                "text": corpus.dataset.text(split, row),
            }
        )
    return errors


def _find_confused_pairs(
    classes: list[str], labels: npt.NDArray[np.int32], predicted: Rows, wrong: Rows
) -> list[Record]:
    """List pairs of classes that are confused in texts whose label is probably correct.

    The pairs are sorted by the proportion of confused texts, in descending order.
    """
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
