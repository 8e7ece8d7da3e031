"""Fitting of the weight of Crepe's convolutional branch to the validation split, before the splits are evaluated."""

from collections.abc import Callable, Iterator, Mapping

from crepe_dist.data.dataset import Dataset, Split
from crepe_dist.data.targets import MULTILABEL
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.engines.engine import Engine, LogitsBatch
from crepe_dist.model.branch_weight import BranchWeightFitter, add_branches
from crepe_dist.runs.scores import AnyScores
from crepe_dist.training.eval_loop import run_eval_loop
from crepe_dist.training.evaluation import BATCH_SIZE, evaluate_splits
from crepe_dist.training.metric_accumulators import Labels, Logits, MetricAccumulator, Rows

MAX_CACHED_BYTES = 1 << 28  # Maximum size of the cached logits of the validation split, in bytes.


def fit_branch_weight_and_evaluate(
    engine: Engine, data: Dataset, group: ProcessGroup, is_stopping: Callable[[], bool]
) -> tuple[Mapping[str, AnyScores], float]:
    """Fit the weight of the convolutional branch, then evaluate the splits. Every rank must call this function.

    The weight is 1 if there is no validation split, if documents may have multiple labels, or if the network has only
    one branch.

    Returns:
        A mapping from split names to scores (``evaluate_splits``), and the weight.

    Raises:
        EvaluationStopped: ``is_stopping`` returned true on one rank. Every rank raises this error.
    """
    if engine.config.num_branches == 1 or "validation" not in data.splits or data.label_kind == MULTILABEL:
        return evaluate_splits(engine, data, group, is_stopping), 1.0
    scorer = _WeightedScorer(engine, data.splits["validation"])
    scorer.weight = run_eval_loop(scorer, scorer.split, BATCH_SIZE, group, _WeightAccumulator(), is_stopping)
    return evaluate_splits(scorer, data, group, is_stopping), scorer.weight


class _WeightedScorer:
    """Scorer that yields the logits of both branches, float32 [n, 2, classes], until the weight is fitted.

    Afterwards, it yields the weighted sums of the two branches, float32 [n, classes].

    Args:
        split: Validation split. It is evaluated twice, so the scorer caches the logits of both branches. If the logits
            would take more than ``MAX_CACHED_BYTES``, they are not cached, but computed twice.
    """

    def __init__(self, engine: Engine, split: Split) -> None:
        self._engine = engine
        self.config = engine.config
        self.split = split
        self.weight: float | None = None
        self._is_caching = 2 * 4 * len(split) * engine.config.num_classes <= MAX_CACHED_BYTES
        self._cache: list[LogitsBatch] = []

    def iter_logits(self, split: Split, batch_size: int, rank: int, size: int) -> Iterator[LogitsBatch]:
        is_cached = self.weight is not None and split is self.split and self._is_caching
        computed = self._engine.iter_logits(split, batch_size, rank, size, self._engine.branch_logits)
        for rows, labels, branches in self._cache if is_cached else computed:
            if self.weight is None and self._is_caching:
                self._cache.append((rows, labels, branches))
            yield rows, labels, branches if self.weight is None else add_branches(branches, self.weight)


class _WeightAccumulator(MetricAccumulator[float]):
    """Accumulator of the loss at each candidate weight. Its result is the weight with the lowest loss."""

    def __init__(self) -> None:
        super().__init__()
        self._fit = BranchWeightFitter()
        self._register(self._fit.sums)

    def update(self, rows: Rows, labels: Labels, logits: Logits) -> None:
        self._fit.add(logits, labels)

    def result(self) -> float:
        return self._fit.best_weight()
