"""Compression of a network to a maximum size, by removing unimportant embedding rows and by product quantization."""

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

# Quantization levels, most precise first. Each level is a pair: the number of elements per byte in embedding tables,
# and the number of elements per byte in other layers. The compression uses the first level at which rows with at least
# the fraction KEPT_IMPORTANCE of the tables' total importance fit into the size limit. If no level reaches
# KEPT_IMPORTANCE, the compression uses the last level, and fails if that level keeps less than MIN_IMPORTANCE.
LEVELS = ((1, 1), (2, 1), (4, 1), (8, 2))
KEPT_IMPORTANCE, MIN_IMPORTANCE = 0.98, 0.5  # Fractions of the importance of the tables.
MIN_QUANTIZED_SIZE = 1 << 12  # Minimum number of elements of an array that is quantized.
HEADER_BYTES = 120  # Upper bound on the size, in bytes, of the header entry for one array in a safetensors file.
MAX_CHARACTERS = 1 << 25  # Maximum number of characters per split that are read to compute the importance of rows.
CHUNK_CHARACTERS = 1 << 18  # Number of characters that are processed together.
MAX_SCORED = 5000  # Maximum number of test texts on which the compressed and the original network are compared.
BATCH_SIZE = 256  # Number of texts in a batch.
# Metadata keys that are copied to the compressed model. Scores are not copied, because they were measured before the
# compression.
COPIED_KEYS = ("data", "id", "labels", "composition", "reading")
RowCounts = dict[str, npt.NDArray[np.float64]]


def compress_to(predictor: Predictor, limit: int, out: Path, data: Path | None) -> tuple[list[Path], list[str]]:
    """Compress a checkpoint to at most ``limit`` bytes, and write it to a folder.

    Args:
        predictor: Predictor of the checkpoint, on the CPU.
        limit: Maximum size of the folder in bytes.
        out: Output folder.
        data: Prepared folder with the training split. If it is ``None``, the data set of the run is used.

    Returns:
        The paths of the written files, and sentences that describe the loss caused by the compression.

    Raises:
        UserError: The data set is missing or encoded differently, or the network cannot be compressed to this size.
    """
    engine, metadata = predictor.engine, predictor.metadata
    dataset = _dataset(predictor, data) if engine.config.sparse_parameters else None
    counts = row_importance(engine.config, engine.arrays, dataset) if dataset else {}
    copied: dict[str, Any] = {name: metadata[name] for name in COPIED_KEYS if name in metadata}
    copied["compressed"] = {"checkpoint": predictor.path.name, "sha256": metadata.get("sha256", ""), "size": limit}
    complete = {**copied, "encoding": predictor.encoding.to_dict(), "classes": predictor.classes}
    complete["calibration"] = predictor.calibration.to_dict()
    stored, numbers, rows = _compress(engine.config, engine.arrays, counts, limit, complete)
    with atomic_folder(out) as folder:
        file = folder / weights_io.MODEL_FILE
        weights_io.write_safetensors(stored, file)
        predictor.write_metadata(file, {**copied, "network": metadata.get("network", {})})
        files = sorted(folder.iterdir())
        assert sum(path.stat().st_size for path in files) <= limit
        compressed = open_checkpoint(file)
    notes = [f"{name} retains {num_kept:,} of {count:,} rows" for name, (num_kept, count) in rows.items()]
    notes.append(f"each byte of a table stores {pluralize(numbers, 'number')}")
    notes += _compare_scores(predictor, compressed, dataset)
    return [out / path.name for path in files], notes


def _dataset(predictor: Predictor, data: Path | None) -> Dataset:
    dataset = open_dataset(data or dataset_of_run(predictor.path))
    encoder = dataset.encoder
    if not encoder.same_mapping(predictor.encoding) or encoder.feature_len != predictor.encoding.feature_len:
        what = f"{dataset.folder} is encoded differently from the training data of {predictor.path}"
        raise UserError(what, remedy="name the data set of the training with --data")
    return dataset


def _compare_scores(before: Predictor, after: Predictor, dataset: Dataset | None) -> list[str]:
    if not dataset or not (split := dataset.splits.get("test")):
        return []
    if (before.is_multilabel, len(before.classes)) != (dataset.label_kind == MULTILABEL, len(dataset.classes)):
        return []
    sample = split.select(np.linspace(0, len(split) - 1, min(MAX_SCORED, len(split))).astype(np.int64))
    accuracies = [
        evaluate(predictor.engine, sample, BATCH_SIZE, SINGLE_PROCESS, before.calibration).accuracy
        for predictor in (before, after)
    ]
    texts = pluralize(len(sample), "test text")
    comparison = f"{percent(accuracies[0])} before the compression, {percent(accuracies[1])} after it"
    return [f"{score_name(before.is_multilabel)} on {texts}: {comparison}"]


