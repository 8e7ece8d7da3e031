"""Evaluation of a network on a split, exact for any number of ranks: counts are summed, not averaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from crepe_dist.data.dataset import Dataset, Split
from crepe_dist.data.targets import SEVERAL
from crepe_dist.distributed.collectives import Collectives
from crepe_dist.model.calibration import UNCALIBRATED, Calibration, CalibrationCounts
from crepe_dist.model.objective import rounded
from crepe_dist.runs.checkpoint import AnyScores
from crepe_dist.runs.scores import BINS, MISTAKES, RANKED, Mistake, Scores, count_reliability, worst
from crepe_dist.settings.training_options import EvaluationOptions
from crepe_dist.training.label_evaluation import evaluate_label_splits
from crepe_dist.training.scoring_pass import Interrupted, RightBits, Scorer, pass_over

__all__ = ["Interrupted", "Scorer", "evaluate", "evaluate_splits"]


def evaluate_splits(
    engine: Scorer, data: Dataset, options: EvaluationOptions, world: Collectives, is_stopping: Callable[[], bool]
) -> Mapping[str, AnyScores]:
    """Score the network on every split but the train split; return the scores by name.

    The validation split is scored first and calibrates the probabilities of both, or chooses the thresholds of several
    labels.

    Raises:
        Interrupted: on every rank, if ``is_stopping`` became true on one.
    """
    if data.labelled == SEVERAL:
        return evaluate_label_splits(engine, data, options, world, is_stopping)
    found: dict[str, Scores] = {}
    calibration = UNCALIBRATED
    for name in ("validation", "test"):
        if name in data.splits:
            counts = CalibrationCounts() if name == "validation" else None
            found[name] = evaluate(
                engine, data.splits[name], options.batch_size, world, calibration, counts,
                sharded=options.sharded, is_stopping=is_stopping,
            )  # fmt: skip
            calibration = counts.fitted() if counts else calibration
    return found


def evaluate(
    engine: Scorer,
    split: Split,
    batch_size: int,
    world: Collectives,
    calibration: Calibration = UNCALIBRATED,
    fit: CalibrationCounts | None = None,
    *,
    sharded: bool = True,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Scores:
    """Score a network on a split; every rank calls it and gets the same result.

    Args:
        batch_size: documents per step, over all ranks that score.
        calibration: calibration of the probabilities.
        fit: empty counts, to which the texts of all ranks are added.
        sharded: let every rank score its share; else rank 0 scores everything while the others wait.
        is_stopping: called after each batch; once it returns true, this rank stops scoring.

    Raises:
        Interrupted: on every rank, if ``is_stopping`` was true on one.
    """
    totals = _Totals(engine.shape.classes, len(split), calibration.temperature, fit)
    arrays, loss, mistakes = pass_over(
        engine, split, batch_size, world, totals, sharded=sharded, is_stopping=is_stopping
    )
    confusion, reliability, uncalibrated, right, *sums = arrays
    if fit:
        (fit.sums,) = sums
    return Scores(
        confusion,
        loss / int(confusion.sum()),
        reliability,
        worst(mistakes),
        RightBits.unpacked(right, len(split)),
        calibration,
        uncalibrated if calibration.temperature != 1 else None,
        fit.loss() if fit else None,
    )


class _Totals:
    """Running totals of the documents that this rank has scored.

    Attributes:
        confusion, reliability, uncalibrated, mistakes, loss: as in ``Scores``, but the loss is a sum.
        right: the documents that this rank predicted correctly.
    """

    def __init__(self, classes: int, documents: int, temperature: float, fit: CalibrationCounts | None) -> None:
        self.confusion = np.zeros((classes, classes), dtype=np.int64)
        self.reliability = np.zeros((BINS, 3), dtype=np.int64)
        self.uncalibrated = np.zeros((BINS, 3), dtype=np.int64)
        self.right = RightBits(documents)
        self.mistakes: list[Mistake] = []
        self.loss = 0.0
        self._temperature = np.float32(temperature)
        self._fit = fit

    @property
    def counts(self) -> list[npt.NDArray[np.int64]]:
        fitted = [self._fit.sums] if self._fit else []
        return [self.confusion, self.reliability, self.uncalibrated, self.right.words, *fitted]

    def add(self, rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int32], logits: npt.NDArray[np.float32]) -> None:
        """Add a batch of n documents.

        Args:
            rows: numbers of the documents, int64 [n].
            labels: int32 [n].
            logits: float32 [n, classes].
        """
        if not len(labels):
            return
        if self._fit:
            self._fit.add(logits, labels)
        log_probabilities = _log_softmax(logits)
        predicted = log_probabilities.argmax(axis=1)
        is_right = predicted == labels
        np.add.at(self.confusion, (labels, predicted), 1)
        self.loss -= float(rounded(log_probabilities[np.arange(len(labels)), labels]).sum())
        probabilities = _probabilities(log_probabilities)
        if self._temperature != 1:
            self.uncalibrated += count_reliability(probabilities.max(axis=1), is_right)
            probabilities = _probabilities(_log_softmax(logits / self._temperature))
        self.reliability += count_reliability(probabilities.max(axis=1), is_right)
        self.right.set(rows[is_right])
        self._remember(rows[~is_right], labels[~is_right], probabilities[~is_right])

    def _remember(
        self, rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int32], probabilities: npt.NDArray[np.float64]
    ) -> None:
        of_true = probabilities[np.arange(len(labels)), labels]
        found = np.lexsort((rows, of_true))[:MISTAKES]
        if len(self.mistakes) == MISTAKES:
            found = found[of_true[found] <= self.mistakes[-1].probability]
        mistakes = []
        for place in found.tolist():
            ranking = np.argsort(-probabilities[place], kind="stable")[:RANKED].tolist()
            pairs = tuple((index, float(probabilities[place, index])) for index in ranking)
            mistakes.append(Mistake(int(rows[place]), int(labels[place]), float(of_true[place]), pairs))
        if mistakes:
            self.mistakes = worst(self.mistakes + mistakes)


@np.errstate(over="ignore", invalid="ignore")  # NaN after a divergence
def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Compute the logarithms of the probabilities, float32 [n, classes]."""
    logits = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


def _probabilities(logarithms: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    # Rounding may give a logarithm just above zero; a network that diverged gives NaNs.
    return np.nan_to_num(np.exp(np.minimum(logarithms, 0).astype(np.float64)))
