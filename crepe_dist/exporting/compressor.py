"""Writing of a compressed network: the folder of ``--format crepe``, with its arrays compressed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from crepe_dist.data.dataset import Dataset, Split, open_dataset
from crepe_dist.errors import UserError
from crepe_dist.exporting.compression import Compressed, compress, count_rows
from crepe_dist.exporting.exporter import atomic_folder
from crepe_dist.exporting.verification import data_of
from crepe_dist.model import tensors_file
from crepe_dist.model.inference import Inference
from crepe_dist.predicting.predictor import Foreign, Predictor, open_checkpoint
from crepe_dist.runs.label_scores import Floats, log_odds

MOST_SCORED = 5000  # texts
BATCH = 256  # texts
# Of the description; its figures are those of the whole network.
KEPT = ("data", "id", "labels", "composition", "reading")


def compress_to(
    predictor: Predictor, limit: int, out: Path, data: Path | None
) -> tuple[list[Path], Compressed, tuple[int, float, float] | None]:
    """Compress a checkpoint to at most ``limit`` bytes, and write it to a folder.

    Args:
        predictor: predictor of the checkpoint, on the CPU.
        data: prepared folder of the training split; ``None`` for the run's.

    Returns:
        The files; the compressed network; and the number of test texts with the accuracies before and after, or
        ``None`` without a test split. The accuracy of several labels is their micro F1.

    Raises:
        UserError: The data are missing or encoded differently, or the network cannot be compressed to this size.
    """
    engine, about = predictor.engine, predictor.about
    dataset = _dataset(predictor, data) if engine.shape.tables else None
    counts = count_rows(engine.shape, dataset.splits["train"]) if dataset else {}
    kept: dict[str, Any] = {name: about[name] for name in KEPT if name in about}
    source = {"compressed": {"checkpoint": predictor.path.name, "sha256": about.get("sha256", ""), "size": limit}}
    encoding = {"encoding": predictor.encoding.to_dict(), "classes": predictor.classes}
    made = compress(engine.shape, engine.arrays, counts, limit, {**kept, **source, **encoding})
    with atomic_folder(out) as folder:
        file = folder / tensors_file.NAME
        tensors_file.write(made.stored, file)
        predictor.describe(file, {**kept, **source, "network": about.get("network", {})})
        total = sum(each.stat().st_size for each in folder.iterdir())
        if total > limit:
            raise AssertionError(f"{total:,} bytes instead of at most {limit:,}")
        again = open_checkpoint(file, Foreign())
        names = sorted(each.name for each in folder.iterdir())
    return [out / name for name in names], made, _accuracies(engine, again.engine, dataset, predictor.thresholds)


def _dataset(predictor: Predictor, data: Path | None) -> Dataset:
    try:
        dataset = open_dataset(data or data_of(predictor.path))
    except UserError as error:
        raise UserError(
            "the rows of the tables cannot be counted without the training split",
            str(error),
            "name the prepared folder with --data",
        ) from error
    here, there = dataset.encoding, predictor.encoding
    if not here.reads_as(there) or here.feature_len != there.feature_len:
        raise UserError(
            f"{dataset.folder} is encoded differently from the texts of {predictor.path}",
            f"the checkpoint: {there.described()}; the data: {here.described()}",
            "name the data that it was trained on with --data",
        )
    return dataset


def _accuracies(
    before: Inference, after: Inference, dataset: Dataset | None, thresholds: Floats | None
) -> tuple[int, float, float] | None:
    split = dataset.splits.get("test") if dataset else None
    if split is None or not len(split) or dataset is None or before.shape.classes != len(dataset.classes):
        return None
    rows = np.linspace(0, len(split) - 1, min(MOST_SCORED, len(split))).astype(np.int64)
    return len(rows), _accuracy(before, split, rows, thresholds), _accuracy(after, split, rows, thresholds)


def _accuracy(engine: Inference, split: Split, rows: np.ndarray[Any, Any], thresholds: Floats | None) -> float:
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    if thresholds is not None and split.targets is not None:
        predicted = np.concatenate([engine.logits(split.codes(batch)) for batch in batches]) >= log_odds(thresholds)
        wanted = split.targets.shares(rows) > 0
        return float(2 * (predicted & wanted).sum() / max(predicted.sum() + wanted.sum(), 1))
    right = [engine.logits(split.codes(batch)).argmax(axis=1) == split.labels[batch] for batch in batches]
    return float(np.concatenate(right).mean())
