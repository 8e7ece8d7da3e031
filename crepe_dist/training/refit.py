"""Refit of the n-gram branch on the train and validation splits, after the validation split has selected the epoch.

If the validation split was split off from the training files, its rows can also be used for training. After the model
selection, a second run of the training loop trains an n-gram network on the rows of both splits, in the subdirectory
``refit`` of the run. If epoch n was selected, the refit ends after n epochs of the run's schedule. The parameters of
the new network then replace the n-gram branch of the selected network. The convolutional branch, its weight, and the
temperature or thresholds do not change. The refit needs no model selection, so its epochs have no scores and no
checkpoints.
"""

from dataclasses import replace
from typing import Any

from crepe_dist.data.arrays import Arrays
from crepe_dist.data.dataset import Dataset
from crepe_dist.engines.engine import Engine
from crepe_dist.model import weights_io
from crepe_dist.model.calibration import Calibration
from crepe_dist.model.network_config import NetworkConfig
from crepe_dist.runs import checkpoint
from crepe_dist.runs.result import Result, write_result
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.settings.config import Config
from crepe_dist.training import train_loop
from crepe_dist.training.context import JobContext
from crepe_dist.training.evaluation import BATCH_SIZE, evaluate
from crepe_dist.training.model_setup import build_engine

# Name of the n-gram network. In a network with two branches, it is also the prefix of the n-gram branch's parameters.
NGRAM_BRANCH = "ngrams"


def refit_config(config: Config, data: Dataset, shape: NetworkConfig) -> NetworkConfig | None:
    """Return the configuration of the n-gram branch that the run refits. Return ``None`` if the run has no refit.

    By default, a run has a refit if its validation split was split off from the training files. A run without a
    validation split, without an n-gram branch, or with ``training.init_from`` never has a refit.
    """
    branch: NetworkConfig = getattr(shape, "ngram_config", shape)
    has_own_file = any(file["split"] == "validation" for file in data.manifest["sources"])
    is_requested = not has_own_file if config.training.refit is None else config.training.refit
    is_possible = "validation" in data.splits and not config.training.init_from
    return branch if branch.kind == NGRAM_BRANCH and is_requested and is_possible else None


def refit_ngram_branch(config: Config, data: Dataset, engine: Engine, result: Result, job: JobContext) -> Result:
    """Refit the n-gram branch of a run, and write a new checkpoint and a new result. Every rank must call this
    function.

    Args:
        data: Data set that the selected network was trained on.
        engine: Engine of the selected network. The refitted parameters are loaded into it.
        result: Result of the run before the refit.

    Returns:
        The new result, or ``result`` if the run has no refit or is already refitted.
    """
    group, shape, folder, splits = job.group, engine.config, RunDir(result.run_dir), data.splits
    # Another process may have refitted the branch while this one waited for the lock of the run.
    if (branch := refit_config(config, data, shape)) is None or folder.is_refitted:
        return result
    validation = splits["validation"]
    train = splits["train"].concatenate(validation, validation.labels, validation.targets)
    all_rows = replace(data, splits={"train": train})
    ngram_config = _ngram_run_config(config, branch, shape)
    ngram_engine = build_engine(ngram_config, all_rows, group)
    untracked = replace(job, trackers=())
    context = train_loop.run_epochs(ngram_config, all_rows, ngram_engine, folder.refit, untracked, result.epoch)

    def read() -> tuple[dict[str, Any], Arrays]:
        arrays = weights_io.decompress_all(weights_io.load(result.checkpoint), shape)
        return checkpoint.read_metadata(result.checkpoint) or {}, arrays

    metadata, arrays = group.run_on_all("selected network", read)
    prefix = "" if shape == branch else f"{NGRAM_BRANCH}."
    arrays |= {f"{prefix}{name}": array for name, array in context.engine.state_dict().items()}
    engine.load_state_dict(arrays)
    test = evaluate(engine, splits["test"], BATCH_SIZE, group, Calibration.from_metadata(metadata))
    figures = {"rows": len(train), "test_accuracy": result.test_accuracy}
    name = checkpoint.file_name(result.epoch, test.accuracy, is_multilabel="labels" in metadata, is_refit=True)
    test_metrics = {f"test_{metric}": value for metric, value in test.metrics().items()}
    record = {**metadata["metrics"], **test_metrics, "checkpoint": name}
    metadata = {**metadata, "test_accuracy": test.accuracy, "metrics": record, "refit": figures}

    def write() -> None:
        scores = {**checkpoint.read_scores(result.checkpoint), "test": test}
        checkpoint.save_checkpoint(folder.path, arrays, metadata, scores)

    group.run_on_rank0("checkpoint", write)
    provenance = {**(folder.result or {})["provenance"], "refit": figures}
    return write_result(folder, record, result.chosen_by, provenance, group)


def _ngram_run_config(config: Config, branch: NetworkConfig, shape: NetworkConfig) -> Config:
    """Return the configuration for training a separate n-gram network like the n-gram branch of the run's network.

    Args:
        branch: Configuration of the n-gram branch.
        shape: Configuration of the run's whole network.
    """
    model = replace(config.model, network=NGRAM_BRANCH, buckets=branch.settings()["buckets"], precision="auto")
    smoothing = config.training.label_smoothing
    smoothing = shape.label_smoothing if smoothing is None else smoothing
    training = replace(config.training, patience=0, label_smoothing=smoothing)
    return replace(config, model=model, training=training)
