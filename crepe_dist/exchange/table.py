"""Row-sparse training of a parameter: each step reads, sums and updates only the rows that its documents touch.

The result is that of the dense optimizer up to rounding: a row that a step does not touch is moved on when it is next
read or updated, by as much as its momentum would have moved it since (``native/table.h``). Two things are different:
weight decay acts on a row in the steps that touch it, and the change of Adam's epsilon is neglected meanwhile. GPUs
update all rows (``cuda``).
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.arrays import Arrays
from crepe_dist.exchange.exchange import SavedArrays
from crepe_dist.exchange.host_memory import back_with_huge_pages
from crepe_dist.exchange.optimizer import Optimizer
from crepe_dist.exchange.quanta import Parameter
from crepe_dist.native import library

Ages = tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]  # drift and update of each row; see ``Table.arrays``
Moments = list[npt.NDArray[np.float32]]


@dataclass(frozen=True)
class SparseParameter:
    """A parameter to be trained row by row.

    Attributes:
        name: its name.
        parameter: parameter [rows, columns] without a gradient.
        most_rows: largest number of rows that this rank touches in a step.
        attach: called with the address of the table, from which the engine reads and to which it adds its gradient.
    """

    name: str
    parameter: Parameter
    most_rows: int
    attach: Callable[[int], None]

    @property
    def shape(self) -> Any:
        return (ctypes.c_int64 * 2)(*self.parameter.shape)

    def bytes(self, processes: int) -> int:
        """Return the memory that each of the processes that share a table needs, in whole pages."""
        size = library.functions().crepe_table_bytes(self.shape, self.most_rows, processes)
        return -(-int(size) // mmap.PAGESIZE) * mmap.PAGESIZE


class Table:
    """Values and optimizer state of a parameter's rows, divided among the processes of a host.

    Args:
        sparse: the parameter; its current values are copied.
        optimizer: its constants.
        memories: memory of each process of the host, uint8.
        rank: local rank of this process among them.

    Attributes:
        name, parameter: those of ``sparse``.
    """

    def __init__(
        self, sparse: SparseParameter, optimizer: Optimizer, memories: Sequence[npt.NDArray[np.uint8]], rank: int
    ) -> None:
        self._memories = memories
        self.name = sparse.name
        self.parameter = sparse.parameter
        self._optimizer = optimizer
        self._updates = 0
        self._is_published = False
        self._run = library.functions()
        self._table = self._run.crepe_table_open(
            sparse.shape,
            optimizer.number,
            optimizer.constants,
            (ctypes.c_void_p * len(memories))(*[memory.ctypes.data for memory in memories]),
            len(memories),
            rank,
            sparse.most_rows,
            library.threads(),
        )
        _check(self._table is None)
        value = self.parameter.value
        back_with_huge_pages(value.ctypes.data, value.nbytes)  # scoring reads it
        weakref.finalize(self, self._run.crepe_table_close, self._table)
        self.load(0, None, (np.zeros(1), np.zeros(self.parameter.shape[0], np.int32)))
        sparse.attach(self._table)

    def collect(self) -> None:
        """List this process's rows that have a gradient in any process of the host.

        The sum reads the gradients of all processes, which must remain until all have updated their rows.
        """
        _check(self._run.crepe_table_collect(self._table))

    def squares(self) -> int:
        """Return the sum of the squares of the last sum, in quanta."""
        sums = (ctypes.c_uint64 * 2)()
        self._run.crepe_table_squares(self._table, sums)
        low, high = sums
        return low + (high << 32)

    def give(self, first: int, last: int) -> npt.NDArray[np.int32]:
        """Return the last sum of the rows in [first, last): records of the row's number and its sums, in quanta."""
        columns = self.parameter.shape[1]
        records = np.empty((self._run.crepe_table_summed(self._table), columns + 1), np.int32)
        return records[: self._run.crepe_table_give(self._table, first, last, records.ctypes.data)]

    def take(self, lists: Sequence[npt.NDArray[np.int32]]) -> None:
        """Replace the last sum by the sum of lists of records, each in ascending order of rows."""
        counts = (ctypes.c_int64 * len(lists))(*map(len, lists))
        pointers = (ctypes.c_void_p * len(lists))(*[records.ctypes.data for records in lists])
        _check(self._run.crepe_table_take(self._table, pointers, counts, len(lists)))

    def update(self, learning_rate: float, scale: float) -> None:
        """Update this process's rows with ``scale`` times the last sum, in quanta.

        All processes call it, and none reads before all have returned.
        """
        self._updates += 1
        self._is_published = False
        rate = self._optimizer.rate(learning_rate * self.parameter.rate, self._updates)
        _check(self._run.crepe_table_update(self._table, rate, scale, self._optimizer.weight_decay))

    def flush(self) -> None:
        """Move all of this process's rows on to the last update, and round them to float16, as files have them.

        All processes call it, and none reads before all have returned.
        """
        self._is_published = False
        _check(self._run.crepe_table_flush(self._table))

    def publish(self) -> None:
        """Copy the values of all rows into the parameter; rows that were not moved on keep their values."""
        if self._is_published:
            return
        self._run.crepe_table_store(self._table, self.parameter.value.ctypes.data, None, None, None)
        self._is_published = True

    def arrays(self) -> Arrays:
        """Copy the optimizer's state, which with the parameter's values restores the table.

        Returns:
            The moments under the names of ``SavedArrays``. If rows have not been moved on, also the update that each
            row is from, int32 [rows], and the drift since each of them, float64 [updates + 1].
        """
        if not self._updates:
            return {}
        moments = [np.empty(shape, np.float32) for shape in self._optimizer.moment_shapes(self.parameter)]
        updated = np.empty(self.parameter.shape[0], np.int32)
        addresses = [moment.ctypes.data for moment in moments]
        self._run.crepe_table_store(self._table, None, *[*addresses, None, None][:2], updated.ctypes.data)
        arrays: Arrays = {f"{self.name}.{number}": moment for number, moment in enumerate(moments)}
        history = np.empty(self._run.crepe_table_history(self._table, None))
        if len(history) > 1:
            self._run.crepe_table_history(self._table, history.ctypes.data)
            arrays |= {f"{self.name}.updated": updated, f"{self.name}.drift": history}
        return arrays

    def restore(self, saved: SavedArrays) -> None:
        """Restore the parameter's current values and the result of ``arrays``; every process calls it."""
        ages = saved.ages(self.name, self.parameter.shape[0])
        self.load(saved.updates, saved.moments(self.name, self._optimizer.moment_shapes(self.parameter)), ages)

    def load(self, updates: int, moments: Moments | None, ages: Ages) -> None:
        """Load the parameter's current values, and the optimizer's state after ``updates`` updates."""
        arrays = [self.parameter.value, *(moments or [])]
        arrays = [np.ascontiguousarray(array) for array in arrays]
        addresses = [array.ctypes.data for array in arrays] + [None] * (3 - len(arrays))
        drift, updated = map(np.ascontiguousarray, ages)
        _check(self._run.crepe_table_load(self._table, *addresses, updated.ctypes.data, drift.ctypes.data, len(drift)))
        self._updates = updates
        self._is_published = False


def catch_up(
    values: npt.NDArray[np.float32], moments: Moments, ages: Ages, optimizer: Optimizer
) -> tuple[npt.NDArray[np.float32], Moments]:
    """Move all rows of a saved table on to the last update, for an optimizer that updates all rows in each step.

    Args:
        ages: result of ``SavedArrays.ages``.

    Returns:
        The values and the moments for such an optimizer.
    """
    drift, updated = ages
    if len(drift) == 1:
        return values, moments
    change, age = drift[updated][:, None], (len(drift) - 1 - updated)[:, None].astype(np.float64)
    decayed = [_decayed(moment, decay, age) for moment, decay in zip(moments, optimizer.decays)]
    if len(moments) == 1:
        return (values + change * moments[0]).astype(np.float32), decayed
    first, second = moments
    moved = values - change * first / (np.sqrt(second) + optimizer.epsilon)
    return moved.astype(np.float32), decayed


def _decayed(moment: npt.NDArray[np.float32], decay: float, age: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    return (moment * decay**age).astype(np.float32)


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("there is not enough memory for the table of rows")
