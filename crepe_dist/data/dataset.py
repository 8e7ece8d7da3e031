"""The data set folder: memory-mapped arrays and their manifest, ``dataset.json``.

``<split>.labels.npy``           int32 [rows]
``<split>.targets.npy``          uint16 [rows, most, 2], see ``targets``; only with multiple or soft labels
``train.weights.npy``            float32 [rows], with mean 1; only if rows have weights
``<split>.groups.npy``           int32 [rows], group of each row; only if ``prepare`` was given columns of groups
``<split>.codes-<shard>.npy``    character ids, uint8 [rows of the shard, feature_len]
``<split>.texts-<shard>.bin``    original texts in UTF-8; not for the training split
``<split>.offsets-<shard>.npy``  int64 [rows of the shard + 1], start and end of each text
``<split>.origins.npy``          uint64 [rows, 3], see ``arrays``
``<split>.ids-<shard>.bin``      ids of the rows in UTF-8, with ``id_offsets``; only if rows have ids

Unlabelled texts have only character ids, origins and ids, so their files cannot reveal a label.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist import invocation
from crepe_dist.data.arrays import (
    IDS,
    ORIGIN_COLUMNS,
    TEXTS,
    ShardWriter,
    SourceRow,
    check_strings,
    format_hash,
    groups_file,
    map_array,
    origins_file,
    read_string,
    write_array,
)
from crepe_dist.data.char_encoder import PAD_UNK_ID, CharEncoder, CharIds
from crepe_dist.data.targets import MULTILABEL, SINGLE_LABEL, Targets, open_targets, read_label_type
from crepe_dist.data.text_preprocessing import TextPreprocessor
from crepe_dist.errors import UserError
from crepe_dist.files.json_file import parse_integer
from crepe_dist.sealed_json import damaged_error, read_record, write_sealed_json

FORMAT = 5  # Version of the folder's format.
# Names of files in a data set folder.
MANIFEST = "dataset.json"
WEIGHTS = "train.weights.npy"
QUARANTINE = "quarantine.jsonl"
REPORT = "report.html"
REPORT_NUMBERS = "report.json"
SPLITS = ("train", "validation", "test")
UNLABELLED = "unlabelled"  # Name of the texts without labels, which the manifest lists with the splits.
ALL_SPLITS = (*SPLITS, UNLABELLED)
SPLITS_WITH_TEXTS = ("validation", "test")  # Splits whose original texts are stored.
SAMPLE = "sample"  # Name that selects the sample instead of a folder.
SHARD_BYTES = 1 << 28  # Maximum size of the character ids of a shard, in bytes.
# A weight in a batch has three bytes, the lowest first. They hold the weight in units of 1 / WEIGHT_SCALE.
WEIGHT_BYTES, WEIGHT_SCALE = 3, 1 << 16
MAX_WEIGHT = 255.0  # Maximum weight of a row. The mean weight is 1.
UNIT_WEIGHT_BYTES = np.array([[0, 0, 1]], np.uint8)  # The weight 1, which broadcasts to all rows.
CHUNK = 4096  # Number of documents that are copied at a time.

Weights = npt.NDArray[np.float32] | None
Groups = npt.NDArray[np.int32] | None
# Function that changes character ids. Its arguments are the character ids of rows and the row numbers.
Transform = Callable[[CharIds, npt.NDArray[np.int64]], CharIds]


def dataset_folder(source: str) -> Path:
    """Return the path of the prepared folder for a value of the setting ``data.source``."""
    return Path("data") / SAMPLE if source == SAMPLE else Path(source)


@dataclass(frozen=True)
class Documents:
    """Encoded documents, memory-mapped from their shards.

    Attributes:
        folder: Data set folder.
        name: One of ``ALL_SPLITS``.
        shards: Character ids of each shard, uint8 [rows of the shard, feature_len].
        starts: Index of each shard's first row, then the number of rows, int64 [shards + 1].
        source_rows: Source of each row, uint64 [rows, 3], see ``arrays``.
        has_ids: True if rows have ids.
    """

    folder: Path
    name: str
    shards: tuple[CharIds, ...]
    starts: npt.NDArray[np.int64]
    source_rows: npt.NDArray[np.uint64]
    has_ids: bool

    def __len__(self) -> int:
        return int(self.starts[-1])

    def char_ids(self, rows: npt.NDArray[np.int64]) -> CharIds:
        """Gather the character ids of rows, uint8 [len(rows), feature_len]."""
        if len(self.shards) == 1:
            return np.asarray(self.shards[0][rows])
        result = np.empty((len(rows), self.shards[0].shape[1]), dtype=np.uint8)
        owner = np.searchsorted(self.starts, rows, side="right") - 1
        for shard in np.unique(owner).tolist():
            positions = np.flatnonzero(owner == shard)
            result[positions] = self.shards[shard][rows[positions] - self.starts[shard]]
        return result

    def lengths(self) -> npt.NDArray[np.uint16]:
        """Return an estimate of each row's length, uint16 [rows]: the number of known characters at every eighth
        position."""
        lengths = (np.count_nonzero(char_ids[:, ::8] != PAD_UNK_ID, axis=1) for char_ids in self.shards)
        return np.concatenate([np.minimum(shard_lengths, 65535).astype(np.uint16) for shard_lengths in lengths])

    def text(self, row: int) -> str | None:
        """Return the original text of a row; ``None`` if the split stores no texts."""
        return self._string(TEXTS, row) if self.name in SPLITS_WITH_TEXTS else None

    def id(self, row: int) -> str:
        """Return the id of a row; empty if it has none."""
        return self._string(IDS, row) if self.has_ids else ""

    def _string(self, kind: str, row: int) -> str:
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        first, end = self.starts[shard : shard + 2].tolist()
        return read_string(self.folder, self.name, kind, shard, end - first, row - first)


@dataclass(frozen=True)
class Split(Documents):
    """One split of a data set: documents with labels.

    Attributes:
        labels: Class of each row, int32 [rows]. If rows have multiple labels, it is the first class of the row, or -1
            for a row without labels. If labels are soft, it is the most probable class.
        weights: Weight of each row in the loss, float32 [rows]; ``None`` if all weights are equal.
        targets: Classes of each row and their label probabilities.
        groups: Group of each row, int32 [rows]; ``None`` if the data set was prepared without groups. The groups are
            numbered from 0 within the data set, so a number means the same group in all splits. Rows of one group are
            not independent of each other, such as texts of the same author.
        transform: Function that changes the character ids after they are gathered; ``None`` for no change.
        epoch_transform: Function that returns the ``transform`` of a training epoch, given the random seed and the
            epoch; ``None`` for no change.
    """

    labels: npt.NDArray[np.int32]
    weights: Weights
    targets: Targets
    groups: Groups = None
    transform: Transform | None = None
    epoch_transform: Callable[[int, int], Transform] | None = None

    def char_ids(self, rows: npt.NDArray[np.int64]) -> CharIds:
        """Gather the character ids of rows, uint8 [len(rows), feature_len], and apply ``transform``."""
        char_ids = super().char_ids(rows)
        return char_ids if self.transform is None else self.transform(char_ids, rows)

    def weight_bytes(self, rows: npt.NDArray[np.int64]) -> CharIds:
        """Return the weights of rows in units of 1 / ``WEIGHT_SCALE``, three bytes each, uint8 [len(rows), 3]."""
        if self.weights is None:
            return UNIT_WEIGHT_BYTES
        steps = np.rint(self.weights[rows] * WEIGHT_SCALE).astype("<u4")
        return np.asarray(steps[:, None].view(np.uint8)[:, :WEIGHT_BYTES])

    def for_epoch(self, seed: int, epoch: int) -> "Split":
        """Return a view of this split with the augmentation of one training epoch."""
        return self if self.epoch_transform is None else self.with_transform(self.epoch_transform(seed, epoch))

    def with_transform(self, transform: Transform) -> "Split":
        """Return a view of this split that also applies ``transform`` to the character ids."""
        first = self.transform
        return replace(
            self,
            transform=transform if first is None else lambda char_ids, rows: transform(first(char_ids, rows), rows),
        )

    def concatenate(self, documents: Documents, labels: npt.NDArray[np.int32], targets: Targets) -> "Split":
        """Append documents with their labels and targets to a training split. The shards stay memory-mapped.

        If this split has groups, each document without a group gets a group of its own, with a negative number.
        """
        shards, unit_weights = (*self.shards, *documents.shards), np.ones(len(documents), np.float32)
        groups = getattr(documents, "groups", None)
        groups = -1 - np.arange(len(documents), dtype=np.int32) if groups is None else groups
        return replace(
            self,
            shards=shards,
            starts=np.cumsum([0, *map(len, shards)]),
            source_rows=np.concatenate([self.source_rows, documents.source_rows]),
            has_ids=False,
            labels=np.concatenate([self.labels, labels]),
            weights=None if self.weights is None else np.concatenate([self.weights, unit_weights]),
            targets=replace(targets, stored=np.concatenate([self.targets.stored, targets.stored])),
            groups=None if self.groups is None else np.concatenate([self.groups, groups]),
        )

    def select(self, rows: npt.NDArray[np.int64]) -> "Split":
        """Return a split of the given rows. Character ids are copied into memory. Texts and ids stay in the files."""
        return _ChosenSplit(
            self.folder,
            self.name,
            shards=(self.char_ids(rows),),
            starts=np.array([0, len(rows)]),
            source_rows=self.source_rows[rows],
            has_ids=self.has_ids,
            labels=self.labels[rows],
            weights=None if self.weights is None else self.weights[rows],
            targets=replace(self.targets, stored=self.targets.stored[rows]),
            groups=None if self.groups is None else self.groups[rows],
            original=self,
            rows=rows,
        )


@dataclass(frozen=True)
class _ChosenSplit(Split):
    """Rows of another split, whose strings are read from the files of that split."""

    original: Split | None = None
    rows: npt.NDArray[np.int64] | None = None

    def _string(self, kind: str, row: int) -> str:
        assert self.original is not None
        assert self.rows is not None
        return self.original._string(kind, int(self.rows[row]))  # noqa: SLF001


@dataclass(frozen=True)
class Dataset:
    """An opened data set folder.

    Attributes:
        folder: Path as given to ``open_dataset``.
        manifest: Content of ``dataset.json``.
        encoder: Encoder of the texts.
        preprocessor: Preprocessor of the rows.
        splits: Documents with labels, by name (``SPLITS``).
        unlabelled: Documents without labels; ``None`` if there are none. They are not counted by class and not scored.
    """

    folder: Path
    manifest: dict[str, Any]
    encoder: CharEncoder
    preprocessor: TextPreprocessor
    splits: dict[str, Split]
    unlabelled: Documents | None = None

    @property
    def name(self) -> str:
        """Name of the folder. Symbolic links are not resolved."""
        return self.folder.absolute().name

    @property
    def classes(self) -> list[str]:
        """Class names in the order of their labels."""
        return list(self.manifest["classes"])

    @property
    def label_kind(self) -> str:
        """Kind of the labels of a row: ``one``, ``several`` or ``soft``."""
        return read_label_type(self.manifest)[0]

    def class_counts(self, name: str = "train") -> npt.NDArray[np.int64]:
        """Count the documents of each class in a split, int64 [classes]. A soft label counts as its most probable
        class."""
        split = self.splits[name]
        return split.targets.counts(np.arange(len(split)))

    def documents_in(self, name: str) -> Documents:
        """Return the documents of a split or the unlabelled documents; raise ``KeyError`` if they do not exist."""
        return self.unlabelled if name == UNLABELLED and self.unlabelled is not None else self.splits[name]

    def text(self, name: str, row: int) -> str:
        """Return a readable text of a row: the original text, or the decoded character ids if the split stores no
        texts."""
        documents = self.documents_in(name)
        original = documents.text(row)
        if original is None:
            return self.encoder.decode(documents.char_ids(np.array([row]))[0])
        return original

    def origin(self, name: str, row: int) -> SourceRow:
        """Return the source file and the line of a row.

        Raises:
            UserError: The data set does not list such a source.
        """
        documents = self.documents_in(name)
        source, line, text_hash = documents.source_rows[row].tolist()
        sources = self.manifest["sources"]
        if source >= len(sources):
            raise UserError(f"{self.folder / origins_file(name)} was altered", remedy="prepare the data again")
        return SourceRow(sources[source]["file"], line, documents.id(row), format_hash(text_hash))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest, which contains the checksums of the arrays."""
        return str(self.manifest["sha256"])


