"""Evaluation of a network on a split. The ranks sum exact counts, so the number of ranks does not affect the scores."""

from collections.abc import Callable
from dataclasses import replace

from crepe_dist.data.dataset import Dataset, Split
from crepe_dist.data.targets import MULTILABEL
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.model.calibration import UNCALIBRATED, Calibration
from crepe_dist.runs.scores import DEFAULT_THRESHOLD, AnyScores
from crepe_dist.training.eval_loop import Scorer, run_eval_loop
from crepe_dist.training.metric_accumulators import (
    MulticlassAccumulator,
    MultilabelAccumulator,
    ScoreAccumulator,
)

BATCH_SIZE = 512  # Number of documents per step, over all ranks.


def evaluate_splits(
    engine: Scorer, data: Dataset, group: ProcessGroup, is_stopping: Callable[[], bool]
) -> dict[str, AnyScores]:
    """Evaluate the network on the validation and test splits.

    The validation split is evaluated first, and a calibration is fitted to it: a temperature, or thresholds if
    documents may have multiple labels. The test split is then evaluated with this calibration. The scores of the
    validation split use uncalibrated probabilities, except for the loss, which selects the epoch: the loss uses the
    fitted temperature. If documents may have multiple labels, the scores of the validation split use the fitted
    thresholds.

    Returns:
        A mapping from split names to scores.

    Raises:
        EvaluationStopped: ``is_stopping`` returned true on one rank. Every rank raises this error.
    """
    scores: dict[str, AnyScores] = {}
    calibration = UNCALIBRATED
    for name in ("validation", "test"):
        if name in data.splits:
            split, is_validation = data.splits[name], name == "validation"
            accumulator = score_accumulator(engine, split, calibration, fits_calibration=is_validation)
            scores[name] = run_eval_loop(engine, split, BATCH_SIZE, group, accumulator, is_stopping)
            calibration = accumulator.calibration
    return scores


def evaluate(
    engine: Scorer,
    split: Split,
    batch_size: int,
    group: ProcessGroup,
    calibration: Calibration,
) -> AnyScores:
    """Evaluate a network on a split. Every rank must call this function, and gets the same result.

    Args:
        batch_size: Number of documents per step, over all ranks.
        calibration: Calibration of the probabilities. If documents may have multiple labels and the calibration has no
            thresholds, the threshold of every label is ``DEFAULT_THRESHOLD``.
    """
    accumulator = score_accumulator(engine, split, calibration)
    return run_eval_loop(engine, split, batch_size, group, accumulator)


def score_accumulator(
    engine: Scorer,
    split: Split,
    calibration: Calibration,
    *,
    fits_calibration: bool = False,
) -> ScoreAccumulator:
    """Create the accumulator of a split's scores.

    The class of the accumulator depends on whether the labels are multilabel.
    """
    classes, targets = engine.config.num_classes, split.targets
    if targets.kind == MULTILABEL:
        calibration = replace(calibration, thresholds=calibration.thresholds or (DEFAULT_THRESHOLD,) * classes)
        return MultilabelAccumulator(len(split), targets, calibration, fits_calibration=fits_calibration)
    return MulticlassAccumulator(classes, split, calibration, fits_calibration=fits_calibration)
