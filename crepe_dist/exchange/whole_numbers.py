"""Sums of gradients in whole numbers, and the factor that clips them, for the exchanges that have such gradients."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from crepe_dist.exchange.exchange import Exchange, Reduced
from crepe_dist.exchange.quanta import Quanta
from crepe_dist.exchange.saved_arrays import Arrays

SENT = 16  # numbers that a rank may send along, besides its loss and the bounds of its gradients
Row = list[float]


def row_width(quanta: Quanta) -> int:
    """Return the most numbers of a rank's row: the bounds of its gradients, its loss, and what it sends along."""
    return SENT + 1 + len(quanta.parameters)


class WholeNumberExchange(Exchange):
    """Base class of the exchanges whose gradients are whole numbers.

    Args:
        quanta: the trained parameters, and quanta of their gradients.
    """

    def __init__(self, quanta: Quanta) -> None:
        self._quanta = quanta
        self._updates = 0

    def sum(self, compute: Callable[[], Any], numbers: Sequence[int], documents: int) -> Reduced:
        """As in ``Exchange``; the gradients remain whole numbers."""
        quanta, parameters = self._quanta, len(self._quanta.parameters)
        quanta.begin(documents)
        while True:
            loss = float(compute())
            rows = self._add([*quanta.bounds, loss, *numbers])
            bounds = [of_rank[:parameters] for of_rank in rows]
            if quanta.fit(bounds):
                break
        not_finite = [rank for rank, of_rank in enumerate(bounds) if not all(map(math.isfinite, of_rank))]
        sent = [list(map(int, of_rank[parameters + 1 :])) for of_rank in rows]
        return Reduced(sent, [of_rank[parameters] for of_rank in rows], tuple(not_finite))

    @abstractmethod
    def _add(self, row: Row) -> list[Row]:
        """Sum the gradients over the ranks, and return the rows of all ranks, given this rank's."""

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        before = self._quanta.state()
        try:
            yield
        finally:
            self._quanta.restore(before)

    def arrays(self) -> Arrays:
        arrays: Arrays = {"updates": np.array([self._updates], dtype=np.int64)}
        if (quanta := self._quanta.state()) is not None:
            arrays["quanta"] = quanta
        return arrays


def mean_scale(documents: float, clip_norm: float | None, squares: Callable[[], float]) -> float:
    """Return the factor of sums of gradients that gives their mean, clipped to a norm of ``clip_norm`` if it is given.

    Args:
        squares: returns the sum of the squares of the sums.
    """
    scale = np.float32(1 / documents)
    if clip_norm is None:
        return float(scale)
    norm = np.sqrt(np.float32(squares())) * scale
    clip = np.minimum(np.float32(clip_norm) / (norm + np.float32(1e-12)), np.float32(1))
    return float(scale) * float(clip)
