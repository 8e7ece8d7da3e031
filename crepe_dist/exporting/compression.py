"""Compression of a network to a given size: which rows of its tables to keep, and how many numbers share a byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.arrays import Arrays
from crepe_dist.data.dataset import Dataset, open_dataset
from crepe_dist.data.targets import MULTILABEL
from crepe_dist.distributed.process_group import SINGLE_PROCESS
from crepe_dist.errors import UserError
from crepe_dist.exporting.exporter import atomic_folder, dataset_of_run
from crepe_dist.formatting import percent, pluralize, score_name, size
from crepe_dist.model import quantization, weights_io
from crepe_dist.model.network_config import NetworkConfig
from crepe_dist.model.quantization import Mask
from crepe_dist.predicting.loading import open_checkpoint
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.training.evaluation import evaluate

# (numbers in a byte of a table, and of another layer), the most exact first. The first level whose tables keep ENOUGH
# of their importance is taken; the last one if none does, as long as LEAST is left.
LEVELS = ((1, 1), (2, 1), (4, 1), (8, 2))
KEPT_IMPORTANCE, MIN_IMPORTANCE = 0.98, 0.5
SMALL = 1 << 12  # numbers; smaller arrays stay as they are
HEADER = 120  # bytes of safetensors' header for one array
MAX_CHARACTERS = 1 << 25  # of the training split, in which rows are counted
CHARACTERS = 1 << 18  # looked up at a time
MAX_SCORED, BATCH = 5000, 256  # texts
# Of the description; its figures are those of the whole network.
KEPT = ("data", "id", "labels", "levels", "composition", "reading")
RowCounts = dict[str, npt.NDArray[np.float64]]


def compress_to(predictor: Predictor, limit: int, out: Path, data: Path | None) -> tuple[list[Path], list[str]]:
    """Compress a checkpoint to at most ``limit`` bytes, and write it to a folder.

    Args:
        predictor: predictor of the checkpoint, on the CPU.
        data: prepared folder of the training split; ``None`` for the run's.

    Returns:
        The files, and sentences about what was lost.

    Raises:
        UserError: the data are missing or encoded differently, or the network cannot be compressed to this size.
    """
    engine, about = predictor.engine, predictor.metadata
    dataset = _dataset(predictor, data) if engine.config.sparse_parameters else None
    counts = row_importance(engine.config, engine.arrays, dataset) if dataset else {}
    described: dict[str, Any] = {name: about[name] for name in KEPT if name in about}
    described["compressed"] = {"checkpoint": predictor.path.name, "sha256": about.get("sha256", ""), "size": limit}
    whole = {**described, "encoding": predictor.encoding.to_dict(), "classes": predictor.classes}
    whole["calibration"] = predictor.calibration.to_dict()
    stored, numbers, rows = _compressed(engine.config, engine.arrays, counts, limit, whole)
    with atomic_folder(out) as folder:
        file = folder / weights_io.MODEL_FILE
        weights_io.write_safetensors(stored, file)
        predictor.write_metadata(file, {**described, "network": about.get("network", {})})
        files = sorted(folder.iterdir())
        assert sum(each.stat().st_size for each in files) <= limit
        again = open_checkpoint(file)
    notes = [f"{name} keeps {kept:,} of {count:,} rows" for name, (kept, count) in rows.items()]
    notes += [f"each byte of a table holds {pluralize(numbers, 'number')}", *_scored(predictor, again, dataset)]
    return [out / each.name for each in files], notes


def _dataset(predictor: Predictor, data: Path | None) -> Dataset:
    dataset = open_dataset(data or dataset_of_run(predictor.path))
    here, there = dataset.encoder, predictor.encoding
    if not here.same_mapping(there) or here.feature_len != there.feature_len:
        what = f"{dataset.folder} is encoded differently from the texts of {predictor.path}"
        raise UserError(what, remedy="name the data that it was trained on with --data")
    return dataset


def _scored(before: Predictor, after: Predictor, dataset: Dataset | None) -> list[str]:
    if not dataset or not (split := dataset.splits.get("test")):
        return []
    if (before.is_multilabel, len(before.classes)) != (dataset.label_kind == MULTILABEL, len(dataset.classes)):
        return []
    some = split.select(np.linspace(0, len(split) - 1, min(MAX_SCORED, len(split))).astype(np.int64))
    scores = [
        evaluate(each.engine, some, BATCH, SINGLE_PROCESS, before.calibration).accuracy for each in (before, after)
    ]
    texts, shares = pluralize(len(some), "test text"), f"{percent(scores[0])} before, {percent(scores[1])} now"
    return [f"{score_name(before.is_multilabel)} on {texts}: {shares}"]


def row_importance(shape: NetworkConfig, arrays: Arrays, data: Dataset) -> RowCounts:
    """Weigh how documents that a network may have learnt from use each row of its tables, by parameter name.

    Of long splits, evenly spaced documents are counted.
    """
    counts = {name: np.zeros(shape.parameter_shapes()[name][0]) for name in shape.sparse_parameters}
    step = max(1, CHARACTERS // shape.feature_len)
    for split in (split for name, split in data.splits.items() if name != "test"):
        some = min(len(split), max(1, MAX_CHARACTERS // shape.feature_len))
        rows = np.linspace(0, len(split) - 1, some).astype(np.int64)
        for start in range(0, some, step):
            for name, (used, weights) in shape.row_usage(arrays, split.char_ids(rows[start : start + step])).items():
                counts[name] += np.bincount(used, weights, len(counts[name]))
    return counts


def _compressed(
    shape: NetworkConfig, arrays: Arrays, counts: RowCounts, limit: int, about: dict[str, Any]
) -> tuple[Arrays, int, dict[str, tuple[int, int]]]:
    """Compress a network to at most ``limit`` bytes, its description ``about`` included.

    The importance of a row of a table is its squared length times the weight of its uses. Every table keeps the same
    share of its importance, the largest that fits, in its most important rows.

    Returns:
        The stored arrays, the numbers in a byte of a table, and the kept rows and all rows of each table.

    Raises:
        UserError: the network cannot be compressed to this size.
    """
    fixed = len(json.dumps(about, indent=2, ensure_ascii=False).encode()) + 1000
    tables = {name: _PrunableEmbedding(arrays[name], count) for name, count in counts.items()}
    for numbers, other_numbers in LEVELS:
        others = fixed + sum(
            _size(name, array, other_numbers, shape) for name, array in arrays.items() if name not in tables
        )
        share = _largest_share(tables, numbers, limit - others)
        if share >= KEPT_IMPORTANCE:
            break
    if share < MIN_IMPORTANCE:
        smallest = others + sum(table.size(MIN_IMPORTANCE, numbers) for table in tables.values())
        raise UserError(
            f"the network cannot be compressed to {size(limit)}",
            remedy=f"give --max-size-mb {smallest / 1e6 + 0.001:.3f}",
        )
    stored: Arrays = {quantization.MARK: np.array([quantization.VERSION], np.int64)}
    rows = {}
    for name, array in arrays.items():
        if name in tables:
            table, kept = tables[name], tables[name].kept(share)
            stored |= quantization.product_quantize(name, array, table.numbers(numbers), kept, table.count)
            rows[name] = (int(kept.sum()), len(kept))
        elif name in shape.buffers:
            stored |= quantization.drop_zero_rows(name, array)
        elif array.size < SMALL:
            stored[name] = array
        else:
            stored |= quantization.product_quantize(name, array, other_numbers)
    return stored, numbers, rows


class _PrunableEmbedding:
    """A table whose rows can be left out."""

    def __init__(self, array: npt.NDArray[np.float32], count: npt.NDArray[np.float64]) -> None:
        self.array = array
        self.count = count
        importance = count * np.square(array, dtype=np.float64).sum(axis=1)
        self.order = np.argsort(-importance, kind="stable")
        self.total = np.cumsum(importance[self.order])

    def rows(self, share: float) -> int:
        """Return the number of rows that have ``share`` of the importance."""
        return min(int(np.searchsorted(self.total, share * self.total[-1])) + 1, len(self.order))

    def kept(self, share: float) -> Mask:
        """Return the mask of these rows."""
        mask = np.zeros(len(self.order), np.bool_)
        mask[self.order[: self.rows(share)]] = True
        return mask

    def numbers(self, numbers: int) -> int:
        """Return how many numbers share a byte, at most those of a row."""
        return min(numbers, self.array.shape[1])

    def size(self, share: float, numbers: int) -> int:
        """Return an upper bound of the bytes of these rows."""
        row = 1 - (-self.array.shape[1] // self.numbers(numbers))
        book = 2 * quantization.CENTROIDS * self.numbers(numbers)
        return self.rows(share) * row + len(self.order) // 255 + book + 4 * HEADER


def _largest_share(tables: dict[str, _PrunableEmbedding], numbers: int, limit: int) -> float:
    """Return the largest share of the importance that fits into ``limit`` bytes; 0 if none does."""
    low, high = 0.0, 2.0  # of which 1 is tried first
    for _ in range(32):
        middle = (low + high) / 2
        fits = sum(table.size(middle, numbers) for table in tables.values()) <= limit
        low, high = (middle, high) if fits else (low, middle)
    return min(low, 1.0)


def _size(name: str, array: npt.NDArray[Any], numbers: int, shape: NetworkConfig) -> int:
    """Return an upper bound of the bytes of an array that is no table."""
    if name in shape.buffers:
        return int(np.count_nonzero(array)) + array.size // 255 + 2 * HEADER
    if array.size < SMALL:
        return 4 * array.size + HEADER
    return len(array) * -(-(array.size // len(array)) // numbers) + 2 * quantization.CENTROIDS * numbers + 3 * HEADER
