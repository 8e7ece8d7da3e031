"""Refit of the n-gram table on every row, after the validation split has made its choices.

A validation split that is a share of the training files can be learnt from as well. A second run of the recipe, in the
folder ``refit`` of the run, trains the table alone on both splits, for as many epochs as the first one has chosen. Its
table replaces the first one. Tower, weight of the tower, and temperature or thresholds stay as they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from crepe_dist.data.arrays import Arrays
from crepe_dist.data.dataset import Dataset
from crepe_dist.distributed.world import once
from crepe_dist.engines.engine import Engine
from crepe_dist.model import parameters
from crepe_dist.model.calibration import Calibration
from crepe_dist.model.shape import Shape
from crepe_dist.runs import checkpoint
from crepe_dist.runs.run_folder import Result, RunFolder, write_result
from crepe_dist.runs.scores import AnyScores
from crepe_dist.settings.config import Config
from crepe_dist.training import recipe
from crepe_dist.training.engine_setup import build_engine
from crepe_dist.training.evaluation import BATCH_SIZE, evaluate
from crepe_dist.training.run import Session
from crepe_dist.training.training_data import uses_unlabelled
from crepe_dist.wording import percent

TABLE = "ngrams"  # network of the table alone, and prefix of its parameters in another one


def table_of(config: Config, data: Dataset, shape: Shape) -> Shape | None:
    """Return the shape of the table that a run refits; ``None`` if it refits none."""
    table: Shape = getattr(shape, "table", shape)
    is_off = not config.training.refit or config.training.init_from or uses_unlabelled(config, data)
    return table if table.kind == TABLE and data.holds_out and not is_off else None


def train(config: Config, data: Dataset, table: Shape, engine: Engine, folder: RunFolder, session: Session) -> Result:
    """Refit the table of the finished run in a folder, and report the network with it; every rank calls it.

    Args:
        table: result of ``table_of``.
        engine: engine of the run's network, whose parameters are replaced.
    """
    world, shape = session.world, engine.shape
    before, about, saved, scores = world.agree("chosen network", lambda: _chosen(folder))
    joined = _with_every_row(data)
    again = _of_table(config, table, shape, about["epoch"])
    fitted = recipe.train(again, joined, build_engine(again, joined, world), folder.refit, session)
    found = world.agree("refitted table", lambda: parameters.load(fitted.checkpoint))
    prefix = "" if shape == table else f"{TABLE}."
    arrays = {prefix + name: array for name, array in parameters.unpacked(found, table).items()}
    arrays = {**parameters.unpacked(saved, shape), **arrays}
    engine.set_values(arrays)
    thresholds = checkpoint.thresholds(about)
    decision = Calibration.of(about) if thresholds is None else thresholds
    test = evaluate(engine, data.splits["test"], BATCH_SIZE, world, decision)

    named = checkpoint.file_name(about["epoch"], test.accuracy, several=thresholds is not None, refit=True)
    record = {**about["metrics"], **{f"test_{name}": value for name, value in test.metrics().items()}}
    record["checkpoint"] = named
    figures = {"rows": len(joined.splits["train"]), "test_accuracy": about["test_accuracy"]}
    described = {**about, "test_accuracy": test.accuracy, "metrics": record, "refit": figures}

    def write() -> None:
        again = "the same command" + " without --fresh" * config.fresh
        checkpoint.save(folder.path, arrays, described, {**scores, "test": test}, again)

    world.on_root("checkpoint", once(write))
    made = {**before["provenance"], "refit": figures}
    result = write_result(folder, record, before["chosen_by"], made, world)
    if world.is_root:
        folder.tidy()
    session.display.say(f"refitted  test {percent(test.accuracy)}, before {percent(about['test_accuracy'])}")
    return result


def _chosen(folder: RunFolder) -> tuple[dict[str, Any], dict[str, Any], Arrays, dict[str, AnyScores]]:
    """Return the run's result, and description, parameters and scores of the checkpoint that it reports."""
    result = folder.result
    assert result is not None
    path = folder.path / result["checkpoint"]
    return result, checkpoint.describe(path) or {}, parameters.load(path), checkpoint.scores(path)


def _of_table(config: Config, table: Shape, shape: Shape, epochs: int) -> Config:
    """Return the configuration that trains the table as it is trained within a network of that shape."""
    model = replace(config.model, network=TABLE, buckets=table.settings()["buckets"], precision="auto")
    smoothing = config.training.label_smoothing
    smoothing = shape.label_smoothing if smoothing is None else smoothing
    training = replace(config.training, epochs=epochs, patience=0, label_smoothing=smoothing)
    return replace(config, model=model, training=training, logging=replace(config.logging, tensorboard=False))


def _with_every_row(data: Dataset) -> Dataset:
    """Move the rows of the validation split to the training split."""
    splits = dict(data.splits)
    held = splits.pop("validation")
    return replace(data, splits={**splits, "train": splits["train"].joined(held, held.labels, held.targets)})
