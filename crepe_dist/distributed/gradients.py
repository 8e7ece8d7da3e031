"""All-reduce of gradients in each step, together with a row of numbers from each rank."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import mxnet as mx
import numpy as np
import numpy.typing as npt

from crepe_dist.distributed.collectives import Collectives
from crepe_dist.mxnet_internals import pointers, trainer_parameters
from crepe_dist.native import library

Row = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reduced:
    """Outcome of an all-reduce, the same on every rank.

    Attributes:
        rows: float64 [size, n], one row per rank.
        not_finite: ranks with non-finite gradients; all ranks if only the sum overflowed.
    """

    rows: Row
    not_finite: tuple[int, ...]


class Trainer:
    """Gluon trainer of a single process, where the all-reduce changes nothing; base class of those of many.

    Args:
        trainer: the Gluon trainer, or Horovod's.

    Attributes:
        by: name of the mechanism that sums the gradients, for messages; empty for a single process.
    """

    by = ""

    def __init__(self, trainer: Any) -> None:
        self.gluon = trainer

    @property
    def gradients(self) -> list[Any]:
        return [each.grad() for each in trainer_parameters(self.gluon) if each.grad_req != "null"]

    def all_reduce(self, row: Row) -> Reduced:
        """Replace the gradients by their sums over the ranks and collect the rows; every rank calls it.

        Args:
            row: this rank's numbers, float64 [n].
        """
        return Reduced(row[None], () if _all_finite(self.gradients) else (0,))


class HorovodTrainer(Trainer):
    """All-reduce by Horovod, across hosts and on GPUs."""

    by = "Horovod"

    def __init__(self, trainer: Any, ranks: Collectives) -> None:
        super().__init__(trainer)
        self._ranks = ranks

    def all_reduce(self, row: Row) -> Reduced:
        # One flag per array, so that the all-reduce of a gradient need not wait for the others.
        flags = [mx.nd.multi_all_finite(each, num_arrays=1) for each in self.gradients]
        self.gluon.allreduce_grads()
        own = bool(mx.nd.concat(*flags, dim=0).min().asscalar())
        table = np.zeros((self._ranks.size, len(row) + 1))
        table[self._ranks.rank] = [*row, not own]
        table = self._ranks.sum(table, "report")
        culprits = np.flatnonzero(table[:, -1]).tolist()
        if not culprits and not _all_finite(self.gradients):
            culprits = list(range(self._ranks.size))
        return Reduced(table[:, :-1], tuple(culprits))


def _all_finite(gradients: list[Any]) -> bool:
    """Check that no gradient holds an infinity or NaN; waits for the gradients."""
    native, _ = library.find()
    on_cpu = all(each.context.device_type == "cpu" and each.dtype == np.float32 for each in gradients)
    if native is None or not on_cpu:
        return bool(mx.nd.multi_all_finite(*gradients, num_arrays=len(gradients)).asscalar())
    mx.nd.waitall()
    arrays = pointers(gradients)
    counts = (ctypes.c_int64 * len(gradients))(*[each.size for each in gradients])
    return bool(native.functions.crepe_finite(arrays, counts, len(gradients), library.threads()))
