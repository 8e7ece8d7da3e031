"""Scores of a network on one part of the data, exact for any number of ranks: counts are summed, not rates."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import mxnet as mx
import numpy as np
import numpy.typing as npt

from crepe_dist.cluster.control import Wish
from crepe_dist.cluster.world import World
from crepe_dist.data.dataset import Part
from crepe_dist.data.loader import batches
from crepe_dist.model.engine import Engine

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Scores:
    """What came out.

    Attributes:
        confusion: int64 [classes, classes]; row = true class, column = predicted class.
        loss: mean cross-entropy a document, in nats.
    """

    confusion: npt.NDArray[np.int64]
    loss: float

    @property
    def documents(self) -> int:
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Fraction of documents whose class was predicted."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    def per_class(self, classes: list[str]) -> pd.DataFrame:
        """Columns precision, recall, f1 (fractions; 0 where undefined) and documents, a row a class."""
        import pandas as pd  # half of the time that training needs to start, and training does not use it

        right = np.diag(self.confusion).astype(float)
        predicted = self.confusion.sum(axis=0)
        true = self.confusion.sum(axis=1)
        return pd.DataFrame(
            {
                "precision": right / np.maximum(predicted, 1),
                "recall": right / np.maximum(true, 1),
                "f1": 2 * right / np.maximum(predicted + true, 1),
                "documents": true,
            },
            index=pd.Index(classes, name="class"),
        )


class Interrupted(Exception):
    """Something else was asked for while the network was scored; raised on every rank.

    Attributes:
        wish: what.
    """

    def __init__(self, wish: Wish) -> None:
        super().__init__(wish.name)
        self.wish = wish


def evaluate(
    engine: Engine,
    part: Part,
    batch_size: int,
    world: World,
    *,
    sharded: bool = True,
    wish: Callable[[], Wish] = lambda: Wish.GO_ON,
) -> Scores:
    """Scores a network on ``part``; every rank calls it and gets the same result.

    Args:
        batch_size: documents a step over all ranks that score.
        sharded: every rank scores its share; else rank 0 scores everything while the others wait.
        wish: asked after each batch; anything but GO_ON ends the scoring of this rank.

    Raises:
        Interrupted: on every rank, if ``wish`` was something else on one.
    """
    classes = engine.network.shape.classes
    engine.refresh()
    counting = _count(engine, part, batch_size, *((world.rank, world.size) if sharded else (0, 1)), world.beat)
    counting = takewhile(lambda _: wish() is Wish.GO_ON, counting)
    totals = next(iter(deque(counting, maxlen=1)), None) if sharded else world.on_root("evaluation", counting)
    world.trust()  # other ranks may be slower
    strongest = max(world.gather(wish(), "evaluation.wish"))
    world.beat()
    if strongest != Wish.GO_ON:
        raise Interrupted(Wish(strongest))
    totals = totals or _Totals(np.zeros((classes, classes), dtype=np.int64))
    confusion = world.sum(totals.confusion, "evaluation.confusion")
    loss = world.sum(np.array([totals.loss]), "evaluation.loss")[0]
    return Scores(confusion, float(loss) / int(confusion.sum()))


@dataclass
class _Totals:
    confusion: npt.NDArray[np.int64]
    loss: float = 0.0


def _count(
    engine: Engine, part: Part, batch_size: int, rank: int, size: int, beat: Callable[[], None]
) -> Iterator[_Totals]:
    """Yields the running totals of this rank's documents after each batch."""
    classes = engine.network.shape.classes
    totals = _Totals(np.zeros((classes, classes), dtype=np.int64))
    for batch in batches(part, np.arange(len(part)), batch_size, rank, size):
        log_probabilities = mx.nd.log_softmax(engine.logits(batch)).asnumpy().astype(np.float64)
        labels = batch.labels
        mine = log_probabilities[: len(labels)]
        np.add.at(totals.confusion, (labels, mine.argmax(axis=1)), 1)
        totals.loss -= float(mine[np.arange(len(labels)), labels].sum())
        beat()
        yield totals
