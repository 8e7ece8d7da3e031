"""Label errors by confident learning (Northcutt, Jiang & Chuang 2021, arXiv:1911.00068)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int32]


def label_errors(probabilities: Floats, labels: Labels) -> npt.NDArray[np.int64]:
    """Find texts whose label is probably wrong; return their rows, the least probable label first.

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
