"""Fitting the weight of Crepe's tower to the validation split, before the splits are scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from crepe_dist.data.dataset import Dataset, Part
from crepe_dist.data.order import Order
from crepe_dist.data.targets import SEVERAL
from crepe_dist.distributed.collectives import Collectives
from crepe_dist.model.shape import Shape
from crepe_dist.model.tower_weight import WeightCounts
from crepe_dist.networks.crepe_block import Crepe
from crepe_dist.networks.engine import Engine
from crepe_dist.runs.scores import Mistake
from crepe_dist.settings.training_options import EvaluationOptions
from crepe_dist.training.scoring_pass import pass_over


def is_weighed(engine: Engine, data: Dataset) -> bool:
    """Return whether a weight is fitted: to the network's tower, by a validation split whose texts have one label."""
    return isinstance(engine.network, Crepe) and "validation" in data.parts and data.labelled != SEVERAL


def weigh_tower(
    engine: Engine, data: Dataset, options: EvaluationOptions, world: Collectives, is_stopping: Callable[[], bool]
) -> None:
    """Set the weight of the tower for the epoch's scores and checkpoint; every rank calls it and finds the same.

    Raises:
        Interrupted: on every rank, if ``is_stopping`` became true on one.
    """
    if not is_weighed(engine, data):
        return
    totals = _Totals()
    (sums,), _, _ = pass_over(
        _Apart(engine), data.parts["validation"], options.batch_size, world, totals,
        sharded=options.sharded, is_stopping=is_stopping,
    )  # fmt: skip
    totals.fit.sums = sums
    engine.weigh(1.0, totals.fit.fitted())


class _Apart:
    """Scorer whose logits are those of table and tower, float32 [n, 2, classes]."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def shape(self) -> Shape:
        return self._engine.shape

    def scored(
        self, part: Part, batch_size: int, rank: int, size: int
    ) -> Iterator[tuple[Order, npt.NDArray[np.int32], npt.NDArray[np.float32]]]:
        return self._engine.scored(part, batch_size, rank, size, apart=True)


class _Totals:
    """Running totals of ``scoring_pass.pass_over``: the sums of the fit alone."""

    def __init__(self) -> None:
        self.fit = WeightCounts()
        self.mistakes: list[Mistake] = []
        self.loss = 0.0

    @property
    def counts(self) -> list[npt.NDArray[np.int64]]:
        return [self.fit.sums]

    def add(self, rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int32], logits: npt.NDArray[np.float32]) -> None:
        self.fit.add(logits, labels)
