"""Functions that build a data set folder from a spool.

They split the rows, encode the texts, and write the shards and the manifest.
"""

from collections import Counter
from collections.abc import Set
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.arrays import (
    IDS,
    ORIGIN_COLUMNS,
    TEXTS,
    Files,
    ShardWriter,
    groups_file,
    origins_file,
    write_array,
    write_in_chunks,
)
from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.data.dataset import ALL_SPLITS, MAX_WEIGHT, SHARD_BYTES, SPLITS_WITH_TEXTS, WEIGHTS, write_manifest
from crepe_dist.data.targets import SINGLE_LABEL, Targets, argmax_classes, targets_file
from crepe_dist.data.text_preprocessing import TextPreprocessor
from crepe_dist.errors import UserError
from crepe_dist.files.atomic_write import fsync
from crepe_dist.preparing.corrections import apply_corrections
from crepe_dist.preparing.fit_encoder import fit_case, fit_encoder
from crepe_dist.preparing.grouping import Grouping
from crepe_dist.preparing.label_parsing import collect_classes, encode_labels, parse_label
from crepe_dist.preparing.quarantine import Quarantine, check_rows, write_quarantine
from crepe_dist.preparing.spec import PreparationSpec
from crepe_dist.preparing.splitting import (
    CHUNK_ROWS,
    TEST,
    TRAIN,
    UNKNOWN,
    UNLABELLED,
    Assignment,
    assign_splits,
    training_labels,
)
from crepe_dist.preparing.spool import RowSubset, SpooledRows, SpooledTexts
from crepe_dist.preparing.worker_pool import PrintLine, ProgressCallback, WorkerPool

# Limits of the rows that are encoded together: their number, and the size of their character ids in bytes.
MAX_CHUNK, CHUNK_BYTES = 4096, 1 << 23
# Name of the id column in the manifest if each row is a file of a folder.
FILE_NAME = "file name"


@dataclass
class TextCounts:
    """Statistics of the texts in a data set.

    Attributes:
        code_points: Number of occurrences of each code point that is not ASCII or not in the alphabet.
        lengths: Number of texts of each length. The length is the number of character ids before truncation.
    """

    code_points: Counter[int] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        """Number of texts."""
        return sum(self.lengths.values())

    def add(self, other: "TextCounts") -> None:
        """Add the counts of further texts."""
        self.code_points.update(other.code_points)
        self.lengths.update(other.lengths)


@dataclass(frozen=True)
class BuildResult:
    """Result of building a data set. The data report uses it.

    Attributes:
        encoder: Character encoder after fitting.
        preprocessor: Text preprocessor.
        classes: Names of the classes, in the order of their indices.
        assignment: Split of each row, or the reason why the row is left out, uint8 [rows]; see ``splitting``.
        targets: Labels of all rows. The labels of rows that are in no split are meaningless.
        counts: Counts of the texts in the data set.
        quarantine: Summary of the invalid rows.
        rows: Number of rows in each split.
        grouping: Groups of the rows; ``None`` if the rows have no groups.
    """

    encoder: CharEncoder
    preprocessor: TextPreprocessor
    classes: list[str]
    assignment: Assignment
    targets: Targets
    counts: TextCounts
    quarantine: Quarantine
    rows: dict[str, int]
    grouping: Grouping | None = None


