"""Fitting the weight of Crepe's tower to the validation split, before the splits are scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from crepe_dist.data.dataset import Dataset, Split
from crepe_dist.data.targets import MULTILABEL
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.engines.engine import Engine, LogitsBatch
from crepe_dist.model.branch_weight import BranchWeightFitter, add_branches
from crepe_dist.model.network_config import NetworkConfig
from crepe_dist.runs.scores import AnyScores
from crepe_dist.training.eval_loop import run_eval_loop
from crepe_dist.training.evaluation import BATCH_SIZE, evaluate_splits
from crepe_dist.training.metric_accumulators import Labels, Logits, MetricAccumulator, Rows

MAX_REMEMBERED = 1 << 28  # bytes


def fit_branch_weight_and_evaluate(
    engine: Engine, data: Dataset, world: ProcessGroup, is_stopping: Callable[[], bool]
) -> tuple[Mapping[str, AnyScores], float]:
    """Weigh Crepe's tower beside its n-gram table, then score the splits as ``evaluate_splits``; every rank calls it.

    The weight is fitted to a validation split whose texts have one label; else, and for other networks, it is 1.

    Raises:
        EvaluationStopped: on every rank, if ``is_stopping`` became true on one.
    """
    if engine.config.num_branches == 1 or "validation" not in data.splits or data.label_kind == MULTILABEL:
        return evaluate_splits(engine, data, world, is_stopping), 1.0
    scorer = _Weighing(engine, data.splits["validation"])
    scorer.weight = run_eval_loop(scorer, scorer.split, BATCH_SIZE, world, _WeightAccumulator(), is_stopping)
    return evaluate_splits(scorer, data, world, is_stopping), scorer.weight


class _Weighing:
    """Scorer that computes the logits of table and tower, float32 [n, 2, classes], until the weight is fitted.

    Afterwards, it computes their weighted sum. It remembers the parts of the validation split, ``split``, unless they
    are larger than ``MAX_REMEMBERED``.
    """

    def __init__(self, engine: Engine, split: Split) -> None:
        self._engine = engine
        self.split = split
        self.weight: float | None = None
        self._remembers = 2 * 4 * len(split) * engine.config.num_classes <= MAX_REMEMBERED
        self._remembered: list[LogitsBatch] = []

    @property
    def config(self) -> NetworkConfig:
        return self._engine.config

    def iter_logits(self, split: Split, batch_size: int, rank: int, size: int) -> Iterator[LogitsBatch]:
        is_known = self.weight is not None and split is self.split and self._remembers
        apart = self._engine.iter_logits(split, batch_size, rank, size, self._engine.branch_logits)
        for rows, labels, parts in self._remembered if is_known else apart:
            if self.weight is not None:
                yield rows, labels, add_branches(parts, self.weight)
                continue
            if self._remembers:
                self._remembered.append((rows, labels, parts))
            yield rows, labels, parts


class _WeightAccumulator(MetricAccumulator[float]):
    """Accumulator of the losses for each candidate weight. The result is the best weight."""

    def __init__(self) -> None:
        super().__init__()
        self._fit = BranchWeightFitter()
        self._summed(self._fit.sums)

    def update(self, rows: Rows, labels: Labels, logits: Logits) -> None:
        self._fit.add(logits, labels)

    def result(self) -> float:
        return self._fit.best_weight()
