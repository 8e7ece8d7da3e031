"""What the ranks exchange in each step: the sums of their gradients, and a row of numbers from each."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from crepe_dist.native import library

if TYPE_CHECKING:
    from crepe_dist.distributed.shared_memory import SharedGradients
    from crepe_dist.distributed.world import World

Row = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Exchanged:
    """The same on every rank.

    Attributes:
        rows: float64 [size, n], each rank's row.
        not_finite: ranks whose gradients held an infinity or NaN; all where it is only the sum that overflowed.
    """

    rows: Row
    not_finite: tuple[int, ...]


class Exchange:
    """Of one process, whose gradients are the sums already.

    Args:
        trainer: Gluon trainer whose parameters' gradients are meant.
    """

    by = ""  # what sums, for a person to read

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    @property
    def gradients(self) -> list[Any]:
        return [p.grad() for p in self.trainer._params if p.grad_req != "null"]

    def __call__(self, row: Row) -> Exchanged:
        """Replaces the gradients by their sums over the ranks and collects the rows; every rank calls it.

        Args:
            row: float64 [n].
        """
        return Exchanged(row[None], () if _all_finite(self.gradients) else (0,))


class HorovodExchange(Exchange):
    by = "Horovod"

    def __init__(self, trainer: Any, world: World) -> None:
        super().__init__(trainer)
        self._world = world

    def __call__(self, row: Row) -> Exchanged:
        import mxnet as mx

        # Array by array, so that a gradient that is ready may travel while others are computed.
        flags = [mx.nd.multi_all_finite(each, num_arrays=1) for each in self.gradients]
        self.trainer.allreduce_grads()
        own = bool(mx.nd.concat(*flags, dim=0).min().asscalar())
        table = np.zeros((self._world.size, len(row) + 1))
        table[self._world.rank] = [*row, not own]
        table = self._world.sum(table, "report")
        culprits = np.flatnonzero(table[:, -1]).tolist()
        if not culprits and not _all_finite(self.gradients):
            culprits = list(range(self._world.size))
        return Exchanged(table[:, :-1], tuple(culprits))


class SharedExchange(Exchange):
    by = "shared memory"

    def __init__(self, trainer: Any, shared: SharedGradients) -> None:
        super().__init__(trainer)
        self._shared = shared
        trainer._allreduce_grads = shared.sum

    def __call__(self, row: Row) -> Exchanged:
        return self._shared.exchange(row)


def _all_finite(gradients: list[Any]) -> bool:
    """Whether there is no infinity or NaN; waits for the gradients."""
    import mxnet as mx

    native, _ = library.find()
    on_cpu = all(each.context.device_type == "cpu" and each.dtype == np.float32 for each in gradients)
    if native is None or not on_cpu:
        return bool(mx.nd.multi_all_finite(*gradients, num_arrays=len(gradients)).asscalar())
    from crepe_dist.data.loader import pointer

    mx.nd.waitall()
    arrays = (ctypes.c_void_p * len(gradients))(*[pointer(each) for each in gradients])
    counts = (ctypes.c_int64 * len(gradients))(*[each.size for each in gradients])
    return bool(native.functions.crepe_finite(arrays, counts, len(gradients), library.threads()))