def row_importance(shape: NetworkConfig, arrays: Arrays, data: Dataset) -> RowCounts:
    """Compute how strongly the training and validation documents use each row of the embedding tables.

    If a split is large, only a sample of evenly spaced documents is read.

    Returns:
        For each embedding table, by parameter name: the summed weights of the uses of each row (see
        ``NetworkConfig.row_usage``).
    """
    counts = {name: np.zeros(shape.parameter_shapes()[name][0]) for name in shape.sparse_parameters}
    step = max(1, CHUNK_CHARACTERS // shape.feature_len)
    for split in (split for name, split in data.splits.items() if name != "test"):
        sample_size = min(len(split), max(1, MAX_CHARACTERS // shape.feature_len))
        rows = np.linspace(0, len(split) - 1, sample_size).astype(np.int64)
        for start in range(0, sample_size, step):
            for name, (used, weights) in shape.row_usage(arrays, split.char_ids(rows[start : start + step])).items():
                counts[name] += np.bincount(used, weights, len(counts[name]))
    return counts


def _compress(
    shape: NetworkConfig, arrays: Arrays, counts: RowCounts, limit: int, metadata: dict[str, Any]
) -> tuple[Arrays, int, dict[str, tuple[int, int]]]:
    """Compress a network to at most ``limit`` bytes, including the metadata.

    The importance of a row is its squared norm, multiplied by the summed weight of its uses. Each table retains its
    most important rows. All tables retain the same fraction of their importance, the largest fraction that fits.

    Returns:
        The stored arrays; the number of table elements per byte; and for each table, the number of retained rows and
        the total number of rows.

    Raises:
        UserError: The network cannot be compressed to this size.
    """
    # 1000 bytes are reserved for metadata that ``write_metadata`` adds.
    fixed = len(json.dumps(metadata, indent=2, ensure_ascii=False).encode()) + 1000
    tables = {name: _PrunableEmbedding(arrays[name], count) for name, count in counts.items()}
    for numbers, other_numbers in LEVELS:
        other_bytes = fixed + sum(
            _size(name, array, other_numbers, shape) for name, array in arrays.items() if name not in tables
        )
        fraction = _max_fraction(tables, numbers, limit - other_bytes)
        if fraction >= KEPT_IMPORTANCE:
            break
    if fraction < MIN_IMPORTANCE:
        smallest = other_bytes + sum(table.size(MIN_IMPORTANCE, numbers) for table in tables.values())
        raise UserError(
            f"the network cannot be compressed to {size(limit)}",
            remedy=f"pass --max-size-mb {smallest / 1e6 + 0.001:.3f}",
        )
    stored: Arrays = {quantization.MARK: np.array([quantization.VERSION], np.int64)}
    rows = {}
    for name, array in arrays.items():
        if name in tables:
            table, mask = tables[name], tables[name].mask(fraction)
            stored |= quantization.product_quantize(name, array, table.numbers(numbers), mask, table.count)
            rows[name] = (int(mask.sum()), len(mask))
        elif name in shape.buffers:
            stored |= quantization.drop_zero_rows(name, array)
        elif array.size < MIN_QUANTIZED_SIZE:
            stored[name] = array
        else:
            stored |= quantization.product_quantize(name, array, other_numbers)
    return stored, numbers, rows


class _PrunableEmbedding:
    """Embedding table whose rows are sorted by importance, so that unimportant rows can be removed."""

    def __init__(self, array: npt.NDArray[np.float32], count: npt.NDArray[np.float64]) -> None:
        self.array = array
        self.count = count
        importance = count * np.square(array, dtype=np.float64).sum(axis=1)
        self.order = np.argsort(-importance, kind="stable")
        self.total = np.cumsum(importance[self.order])

    def num_rows(self, fraction: float) -> int:
        """Return the smallest number of rows that together account for this fraction of the table's importance."""
        return min(int(np.searchsorted(self.total, fraction * self.total[-1])) + 1, len(self.order))

    def mask(self, fraction: float) -> Mask:
        """Return a mask of the most important rows that together account for this fraction of the importance."""
        mask = np.zeros(len(self.order), np.bool_)
        mask[self.order[: self.num_rows(fraction)]] = True
        return mask

    def numbers(self, numbers: int) -> int:
        """Return ``numbers``, the number of elements per byte, limited to the table's number of columns."""
        return min(numbers, self.array.shape[1])

    def size(self, fraction: float, numbers: int) -> int:
        """Return an upper bound, in bytes, of the compressed size if this fraction of the importance is retained."""
        row = 1 - (-self.array.shape[1] // self.numbers(numbers))
        codebook = 2 * quantization.CENTROIDS * self.numbers(numbers)
        return self.num_rows(fraction) * row + len(self.order) // 255 + codebook + 4 * HEADER_BYTES


def _max_fraction(tables: dict[str, _PrunableEmbedding], numbers: int, limit: int) -> float:
    """Return the largest fraction of the importance that fits into ``limit`` bytes; 0 if no fraction fits."""
    low, high = 0.0, 2.0  # With these bounds, the first candidate of the bisection is 1, which retains all rows.
    for _ in range(32):
        middle = (low + high) / 2
        fits = sum(table.size(middle, numbers) for table in tables.values()) <= limit
        low, high = (middle, high) if fits else (low, middle)
    return min(low, 1.0)


def _size(name: str, array: npt.NDArray[Any], numbers: int, shape: NetworkConfig) -> int:
    """Return an upper bound on the size in bytes of an array that is not an embedding table."""
    if name in shape.buffers:
        return int(np.count_nonzero(array)) + array.size // 255 + 2 * HEADER_BYTES
    if array.size < MIN_QUANTIZED_SIZE:
        return 4 * array.size + HEADER_BYTES
    rows = len(array) * -(-(array.size // len(array)) // numbers)
    return rows + 2 * quantization.CENTROIDS * numbers + 3 * HEADER_BYTES
