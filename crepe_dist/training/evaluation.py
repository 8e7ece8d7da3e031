"""Evaluation of a network on a split, exact for any number of ranks: counts are summed, not averaged."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import takewhile
from typing import Protocol

import numpy as np
import numpy.typing as npt

from crepe_dist.data.dataset import Dataset, Part
from crepe_dist.data.order import Order
from crepe_dist.distributed.collectives import Collectives
from crepe_dist.model.shape import Shape
from crepe_dist.runs.scores import BINS, MILLION, MISTAKES, RANKED, Mistake, Scores, worst
from crepe_dist.settings.training_options import EvaluationOptions


class Interrupted(Exception):
    """Raised on every rank if a request to stop arrives during evaluation."""


class Scorer(Protocol):
    """Engine that computes the logits of a split: that of training, or one for inference."""

    @property
    def shape(self) -> Shape:
        """Configuration of the network."""

    def scored(
        self, part: Part, batch_size: int, rank: int, size: int
    ) -> Iterator[tuple[Order, npt.NDArray[np.int32], npt.NDArray[np.float32]]]:
        """Yield a rank's share of each global batch in the order of the split.

        Returns:
            Rows, int64 [n]; labels, int32 [n]; logits, float32 [n, classes].
        """


def evaluate_splits(
    engine: Scorer, data: Dataset, options: EvaluationOptions, world: Collectives, is_stopping: Callable[[], bool]
) -> dict[str, Scores]:
    """Score the network on every split but the train split; return the scores by name.

    Raises:
        Interrupted: on every rank, if ``is_stopping`` became true on one.
    """
    return {
        name: evaluate(engine, split, options.batch_size, world, sharded=options.sharded, is_stopping=is_stopping)
        for name, split in data.parts.items()
        if name != "train"
    }


def evaluate(
    engine: Scorer,
    split: Part,
    batch_size: int,
    world: Collectives,
    *,
    sharded: bool = True,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Scores:
    """Score a network on a split; every rank calls it and gets the same result.

    Args:
        batch_size: documents per step, over all ranks that score.
        sharded: let every rank score its share; else rank 0 scores everything while the others wait.
        is_stopping: called after each batch; once it returns true, this rank stops scoring.

    Raises:
        Interrupted: on every rank, if ``is_stopping`` was true on one.
    """
    counting = _count(engine, split, batch_size, *((world.rank, world.size) if sharded else (0, 1)), world.beat)
    counting = takewhile(lambda _: not is_stopping(), counting)
    totals = next(iter(deque(counting, maxlen=1)), None) if sharded else world.on_root("evaluation", counting)
    totals = totals or _Totals(engine.shape.classes, len(split))
    world.trust()  # other ranks may be slower
    reports = world.gather([is_stopping(), [asdict(each) for each in totals.mistakes]], "evaluation.stop")
    world.beat()
    if any(stopping for stopping, _ in reports):
        raise Interrupted
    counts = [totals.confusion, totals.reliability, totals.right]
    summed = world.sum(np.concatenate([each.ravel() for each in counts]), "evaluation.counts")
    confusion, reliability, right = np.split(summed, np.cumsum([each.size for each in counts])[:-1])
    loss = world.sum(np.array([totals.loss]), "evaluation.loss")[0]
    return Scores(
        confusion.reshape(totals.confusion.shape),
        float(loss) / int(confusion.sum()),
        reliability.reshape(totals.reliability.shape),
        worst([Mistake.of(each) for _, mistakes in reports for each in mistakes]),
        np.unpackbits(right.view(np.uint8), count=len(split)).astype(bool),
    )


class _Totals:
    """Running totals of the documents that this rank has scored.

    Attributes:
        confusion, reliability, mistakes, loss: as in ``Scores``, but the loss is a sum.
        right: int64, one bit for each document of the split, set if this rank predicted it correctly. Ranks score
            different documents, so a sum over the ranks joins the bits.
    """

    def __init__(self, classes: int, documents: int) -> None:
        self.confusion = np.zeros((classes, classes), dtype=np.int64)
        self.reliability = np.zeros((BINS, 3), dtype=np.int64)
        self.right = np.zeros(-(-documents // 64), dtype=np.int64)
        self.mistakes: list[Mistake] = []
        self.loss = 0.0

    def add(
        self, rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int32], log_probabilities: npt.NDArray[np.float64]
    ) -> None:
        """Add a batch of n documents.

        Args:
            rows: numbers of the documents, int64 [n].
            labels: int32 [n].
            log_probabilities: float64 [n, classes].
        """
        if not len(labels):
            return
        # Rounding may give a logarithm just above zero; a network that diverged gives NaNs.
        probabilities = np.nan_to_num(np.exp(np.minimum(log_probabilities, 0)))
        predicted = log_probabilities.argmax(axis=1)
        is_right = predicted == labels
        np.add.at(self.confusion, (labels, predicted), 1)
        self.loss -= float(log_probabilities[np.arange(len(labels)), labels].sum())
        confidence = probabilities.max(axis=1)
        bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
        parts = np.rint(confidence * MILLION).astype(np.int64)
        np.add.at(self.reliability, bins, np.stack([np.ones_like(parts), is_right, parts], axis=1))
        mine = rows[is_right]
        np.bitwise_or.at(self.right.view(np.uint8), mine >> 3, (128 >> (mine & 7)).astype(np.uint8))
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


def _count(
    engine: Scorer, part: Part, batch_size: int, rank: int, size: int, beat: Callable[[], None]
) -> Iterator[_Totals]:
    """Yield the running totals of this rank's documents after each batch."""
    totals = _Totals(engine.shape.classes, len(part))
    for rows, labels, logits in engine.scored(part, batch_size, rank, size):
        totals.add(rows, labels, _log_softmax(logits).astype(np.float64))
        beat()
        yield totals


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Compute the logarithms of the probabilities, float32 [n, classes]."""
    if not len(logits):
        return logits
    logits = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
