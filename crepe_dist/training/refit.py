"""Refit of the n-gram table on every row, after the validation split has made its choices.

A validation split that is a fraction of the training files can also be learnt from. After the validation split has
selected the epoch, a second run of the training loop trains the n-gram table alone, on the rows of both splits. It
uses the folder ``refit`` of the run, and trains for as many epochs as the first run has selected. Its table then
replaces the table of the first run. The convolutional branch, its weight, and the temperature or thresholds stay as
they are. There is nothing to select, so the epochs of the refit have no scores and no checkpoints.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from crepe_dist.data.arrays import Arrays
from crepe_dist.data.dataset import Dataset
from crepe_dist.engines.engine import Engine
from crepe_dist.model import weights_io
from crepe_dist.model.calibration import Calibration
from crepe_dist.model.network_config import NetworkConfig
from crepe_dist.runs import checkpoint
from crepe_dist.runs.run_dir import Result, RunDir, write_result
from crepe_dist.settings.config import Config
from crepe_dist.training import train_loop
from crepe_dist.training.context import JobContext
from crepe_dist.training.evaluation import BATCH_SIZE, evaluate
from crepe_dist.training.model_setup import build_engine

NGRAM_BRANCH = "ngrams"  # network of the table alone, and prefix of its parameters in another one


def refit_config(config: Config, data: Dataset, shape: NetworkConfig) -> NetworkConfig | None:
    """Return the shape of the table that a run refits; ``None`` if it refits none."""
    table: NetworkConfig = getattr(shape, "ngram_config", shape)
    is_given = any(file["split"] == "validation" for file in data.manifest["sources"])
    is_wanted = not is_given if config.training.refit is None else config.training.refit
    is_possible = "validation" in data.splits and not config.training.init_from
    return table if table.kind == NGRAM_BRANCH and is_wanted and is_possible else None


def refit_ngram_branch(config: Config, data: Dataset, engine: Engine, result: Result, job: JobContext) -> Result:
    """Refit the table of a finished run if ``refit_config`` finds one, and report the network with it; every rank
    calls it.

    Args:
        data: what the reported network has learnt from.
        engine: engine of this network, whose parameters are replaced.
        chosen: result of the run before the refit.
    """
    world, shape, folder, splits = job.group, engine.config, RunDir(result.run_dir), data.splits
    if (table := refit_config(config, data, shape)) is None:
        return result
    held = splits["validation"]
    every = replace(data, splits={"train": splits["train"].concatenate(held, held.labels, held.targets)})
    table_config = _ngram_run_config(config, table, shape, result.epoch)
    context = train_loop.run_epochs(table_config, every, build_engine(table_config, every, world), folder.refit, job)

    def read() -> tuple[dict[str, Any], Arrays]:
        arrays = weights_io.decompress_all(weights_io.load(result.checkpoint), shape)
        return checkpoint.read_metadata(result.checkpoint) or {}, arrays

    about, arrays = world.run_on_all("chosen network", read)
    prefix = "" if shape == table else f"{NGRAM_BRANCH}."
    arrays |= {f"{prefix}{name}": array for name, array in context.engine.state_dict().items()}
    engine.load_state_dict(arrays)
    test = evaluate(engine, splits["test"], BATCH_SIZE, world, Calibration.from_metadata(about), data.hierarchy)
    figures = {"rows": len(every.splits["train"]), "test_accuracy": result.test_accuracy}
    name = checkpoint.file_name(result.epoch, test.accuracy, is_multilabel="labels" in about, is_refit=True)
    scored = {f"test_{metric}": value for metric, value in test.metrics().items()}
    record = {**about["metrics"], **scored, "checkpoint": name}
    about = {**about, "test_accuracy": test.accuracy, "metrics": record, "refit": figures}

    def write() -> None:
        scores = {**checkpoint.read_scores(result.checkpoint), "test": test}
        checkpoint.save_checkpoint(folder.path, arrays, about, scores)

    world.run_on_rank0("checkpoint", write)
    provenance = {**(folder.result or {})["provenance"], "refit": figures}
    return write_result(folder, record, result.chosen_by, provenance, world)


def _ngram_run_config(config: Config, table: NetworkConfig, shape: NetworkConfig, epochs: int) -> Config:
    """Return the configuration that trains the table as it is trained within a network of that shape."""
    model = replace(config.model, network=NGRAM_BRANCH, buckets=table.settings()["buckets"], precision="auto")
    smoothing = config.training.label_smoothing
    smoothing = shape.label_smoothing if smoothing is None else smoothing
    training = replace(config.training, epochs=epochs, patience=0, label_smoothing=smoothing)
    return replace(config, model=model, training=training, logging=replace(config.logging, tensorboard=False))
