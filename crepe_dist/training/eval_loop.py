"""One pass over a split: every rank counts its share of the documents, and the ranks sum the counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import takewhile
from typing import Protocol

import numpy as np
import numpy.typing as npt

from crepe_dist.data.batch import Order
from crepe_dist.data.dataset import Split
from crepe_dist.distributed.process_group import World
from crepe_dist.model.network_config import Shape
from crepe_dist.runs.scores import Mistake

Counts = npt.NDArray[np.int64]


class EvaluationStopped(Exception):
    """Raised on every rank if a request to stop arrives during evaluation."""


class Scorer(Protocol):
    """Engine that computes the logits of a split: that of training, or one for inference."""

    @property
    def shape(self) -> Shape:
        """Configuration of the network."""

    def scored(
        self, split: Split, batch_size: int, rank: int, size: int
    ) -> Iterator[tuple[Order, npt.NDArray[np.int32], npt.NDArray[np.float32]]]:
        """Yield a rank's share of each global batch in the order of the split.

        Returns:
            Rows, int64 [n]; labels, int32 [n]; logits, float32 [n, classes]. While the weight of Crepe's tower is
            fitted, both parts have logits, float32 [n, 2, classes].
        """


class Totals(ABC):
    """Running totals of the documents that this rank has scored; after ``pass_over``, those of all ranks."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []
        self.losses = np.zeros(2)  # sums in nats: of calibrated probabilities, and at temperature 1

    @property
    @abstractmethod
    def counts(self) -> list[Counts]:
        """Whole numbers, which the ranks sum in place."""

    @abstractmethod
    def add(self, rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int32], logits: npt.NDArray[np.float32]) -> None:
        """Add a batch of n documents.

        Args:
            rows: numbers of the documents, int64 [n].
            labels: int32 [n].
            logits: float32 [n, classes].
        """


class RightBits:
    """One bit for each document of a split, set if this rank predicted it correctly.

    Ranks score different documents, so a sum over the ranks joins the bits.
    """

    def __init__(self, documents: int) -> None:
        self.words = np.zeros(-(-documents // 64), dtype=np.int64)
        self._documents = documents

    def set(self, rows: npt.NDArray[np.int64]) -> None:
        """Set the bits of documents."""
        np.bitwise_or.at(self.words.view(np.uint8), rows >> 3, (128 >> (rows & 7)).astype(np.uint8))

    def unpacked(self) -> npt.NDArray[np.bool_]:
        """Return the bits as bool [documents]."""
        return np.unpackbits(self.words.view(np.uint8), count=self._documents).astype(bool)


@np.errstate(over="ignore", invalid="ignore")  # NaN after a divergence, which the loss tells
def pass_over(
    engine: Scorer,
    split: Split,
    batch_size: int,
    world: World,
    totals: Totals,
    is_stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Add the documents of a split to ``totals``, and those of all ranks to each other; every rank calls it.

    Args:
        batch_size: documents per step, over all ranks that score.
        is_stopping: called after each batch; once it returns true, this rank stops scoring.

    Raises:
        EvaluationStopped: on every rank, if ``is_stopping`` was true on one.
    """
    counting = _count(engine.scored(split, batch_size, world.rank, world.size), totals, world.beat)
    deque(takewhile(lambda _: not is_stopping(), counting), maxlen=0)
    world.before_long_wait()  # other ranks may be slower
    reports = world.gather([is_stopping(), [asdict(mistake) for mistake in totals.mistakes]], "evaluation.stop")
    world.beat()
    if any(stopping for stopping, _ in reports):
        raise EvaluationStopped
    for number, array in enumerate(totals.counts):
        array[:] = world.sum(array, f"evaluation.counts.{number}")
    totals.losses[:] = world.sum(totals.losses, "evaluation.loss")
    totals.mistakes = [Mistake.of(mistake) for _, of_rank in reports for mistake in of_rank]


def logits_of(engine: Scorer, split: Split, batch_size: int, world: World) -> npt.NDArray[np.float32]:
    """Compute the logits of a split, float32 [documents, classes]; every rank computes its share and gets all."""
    logits = np.zeros((len(split), engine.shape.classes), np.float32)
    for rows, _, of_rows in engine.scored(split, batch_size, world.rank, world.size):
        logits[rows] = of_rows
        world.beat()
    world.before_long_wait()  # other ranks may be slower
    return world.sum(logits, "logits")


def _count(
    scored: Iterator[tuple[Order, npt.NDArray[np.int32], npt.NDArray[np.float32]]],
    totals: Totals,
    beat: Callable[[], None],
) -> Iterator[None]:
    """Add batches of this rank's documents to the totals; yield after each."""
    for rows, labels, logits in scored:
        totals.add(rows, labels, logits)
        beat()
        yield