def build_dataset(
    folder: Path,
    spec: PreparationSpec,
    collected: SpooledRows,
    workers: WorkerPool,
    show_progress: ProgressCallback,
    print_line: PrintLine,
) -> BuildResult:
    """Write all files of a data set except the report into an existing folder.

    Raises:
        UserError: Too many rows are invalid, there are fewer than two classes, or no rows are left for training.
    """
    split_of_file = np.array([ALL_SPLITS.index(source.split) for source in collected.sources], dtype=np.uint8)
    splits_with_files = {source.split for source in collected.sources}
    # If a split has its own files, no rows are drawn for it.
    fractions: dict[str, Any] = {split: 0.0 for split in ("test", "validation") if split in splits_with_files}
    given_split = split_of_file[collected.rows["file"]]
    names, known_labels = _find_classes(spec, collected, given_split)
    grouping = None
    if group_columns := spec.read_options.columns.groups:
        grouping = Grouping(group_columns, collected.group_values(len(group_columns)))
    options = replace(spec.split, **fractions)
    assignment = assign_splits(collected.rows, given_split, options, known_labels, grouping)
    emptied: set[str] = set()
    if spec.corrections is not None:
        # The labels influence how the splits are drawn. Corrections are applied after the draw, so that they do not
        # move rows to other splits.
        old_classes, _ = _find_classes(spec, collected, assignment)
        apply_corrections(collected, spec, spec.corrections, assignment, names)
        # A class without training rows cannot be learned, so it is removed, and its rows in other splits are left out.
        emptied = old_classes - _find_classes(spec, collected, assignment)[0]
        names, known_labels = _find_classes(spec, collected, given_split, emptied)
        assignment[(assignment <= TEST) & ~known_labels[collected.rows["label"]]] = UNKNOWN
    listed = [name for name in spec.read_options.class_names or () if name not in emptied]
    classes = list(spec.classes or listed or sorted(names, key=_label_sort_key))
    quarantine = write_quarantine(folder, spec, collected, assignment)
    check_rows(spec, collected, assignment, classes, quarantine)
    class_index = {label: index for index, label in enumerate(classes)}
    labels, targets = _build_targets(spec.label_kind, collected, class_index)
    if spec.classes is None and not (assignment == TRAIN).any():
        raise UserError(
            f"none of {collected.num_read:,} rows is left for training",
            "all rows are in other splits, or were left out",
            "give more rows, or smaller --test and --validation",
        )
    text_columns = collected.first_value("texts") or ()
    preprocessor = TextPreprocessor(tuple(text_columns), spec.read_options.strip_html)
    fitted = collected.subset(np.flatnonzero((assignment == TRAIN) | (assignment == UNLABELLED)))
    if spec.fit_case:
        chosen = np.flatnonzero(assignment == TRAIN)
        spec = fit_case(spec, collected.subset(chosen), labels[chosen], print_line)
    encoder = spec.encoder
    if len(fitted):
        encoder = fit_encoder(spec, fitted, workers, show_progress)
    del fitted  # Free the memory of many millions of indices.
    id_name = (spec.read_options.columns.id or FILE_NAME) if collected.rows["id"].any() else None
    groups = None if grouping is None else grouping.numbers(assignment)
    splits: dict[str, dict[str, Any]] = {}
    counts = TextCounts()
    for code, split in enumerate(ALL_SPLITS):
        chosen = np.flatnonzero(assignment == code)
        if len(chosen) == 0:
            continue
        files = _write_origins(folder, split, collected, chosen)
        if code != UNLABELLED:
            files |= write_array(folder, f"{split}.labels.npy", labels[chosen])
        if code != UNLABELLED and targets.kind != SINGLE_LABEL:
            files |= write_array(folder, targets_file(split), targets.stored[chosen])
        if code != UNLABELLED and groups is not None:
            files |= write_array(folder, groups_file(split), groups[chosen])
        if split == "train" and spec.read_options.columns.weight is not None:
            files |= write_array(folder, WEIGHTS, _divide_by_mean(collected.rows["weight"][chosen]))
        sizes = []
        kinds = (TEXTS,) * (split in SPLITS_WITH_TEXTS) + (IDS,) * (id_name is not None)
        size = max(1, SHARD_BYTES // encoder.feature_len)
        split_rows = collected.subset(chosen)
        shards = enumerate(split_rows.iter_chunks(size))
        write = partial(write_shard, folder, split, encoder, kinds)
        for shard_files, shard_counts in workers.map_in_order(write, shards):
            files |= shard_files
            counts.add(shard_counts)
            sizes.append(shard_counts.rows)
            show_progress("encoding", counts.rows, len(collected.rows))
        splits[split] = {"rows": len(chosen), "shards": sizes, "files": files}
    columns = spec.read_options.columns
    label = columns.label or collected.first_value("label")
    columns = replace(columns, label=label, needs_label=columns.label is not None)
    manifest: dict[str, Any] = {
        "encoding": encoder.to_dict(),
        "composition": preprocessor.to_dict(),
        "reading": replace(spec.read_options, columns=columns).to_dict(),
        "classes": classes,
        "splits": splits,
        "split": asdict(spec.split),
        "sources": [
            {"file": source.name, "split": source.split, "sha256": collected.files[file]["sha256"]}
            for file, source in enumerate(collected.sources)
        ],
        "bad_rows": quarantine.lines,
        "id": id_name,
    }
    if groups is not None:
        manifest["groups"] = {"columns": list(group_columns), "count": int(groups.max()) + 1}
    if label_type := manifest["reading"]["labelling"].pop("type"):
        manifest["label_type"] = label_type
    if collected.corrections is not None:
        manifest["corrections"] = collected.corrections
    if targets.kind != SINGLE_LABEL:
        manifest["labels"] = {"kind": targets.kind, "most": targets.max_labels}
    write_manifest(folder, manifest)
    fsync(folder)
    rows = {split: entry["rows"] for split, entry in splits.items()}
    return BuildResult(encoder, preprocessor, classes, assignment, targets, counts, quarantine, rows, grouping)


def _find_classes(
    spec: PreparationSpec, collected: SpooledRows, assignment: Assignment, emptied: Set[str] = frozenset()
) -> tuple[set[str], npt.NDArray[np.bool_]]:
    """Return the known classes, and a mask of the labels that contain only known classes, bool [labels].

    The known classes are ``spec.classes``, or otherwise the classes of the training rows.

    Args:
        assignment: Split of each row, or the split of the file that contains the row.
        emptied: Classes to leave out. Ignored if ``spec.classes`` is given.
    """
    used = training_labels(collected.rows, assignment)
    trained = [collected.labels[index] for index in np.flatnonzero(used).tolist()]
    names = collect_classes(trained, spec.label_kind) - emptied if spec.classes is None else set(spec.classes)
    return names, np.array(
        [names.issuperset(parse_label(label, spec.label_kind)) for label in collected.labels], np.bool_
    )


def write_shard(
    folder: Path,
    split: str,
    encoder: CharEncoder,
    kinds: tuple[str, ...],
    shard: tuple[int, RowSubset],
) -> tuple[Files, TextCounts]:
    """Encode and write one shard. Runs in a worker.

    Args:
        kinds: Kinds of byte strings to write in addition to the character ids: ``TEXTS``, ``IDS``.
        shard: Number of the shard, and its rows.
    """
    number, rows = shard
    texts = SpooledTexts(rows.text_files)
    known = np.flatnonzero(encoder.has_id(np.arange(128, dtype=np.uint32))).astype(np.uint8).tobytes()
    counts = TextCounts()
    writer = ShardWriter(folder, split, number, len(rows), encoder.feature_len, kinds)
    step = max(1, min(MAX_CHUNK, CHUNK_BYTES // encoder.feature_len))
    for chunk in map(RowSubset.records, rows.iter_chunks(step)):
        data = texts.get(chunk)
        codes, lengths = encoder.encode_and_measure([text.decode("utf-8") for text in data])
        counts.lengths.update(lengths.tolist())
        writer.append(codes, texts=data, ids=texts.ids(chunk))
        # Most characters are both ASCII and in the alphabet. Counting only the remaining characters is faster than
        # counting all characters.
        left = b"".join(data).translate(None, known).decode("utf-8")
        if left:
            values, times = np.unique(np.frombuffer(left.encode("utf-32-le"), dtype="<u4"), return_counts=True)
            counts.code_points.update(dict(zip(values.tolist(), times.tolist())))
    return writer.close(), counts


def _write_origins(folder: Path, split: str, collected: SpooledRows, chosen: npt.NDArray[np.int64]) -> Files:
    """Write the source, the line and the hash of each row of a split; see ``data/arrays``."""
    pieces = (collected.rows[chosen[start : start + CHUNK_ROWS]] for start in range(0, len(chosen), CHUNK_ROWS))
    columns = ("file", "line", "exact")
    arrays = (np.stack([rows[name].astype(np.uint64) for name in columns], axis=1) for rows in pieces)
    return write_in_chunks(folder, origins_file(split), np.uint64, (len(chosen), ORIGIN_COLUMNS), arrays)


def _build_targets(
    kind: str, collected: SpooledRows, class_index: dict[str, int]
) -> tuple[npt.NDArray[np.int32], Targets]:
    """Return one class index per row, and the targets of all rows.

    For multilabel and soft labels, the class is the most probable one. If several classes are equally probable, the
    class is the first of them.
    """
    if kind == SINGLE_LABEL:
        relabel = np.array([class_index.get(label, -1) for label in collected.labels], dtype=np.int32)
        labels = relabel[collected.rows["label"]]
        return labels, Targets(SINGLE_LABEL, labels, len(class_index))
    pairs = encode_labels(collected.labels, class_index)
    label = collected.rows["label"]
    return argmax_classes(pairs)[label], Targets(kind, pairs[label], len(class_index))


def _divide_by_mean(weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Divide the weights by their mean, so that the weights do not change the scale of the loss."""
    mean = weights.mean(dtype=np.float64)
    if mean == 0:
        raise UserError(
            "all weights are 0",
            "rows of weight 0 do not train the network",
            "give some rows a weight above 0, or leave out --weight",
        )
    if weights.max() > MAX_WEIGHT * mean:
        raise UserError(
            f"the weight {weights.max():g} is more than {MAX_WEIGHT:g} times the mean, {mean:g}",
            "a few rows would dominate training",
            "limit the weights, or repeat or leave out rows",
        )
    return np.asarray(weights / mean, dtype=np.float32)


def _label_sort_key(label: str) -> tuple[int, float, str]:
    """Return a sort key: integers come first in numerical order, then all other labels in alphabetical order."""
    return (0, float(label), label) if label.isdecimal() else (1, 0.0, label)
