"""Corpus: the texts of all splits of a data set in one sequence, and their division into folds."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crepe_dist.data.arrays import write_array
from crepe_dist.data.dataset import Dataset, Documents, open_dataset, write_documents, write_manifest
from crepe_dist.data.targets import MULTILABEL
from crepe_dist.errors import UserError
from crepe_dist.preparing.grouping import connected_components

# Number of texts that are processed together.
CHUNK_ROWS = 4096
Rows = npt.NDArray[np.int64]


def iter_chunks(numbers: Rows) -> Iterator[Rows]:
    """Yield the numbers of the texts in chunks of ``CHUNK_ROWS``."""
    for start in range(0, len(numbers), CHUNK_ROWS):
        yield numbers[start : start + CHUNK_ROWS]


class Corpus:
    """Texts of all splits of a data set, numbered from 0 in the order of the splits.

    Attributes:
        documents: Character ids and origins of all texts.
        labels: Class of each text, int32 [texts]. For soft labels, the most probable class.
        groups: Group of each text, int32 [texts]; ``None`` if the data set has no groups.

    Raises:
        UserError: The texts have multiple labels.
    """

    def __init__(self, dataset: Dataset) -> None:
        if dataset.label_kind == MULTILABEL:
            raise UserError(
                f"{dataset.folder} has multiple labels per text",
                "`inspect` can find label errors only in data with one label per text",
                "prepare a data set for each label in question, with the classes yes and no",
            )
        self.dataset = dataset
        self._splits = list(dataset.splits.values())
        self._starts = np.cumsum([0, *map(len, self._splits)])
        shards = tuple(shard for split in self._splits for shard in split.shards)
        origins = np.concatenate([split.source_rows for split in self._splits])
        self.documents = Documents(
            dataset.folder, "all", shards, np.cumsum([0, *map(len, shards)]), origins, has_ids=False
        )
        self.labels = np.concatenate([split.labels for split in self._splits]).astype(np.int32)
        groups = [split.groups for split in self._splits if split.groups is not None]
        self.groups = np.concatenate(groups) if len(groups) == len(self._splits) else None

    def __len__(self) -> int:
        return len(self.labels)

    def locate(self, number: int) -> tuple[str, int]:
        """Return the split of a text, and its row in this split."""
        split = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._splits[split].name, number - int(self._starts[split])

    @cached_property
    def duplicate_groups(self) -> Rows:
        """Number of the first near duplicate of each text, int64 [texts]. The first near duplicate may be the text
        itself.

        Near duplicates have the same letters and digits. A text without letters and digits has no duplicates.
        """
        rows = (row for numbers in iter_chunks(np.arange(len(self))) for row in self.documents.char_ids(numbers))
        texts = ("".join(filter(str.isalnum, self.dataset.encoder.decode(row).lower())) for row in rows)
        first: dict[str, int] = {}
        return np.array([first.setdefault(text, n) if text else n for n, text in enumerate(texts)], np.int64)

    def assign_folds(self, num_folds: int, seed: int) -> Rows:
        """Assign each text to a fold, int64 [texts]. All folds have about the same proportion of each class.

        Near duplicates are in the same fold. Otherwise, a copy of a text could confirm its wrong label. The texts of a
        group are also in the same fold.

        Raises:
            UserError: All texts belong together, so no text is left for training.
        """
        if self.groups is not None:
            return self._assign_groups(self.groups, num_folds, seed)
        draws = np.random.default_rng(seed).random(len(self))
        order = np.lexsort((draws, self.labels))
        folds = np.empty(len(self), np.int64)
        folds[order] = np.arange(len(self)) % num_folds
        return np.asarray(folds[self.duplicate_groups])

    def _assign_groups(self, groups: npt.NDArray[np.int32], num_folds: int, seed: int) -> Rows:
        """Assign groups to folds, the largest first, each to the fold with the fewest texts of the group's classes."""
        keys, nothing_missing = (groups, self.duplicate_groups), np.zeros(len(self), np.bool_)
        units = connected_components([(key.astype(np.uint64), nothing_missing) for key in keys], len(self))
        sizes = np.bincount(units)
        if len(sizes) == 1:
            raise UserError(
                f"all texts of {self.dataset.folder} are in one group",
                "a network predicts only groups that it was not trained on, so no text is left for training",
                "prepare the data without --group, or with another column",
            )
        draws = np.random.default_rng(seed).random(len(sizes))
        order = np.lexsort((draws, -sizes))
        texts_of = np.split(np.argsort(units, kind="stable"), np.cumsum(sizes)[:-1])
        folds, counts = np.empty(len(self), np.int64), np.zeros((num_folds, len(self.dataset.classes)), np.int64)
        for unit in order.tolist():
            labels, label_counts = np.unique(self.labels[texts_of[unit]], return_counts=True)
            same_classes = counts[:, labels] @ label_counts
            fold = np.lexsort((counts.sum(axis=1), same_classes))[0]
            counts[fold, labels] += label_counts
            folds[texts_of[unit]] = fold
        return folds

    def write(self, folder: Path, train: Rows, test: Rows) -> Dataset:
        """Write a data set folder with these texts as its training and test splits, and open it."""
        folder.mkdir(parents=True)
        splits = {}
        for name, numbers in (("train", train), ("test", test)):
            splits[name] = write_documents(folder, name, self.documents, numbers)
            splits[name]["files"] |= write_array(folder, f"{name}.labels.npy", self.labels[numbers])
        # Without this key, the labels are single: soft labels were replaced by the most probable class.
        manifest = {name: value for name, value in self.dataset.manifest.items() if name != "labels"}
        write_manifest(folder, {**manifest, "id": None, "splits": splits})
        return open_dataset(folder)