def open_dataset(folder: Path | str, *, trains: bool = True) -> Dataset:
    """Open a folder made by ``prepare``, and check file sizes, shapes and dtypes against the manifest.

    Args:
        trains: True if the folder must contain training rows.

    Raises:
        UserError: The folder is not a data set, has another format version, or its files do not match the manifest.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    prepare_again = f"prepare it again: {invocation.command_line('prepare')} SOURCE --out {folder}"
    if not path.is_file():
        raise UserError(
            f"{folder} is not a prepared data set",
            f"there is no {MANIFEST} in it" if folder.is_dir() else "there is no such folder",
            f"name a folder that prepare has written, or make one: {invocation.command_line('prepare')} SOURCE "
            f"--out DIR",
        )
    manifest = read_record(path, FORMAT, prepare_again)
    try:
        encoder = CharEncoder.from_dict(manifest["encoding"])
        preprocessor = TextPreprocessor.from_dict(manifest["composition"])
        classes = list(map(str, manifest["classes"]))
        documents = {name: _open_documents(folder, name, encoder, manifest) for name in manifest["splits"]}
        splits = {
            name: _open_split(split, len(classes), manifest) for name, split in documents.items() if name != UNLABELLED
        }
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise damaged_error(path, error, prepare_again) from error
    if len(classes) < 2 or (trains and not splits.get("train")):
        raise UserError(
            f"{folder} holds nothing to train on", "it needs at least two classes and one training row", prepare_again
        )
    return Dataset(folder, manifest, encoder, preprocessor, splits, documents.get(UNLABELLED))


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write ``dataset.json``."""
    write_sealed_json(folder / MANIFEST, FORMAT, manifest)


