"""All texts of a data set, of all splits in one order, and folds of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crepe_dist.data.arrays import write_array
from crepe_dist.data.char_encoder import CharIds
from crepe_dist.data.dataset import Dataset, Documents, open_dataset, write_documents, write_manifest
from crepe_dist.data.targets import MULTILABEL
from crepe_dist.errors import UserError

CHUNK_ROWS = 4096  # rows that are copied together
Rows = npt.NDArray[np.int64]


def iter_chunks(numbers: Rows) -> Iterator[Rows]:
    """Yield the numbers of some thousand texts at a time."""
    for start in range(0, len(numbers), CHUNK_ROWS):
        yield numbers[start : start + CHUNK_ROWS]


class Corpus:
    """Texts of all splits of a data set, numbered from 0 in the order of the splits.

    Attributes:
        documents: codes and origins of all texts.
        labels: int32 [n]; of soft labels the most probable class.

    Raises:
        UserError: the texts have several labels each.
    """

    def __init__(self, dataset: Dataset) -> None:
        if dataset.label_kind == MULTILABEL:
            raise UserError(
                f"{dataset.folder} has several labels per text",
                "inspect judges one label per text",
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

    def __len__(self) -> int:
        return len(self.labels)

    def locate(self, number: int) -> tuple[str, int]:
        """Return the split of a text, and its row there."""
        split = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._splits[split].name, number - int(self._starts[split])

    def normalize_texts(self, char_ids: CharIds) -> list[str]:
        """Return the letters and digits of texts, in lower case: near duplicates have the same."""
        return ["".join(filter(str.isalnum, self.dataset.encoder.decode(row).lower())) for row in char_ids]

    @cached_property
    def normalized_texts(self) -> list[str]:
        """Letters and digits of all texts; see ``letters_of``."""
        codes = (self.documents.char_ids(some) for some in iter_chunks(np.arange(len(self))))
        return [each for some in codes for each in self.normalize_texts(some)]

    @cached_property
    def duplicate_groups(self) -> Rows:
        """Number of the first near duplicate of each text, int64 [n]; its own if there is none before it.

        A text without letters and digits has no duplicates.
        """
        first: dict[str, int] = {}
        return np.array(
            [first.setdefault(each, n) if each else n for n, each in enumerate(self.normalized_texts)], np.int64
        )

    def assign_folds(self, num_folds: int, seed: int) -> Rows:
        """Deal the texts into folds with about the same share of each class, int64 [n].

        Near duplicates share a fold: else a wrong label would be confirmed by its copy.
        """
        chance = np.random.default_rng(seed).random(len(self))
        order = np.lexsort((chance, self.labels))
        fold = np.empty(len(self), np.int64)
        fold[order] = np.arange(len(self)) % num_folds
        return np.asarray(fold[self.duplicate_groups])

    def write(self, folder: Path, train: Rows, test: Rows) -> Dataset:
        """Write a data set folder with these texts as its training and test splits."""
        folder.mkdir(parents=True)
        splits = {}
        for name, numbers in (("train", train), ("test", test)):
            splits[name] = write_documents(folder, name, self.documents, numbers)
            splits[name]["files"] |= write_array(folder, f"{name}.labels.npy", self.labels[numbers])
        single = {name: value for name, value in self.dataset.manifest.items() if name != "labels"}
        write_manifest(folder, {**single, "id": None, "splits": splits})
        return open_dataset(folder)
