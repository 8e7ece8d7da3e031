"""Soft labels for texts without labels, and splits that hold both kinds of texts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from crepe_dist.data.dataset import Dataset, Documents, Split
from crepe_dist.data.targets import SEVERAL, SHARE_UNIT, SOFT, Pairs, Targets, described, main_classes

MOST_SHARES = 8  # classes of a soft label


def rounded(probabilities: npt.NDArray[np.float64], *, several: bool = False) -> Targets:
    """Round probabilities, float64 [n, classes], to labels of the most probable classes.

    Args:
        several: the classes are independent of each other; else the shares of a text sum to 1.
    """
    classes = probabilities.shape[1]
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :MOST_SHARES]
    shares = np.take_along_axis(probabilities, order, axis=1)
    if several:
        units = np.rint(shares * SHARE_UNIT).astype(np.int64)
    else:
        units = np.floor(shares / shares.sum(axis=1, keepdims=True) * SHARE_UNIT).astype(np.int64)
        units[:, 0] += SHARE_UNIT - units.sum(axis=1)
    return Targets(SEVERAL if several else SOFT, np.stack([order, units], axis=2).astype(np.uint16), classes)


def without_labels(documents: Documents, like: Targets | None) -> Split:
    """Make a split of documents without labels, whose rows have the form of those with targets ``like``."""
    empty = None
    if like is not None:
        pairs = np.broadcast_to(np.zeros((1, 1, 1), np.uint16), (len(documents), like.most, 2))
        empty = replace(like, pairs=pairs)
    return Split(**vars(documents), labels=np.zeros(len(documents), np.int32), weights=None, targets=empty)


def shares(data: Dataset) -> npt.NDArray[np.float64]:
    """Return the share of each class in the labels of the training texts, float64 [texts, classes]."""
    train = data.splits["train"]
    if train.targets is not None:
        return train.targets.shares(np.arange(len(train))).astype(np.float64)
    of_classes: npt.NDArray[np.float64] = np.eye(len(data.classes))[train.labels]
    return of_classes


def taught(data: Dataset, targets: Targets) -> Dataset:
    """Add the unlabelled texts of a data set, with soft labels, to its training split."""
    assert data.unlabelled is not None
    kind, given = SEVERAL if data.labelled == SEVERAL else SOFT, data.splits["train"].targets
    most = max(targets.most, 1 if given is None else given.most)
    splits = {name: _with_targets(split, kind, most, targets.classes) for name, split in data.splits.items()}
    soft = replace(data, splits=splits, manifest={**data.manifest, "labels": described(kind, most)})
    train = _joined(soft.splits["train"], data.unlabelled, replace(targets, pairs=_wide(targets.pairs, most)))
    return replace(soft, splits={**soft.splits, "train": train}, unlabelled=None)


def _with_targets(split: Split, kind: str, most: int, classes: int) -> Split:
    """Return a split whose rows have ``most`` pairs of class and share."""
    if split.targets is None:
        units = np.full(len(split), SHARE_UNIT)
        pairs = np.stack([split.labels, units], axis=1).astype(np.uint16)[:, None]
    else:
        pairs = split.targets.pairs
    return replace(split, targets=Targets(kind, _wide(pairs, most), classes))


def _wide(pairs: Pairs, most: int) -> Pairs:
    return np.pad(pairs, ((0, 0), (0, most - pairs.shape[1]), (0, 0)))


def _joined(train: Split, documents: Documents, targets: Targets) -> Split:
    """Append documents with their labels to a training split; shards stay mapped."""
    shards = *train.shards, *documents.shards
    assert train.targets is not None
    pairs = np.concatenate([train.targets.pairs, targets.pairs])
    weights = None if train.weights is None else np.concatenate([train.weights, np.ones(len(documents), np.float32)])
    return replace(
        train,
        shards=shards,
        starts=np.cumsum([0, *map(len, shards)]),
        origins=np.concatenate([train.origins, documents.origins]),
        has_ids=False,
        labels=np.concatenate([train.labels, main_classes(targets.pairs)]),
        weights=weights,
        targets=replace(targets, pairs=pairs),
    )
