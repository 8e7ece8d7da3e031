"""Counts of the documents with several labels that a rank has scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from crepe_dist.data.dataset import Dataset, Split
from crepe_dist.data.targets import Targets
from crepe_dist.distributed.collectives import Collectives
from crepe_dist.model.objective import rounded
from crepe_dist.runs.label_scores import (
    DEFAULT_THRESHOLD,
    INTERVALS,
    TOPS,
    Floats,
    LabelScores,
    average_precision,
    choose_thresholds,
    decided,
    intervals,
    log_odds,
)
from crepe_dist.runs.scores import BINS, Mistake, count_reliability
from crepe_dist.settings.training_options import EvaluationOptions
from crepe_dist.training.scoring_pass import RightBits, Scorer, pass_over


def evaluate_label_splits(
    engine: Scorer, data: Dataset, options: EvaluationOptions, world: Collectives, is_stopping: Callable[[], bool]
) -> dict[str, LabelScores]:
    """Score the network on the validation split, which chooses the thresholds, and on the test split.

    Raises:
        Interrupted: on every rank, if ``is_stopping`` became true on one.
    """
    found: dict[str, LabelScores] = {}
    for name in ("validation", "test"):
        if name in data.splits:
            found[name] = evaluate_labels(
                engine, data.splits[name], options.batch_size, world,
                found["validation"].thresholds if "validation" in found else None,
                chooses=name == "validation", sharded=options.sharded, is_stopping=is_stopping,
            )  # fmt: skip
    return found


def evaluate_labels(
    engine: Scorer,
    split: Split,
    batch_size: int,
    world: Collectives,
    thresholds: Floats | None,
    *,
    chooses: bool = False,
    sharded: bool = True,
    is_stopping: Callable[[], bool] = lambda: False,
) -> LabelScores:
    """Score a network on a split with several labels; every rank calls it and gets the same result.

    Args:
        thresholds: those that decide; ``None``: ``DEFAULT_THRESHOLD`` for each class.
        chooses: choose the thresholds by this split.

    For the other arguments and the error, see ``scoring_pass.pass_over``.
    """
    assert split.targets is not None
    totals = LabelTotals(engine.shape.classes, len(split), split.targets, thresholds)
    counts, loss, _ = pass_over(engine, split, batch_size, world, totals, sharded=sharded, is_stopping=is_stopping)
    return totals.scores(counts, loss / len(split), chooses=chooses)


class LabelTotals:
    """Running totals of several labels; see ``scoring_pass.Totals``.

    Args:
        targets: labels of the split.
        thresholds: those that decide; ``None``: ``DEFAULT_THRESHOLD`` for each class.
    """

    def __init__(self, classes: int, documents: int, targets: Targets, thresholds: Floats | None) -> None:
        self._documents = documents
        self._targets = targets
        self._thresholds = np.full(classes, DEFAULT_THRESHOLD) if thresholds is None else thresholds
        self._histogram = np.zeros((classes, INTERVALS, 2), dtype=np.int64)
        self._hits = np.zeros(len(TOPS), dtype=np.int64)
        self._reliability = np.zeros((BINS, 3), dtype=np.int64)
        self._right = RightBits(documents)
        self.mistakes: list[Mistake] = []
        self.loss = 0.0

    @property
    def counts(self) -> list[npt.NDArray[np.int64]]:
        return [self._histogram, self._hits, self._reliability, self._right.words]

    def add(self, rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int32], logits: npt.NDArray[np.float32]) -> None:
        if not len(rows):
            return
        wanted = self._targets.shares(rows) > 0
        classes = np.arange(logits.shape[1])
        np.add.at(self._histogram, (np.broadcast_to(classes, logits.shape), intervals(logits), wanted.astype(int)), 1)
        exact = logits.astype(np.float64)
        self.loss += float(rounded((np.logaddexp(0, exact) - wanted * exact).sum(axis=1)).sum())
        ranking = np.argsort(-logits, axis=1, kind="stable")[:, : max(TOPS)]
        found = np.take_along_axis(wanted, ranking, axis=1)
        self._hits += [int(found[:, :k].sum()) for k in TOPS]
        probabilities = np.nan_to_num(1 / (1 + np.exp(-np.clip(exact, -500, 500)))).ravel()
        self._reliability += count_reliability(probabilities, wanted.ravel())
        self._right.set(rows[((logits >= log_odds(self._thresholds)) == wanted).all(axis=1)])

    def scores(self, counts: Sequence[npt.NDArray[np.int64]], loss: float, *, chooses: bool) -> LabelScores:
        """Return the scores of the whole split.

        Args:
            counts: sums of ``counts`` over the ranks.
            loss: mean loss.
            chooses: choose the thresholds by this split.
        """
        histogram, hits, reliability, right = counts
        thresholds = choose_thresholds(histogram) if chooses else self._thresholds
        return LabelScores(
            self._documents,
            loss,
            decided(histogram, thresholds),
            average_precision(histogram),
            hits,
            thresholds,
            reliability,
            None if chooses else RightBits.unpacked(right, self._documents),
        )
