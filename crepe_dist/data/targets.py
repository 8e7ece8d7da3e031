"""Targets of rows: pairs of a class and its label probability, for single labels, multiple labels and soft labels.

``<split>.targets.npy`` is uint16 [rows, most, 2]: classes, and label probabilities in units of 1 / ``PROB_SCALE``.
Unused pairs of a row have probability 0. If each row has one label, this file does not exist, because
``<split>.labels.npy`` holds the same information.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.arrays import map_array
from crepe_dist.files.json_file import parse_integer

SINGLE_LABEL, MULTILABEL, SOFT = LABEL_KINDS = ("one", "several", "soft")
PROB_SCALE = 65535  # Integer that represents the label probability 1 in a pair.
MAX_LABELS = 1024  # Maximum number of pairs per row.
PIECE = 1 << 16  # Number of rows that are counted at a time.
PAIR_BYTES = 4  # Size of a pair in a batch: class and label probability, two bytes each, the lower byte first.
Pairs = npt.NDArray[np.uint16]
LabelProbs = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Targets:
    """Classes of each row of a split.

    All kinds of labels have the same interface: pairs of a class and its label probability.

    Attributes:
        kind: Kind of the labels. ``one`` means that each row has one class with probability 1. ``several`` means any
            number of classes, each with probability 1 or, in pseudo labels, with its predicted probability. ``soft``
            means classes whose probabilities sum to 1.
        stored: Class of each row, int32 [rows], for ``one``; otherwise the pairs, uint16 [rows, most, 2].
        classes: Number of classes of the data set.
    """

    kind: str
    stored: npt.NDArray[Any]
    classes: int

    @property
    def max_labels(self) -> int:
        """Number of pairs stored per row; 0 for ``one``."""
        return 0 if self.kind == SINGLE_LABEL else int(self.stored.shape[1])

    def label_pairs(self, rows: npt.NDArray[np.int64]) -> Pairs:
        """Return the classes and label probabilities of rows, uint16 [len(rows), pairs, 2]."""
        stored = self.stored[rows]
        if self.kind == SINGLE_LABEL:
            stored = np.stack([stored, np.full(len(rows), PROB_SCALE)], axis=1).astype(np.uint16)[:, None]
        return np.asarray(stored)

    def bytes(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Return the targets of rows as they are in a batch, uint8 [len(rows), n]: the class, or ``PAIR_BYTES`` for
        each pair."""
        return (
            np.ascontiguousarray(self.stored[rows], "<u2").reshape(len(rows), 2 * self.max_labels or 1).view(np.uint8)
        )

    def label_probs(self, rows: npt.NDArray[np.int64]) -> LabelProbs:
        """For each of the rows, return the label probability of each class, float32 [len(rows), classes]."""
        pairs = self.label_pairs(rows)
        probs = np.zeros((len(pairs), self.classes), np.float32)
        np.add.at(probs, (np.arange(len(pairs))[:, None], pairs[..., 0]), pairs[..., 1] / np.float32(PROB_SCALE))
        return probs

    def iter_labels(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """For each label of the rows, return the position of its row in ``rows``, and its class.

        A soft label counts as its most probable class.
        """
        pairs = self.label_pairs(rows)
        if self.kind == SOFT:
            return np.arange(len(pairs)), argmax_classes(pairs)
        place, column = np.nonzero(pairs[..., 1])
        return place, pairs[place, column, 0].astype(np.int32)

    def counts(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Count the labels of rows by class, int64 [classes]. A soft label counts as its most probable class."""
        counts = np.zeros(self.classes, np.int64)
        for start in range(0, len(rows), PIECE):
            counts += np.bincount(self.iter_labels(rows[start : start + PIECE])[1], minlength=self.classes)
        return counts

    def class_mass(self) -> npt.NDArray[np.float64]:
        """For each class, return the sum of its label probabilities over all rows, float64 [classes]."""
        total = np.zeros(self.classes)
        for start in range(0, len(self.stored), PIECE):
            classes, probs = self.label_pairs(np.arange(start, min(start + PIECE, len(self.stored)))).reshape(-1, 2).T
            total += np.bincount(classes, probs, minlength=self.classes)
        return total / PROB_SCALE


def argmax_classes(pairs: Pairs) -> npt.NDArray[np.int32]:
    """Return the most probable class of each row, int32 [rows].

    If classes are equally probable, the first one is returned. A row without labels gets -1.
    """
    rows, best = np.arange(len(pairs)), pairs[..., 1].argmax(axis=1)
    return np.where(pairs[rows, best, 1] > 0, pairs[rows, best, 0].astype(np.int32), -1).astype(np.int32)


def read_label_type(manifest: dict[str, Any]) -> tuple[str, int]:
    """Read the kind of labels and ``Targets.max_labels`` from a manifest.

    The manifest of single-label data has no such entry.
    """
    entry = manifest.get("labels")
    if entry is None:
        return SINGLE_LABEL, 0
    if entry["kind"] not in (MULTILABEL, SOFT):
        raise ValueError(f"the labels are {str(entry)[:80]}")
    return entry["kind"], parse_integer(entry["most"], 1, MAX_LABELS, "labels.most")


def targets_file(split: str) -> str:
    """Return the file name of a split's targets."""
    return f"{split}.targets.npy"


def open_targets(folder: Path, split: str, rows: int, kind: str, max_labels: int, classes: int) -> Targets:
    """Memory-map the pairs of a split, and check them; raise ``ValueError`` if they are malformed.

    Pseudo labels, which have the kind ``several``, may have any probability.
    """
    pairs = map_array(folder / targets_file(split), np.uint16, (rows, max_labels, 2))
    if rows and pairs[..., 0].max() >= classes:
        raise ValueError(f"{targets_file(split)} holds classes that do not exist")
    if kind == SOFT and (pairs[..., 1].sum(axis=1, dtype=np.int64) != PROB_SCALE).any():
        raise ValueError(f"{targets_file(split)} holds label probabilities whose sum is not 1")
    return Targets(kind, pairs, classes)