def write_documents(folder: Path, name: str, documents: Documents, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Copy documents, without their labels, to the split ``name`` of a data set folder.

    Args:
        rows: Row numbers of the documents, int64 [n].

    Returns:
        Entry of the split in the manifest.
    """
    length = documents.shards[0].shape[1]
    size = max(1, SHARD_BYTES // length)
    shards = [rows[start : start + size] for start in range(0, len(rows), size)]
    files = write_array(folder, origins_file(name), documents.source_rows[rows])
    for number, shard_rows in enumerate(shards):
        kinds = [TEXTS] * (name in SPLITS_WITH_TEXTS) + [IDS] * documents.has_ids
        writer = ShardWriter(folder, name, number, len(shard_rows), length, kinds)
        for start in range(0, len(shard_rows), CHUNK):
            chunk = shard_rows[start : start + CHUNK]
            texts, ids = (
                [(read(row) or "").encode() for row in chunk.tolist()] for read in (documents.text, documents.id)
            )
            writer.append(documents.char_ids(chunk), texts=texts, ids=ids)
        files |= writer.close()
    return {"rows": len(rows), "shards": list(map(len, shards)), "files": files}


def _open_documents(folder: Path, name: str, encoder: CharEncoder, manifest: dict[str, Any]) -> Documents:
    """Check the files of a split, and memory-map its documents."""
    entry = manifest["splits"][name]
    sizes = [parse_integer(rows, name="a number of rows") for rows in entry["shards"]]
    if name not in ALL_SPLITS or sum(sizes) != entry["rows"]:
        raise ValueError(f"the shards of the {name[:40]} split have {sum(sizes)} rows instead of {entry['rows']}"[:300])
    shards = range(len(sizes))
    has_ids = manifest.get("id") is not None
    for file, file_entry in entry["files"].items():
        size = (folder / file).stat().st_size if (folder / file).is_file() else None
        if size != file_entry["bytes"]:
            raise UserError(
                f"{folder / file} was truncated or altered" if size is not None else f"{folder / file} is missing",
                f"it has {size} bytes, {MANIFEST} says {file_entry['bytes']}" if size is not None else "",
                "prepare the data again",
            )
    char_ids = tuple(
        map_array(folder / f"{name}.codes-{shard:05d}.npy", np.uint8, (sizes[shard], encoder.feature_len))
        for shard in shards
    )
    for kind in [TEXTS] * (name in SPLITS_WITH_TEXTS) + [IDS] * has_ids:
        for shard in shards:
            check_strings(folder, name, kind, shard, sizes[shard])
    origin_rows = map_array(folder / origins_file(name), np.uint64, (entry["rows"], ORIGIN_COLUMNS))
    return Documents(folder, name, char_ids, np.cumsum([0, *sizes]), origin_rows, has_ids)


def _open_split(documents: Documents, classes: int, manifest: dict[str, Any]) -> Split:
    """Memory-map the labels, weights and groups of documents, and check them."""
    folder, name, rows = documents.folder, documents.name, len(documents)
    labelled, max_labels = read_label_type(manifest)
    labels = map_array(folder / f"{name}.labels.npy", np.int32, (rows,))
    min_label = -1 if labelled == MULTILABEL else 0
    if rows and not min_label <= labels.min() <= labels.max() < classes:
        raise ValueError(f"{name}.labels.npy does not match the shards or classes")
    weighted = WEIGHTS in manifest["splits"][name]["files"]
    weights = map_array(folder / WEIGHTS, np.float32, (rows,)) if weighted else None
    if weights is not None and not (len(weights) and 0 <= weights.min() <= weights.max() <= MAX_WEIGHT):
        raise ValueError(f"{WEIGHTS} holds weights that are not from 0 to {MAX_WEIGHT:g}")
    if labelled == SINGLE_LABEL:
        targets = Targets(SINGLE_LABEL, labels, classes)
    else:
        targets = open_targets(folder, name, rows, labelled, max_labels, classes)
    groups = None
    if groups_file(name) in manifest["splits"][name]["files"]:
        groups = map_array(folder / groups_file(name), np.int32, (rows,))
        if rows and groups.min() < 0:
            raise ValueError(f"{groups_file(name)} holds negative numbers")
    return Split(**vars(documents), labels=labels, weights=weights, targets=targets, groups=groups)
