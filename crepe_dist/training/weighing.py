"""Fitting the weight of Crepe's tower to the validation split, before the splits are scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from crepe_dist.data.dataset import Dataset, Split
from crepe_dist.data.order import Order
from crepe_dist.data.targets import SEVERAL
from crepe_dist.distributed.collectives import Collectives
from crepe_dist.engines.engine import Engine
from crepe_dist.model.part_weight import WeightCounts
from crepe_dist.model.shape import Shape
from crepe_dist.runs.checkpoint import AnyScores
from crepe_dist.runs.scores import Mistake, Scores
from crepe_dist.settings.training_options import EvaluationOptions
from crepe_dist.training.evaluation import evaluate_splits
from crepe_dist.training.scoring_pass import pass_over


def is_weighed(engine: Engine, data: Dataset) -> bool:
    """Return whether a weight is fitted: to the network's tower, by a validation split whose texts have one label."""
    return bool(engine.shape.weighed) and "validation" in data.splits and data.labelled != SEVERAL


def weighed_and_scored(
    engine: Engine, data: Dataset, options: EvaluationOptions, world: Collectives, is_stopping: Callable[[], bool]
) -> Mapping[str, AnyScores]:
    """Weigh Crepe's tower beside its n-gram table, then score the splits as ``evaluate_splits``."""
    alone = weigh_tower(engine, data, options, world, is_stopping)
    scores = dict(evaluate_splits(engine, data, options, world, is_stopping))
    if alone is not None and isinstance(whole := scores["validation"], Scores):
        scores["validation"] = replace(whole, table_accuracy=alone)
    return scores


def weigh_tower(
    engine: Engine, data: Dataset, options: EvaluationOptions, world: Collectives, is_stopping: Callable[[], bool]
) -> float | None:
    """Set the weight of the tower for the epoch's scores and checkpoint; every rank calls it and finds the same.

    Returns:
        The accuracy of the table alone on the validation split; ``None`` if nothing was weighed.

    Raises:
        Interrupted: on every rank, if ``is_stopping`` became true on one.
    """
    if not is_weighed(engine, data):
        return None
    totals = _Totals()
    (totals.fit.sums, (documents, right)), _, _ = pass_over(
        _Apart(engine), data.splits["validation"], options.batch_size, world, totals,
        sharded=options.sharded, is_stopping=is_stopping,
    )  # fmt: skip
    engine.weigh(1.0, totals.fit.fitted())
    return float(right / documents)


class _Apart:
    """Scorer whose logits are those of table and tower, float32 [n, 2, classes]."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def shape(self) -> Shape:
        return self._engine.shape

    def scored(
        self, split: Split, batch_size: int, rank: int, size: int
    ) -> Iterator[tuple[Order, npt.NDArray[np.int32], npt.NDArray[np.float32]]]:
        return self._engine.scored(split, batch_size, rank, size, apart=True)


class _Totals:
    """Running totals of ``scoring_pass.pass_over``: the sums of the fit alone."""

    def __init__(self) -> None:
        self.fit = WeightCounts()
        self.mistakes: list[Mistake] = []
        self.loss = 0.0

    @property
    def counts(self) -> list[npt.NDArray[np.int64]]:
        return [self.fit.sums, self.fit.alone]

    def add(self, rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int32], logits: npt.NDArray[np.float32]) -> None:
        self.fit.add(logits, labels)
