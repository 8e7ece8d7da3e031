"""Sums of gradients in whole numbers, and the factor that clips them, for the exchanges that have such gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from crepe_dist.exchange.exchange import Reduced
from crepe_dist.exchange.quanta import Quanta

SENT = 16  # numbers that a rank may send along, besides its loss and the bounds of its gradients
Row = list[float]


def row_width(quanta: Quanta) -> int:
    """Return the most numbers of a rank's row: the bounds of its gradients, its loss, and what it sends along."""
    return SENT + 1 + len(quanta.parameters)


def summed(
    quanta: Quanta,
    compute: Callable[[], Any],
    add: Callable[[Row], list[Row]],
    numbers: Sequence[int],
    documents: int,
) -> Reduced:
    """Compute gradients, and sum them over the ranks, until the quanta fit; see ``Exchange.sum``.

    Args:
        add: sums the gradients over the ranks, and returns the rows of all ranks, given this rank's.
    """
    parameters = len(quanta.parameters)
    quanta.begin(documents)
    while True:
        loss = float(compute())
        rows = add([*quanta.bounds, loss, *numbers])
        bounds = [of_rank[:parameters] for of_rank in rows]
        if quanta.fit(bounds):
            break
    not_finite = [rank for rank, of_rank in enumerate(bounds) if not all(map(math.isfinite, of_rank))]
    sent = [list(map(int, of_rank[parameters + 1 :])) for of_rank in rows]
    return Reduced(sent, [of_rank[parameters] for of_rank in rows], tuple(not_finite))


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
