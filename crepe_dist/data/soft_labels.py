"""Soft labels for texts without labels, and splits that hold both kinds of texts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from crepe_dist.data.dataset import Dataset, Documents, Split
from crepe_dist.data.targets import SEVERAL, SHARE_UNIT, SOFT, Targets, described, main_classes

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


def without_labels(documents: Documents, like: Targets) -> Split:
    """Make a split of documents without labels, whose rows have the form of those with targets ``like``."""
    stored = np.broadcast_to(np.zeros(1, like.stored.dtype), (len(documents), *like.stored.shape[1:]))
    targets = replace(like, stored=stored)
    return Split(**vars(documents), labels=np.zeros(len(documents), np.int32), weights=None, targets=targets)


def taught(data: Dataset, targets: Targets) -> Dataset:
    """Add the unlabelled texts of a data set, with soft labels, to its training split."""
    assert data.unlabelled is not None
    kind, given = SEVERAL if data.labelled == SEVERAL else SOFT, data.splits["train"]
    most = max(targets.most, given.targets.most)
    splits = {name: replace(split, targets=_wide(split.targets, kind, most)) for name, split in data.splits.items()}
    train = _joined(splits["train"], data.unlabelled, _wide(targets, kind, most))
    manifest = {**data.manifest, "labels": described(kind, most)}
    return replace(data, splits={**splits, "train": train}, manifest=manifest, unlabelled=None)


def _wide(targets: Targets, kind: str, most: int) -> Targets:
    """Store targets as ``most`` pairs of class and share."""
    pairs = targets.pairs(np.arange(len(targets.stored)))
    return Targets(kind, np.pad(pairs, ((0, 0), (0, most - pairs.shape[1]), (0, 0))), targets.classes)


def _joined(train: Split, documents: Documents, targets: Targets) -> Split:
    """Append documents with their labels to a training split; shards stay mapped."""
    shards = *train.shards, *documents.shards
    weights = None if train.weights is None else np.concatenate([train.weights, np.ones(len(documents), np.float32)])
    return replace(
        train,
        shards=shards,
        starts=np.cumsum([0, *map(len, shards)]),
        origins=np.concatenate([train.origins, documents.origins]),
        has_ids=False,
        labels=np.concatenate([train.labels, main_classes(targets.stored)]),
        weights=weights,
        targets=replace(targets, stored=np.concatenate([train.targets.stored, targets.stored])),
    )
