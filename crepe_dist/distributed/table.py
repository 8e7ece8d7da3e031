"""Row-sparse training of a parameter: each step reads, sums and updates only the rows that its documents touch.

The result is that of the dense optimizer up to rounding: a row that a step does not touch is moved on when it is next
read or updated, by as much as its momentum would have moved it since (``native/table.h``). Only weight decay is
different: it acts on a row in the steps that touch it.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mxnet as mx
import numpy as np
import numpy.typing as npt

from crepe_dist.distributed.collectives import Collectives
from crepe_dist.distributed.optimizers import Rule, has_row_moments, other_optimizer
from crepe_dist.errors import UserError
from crepe_dist.mxnet_internals import pointer, view
from crepe_dist.native import library

NO_ROW = -1
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class SparseParameter:
    """A parameter to be trained row by row.

    Attributes:
        parameter: Gluon parameter [rows, columns] without a gradient.
        index: its index among those of the trainer.
        most_rows: largest number of rows that this rank touches in a step.
        attach: called with the address of the table that the engine shall read and write its gradient to.
    """

    parameter: Any
    index: int
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
        optimizer: MXNet's optimizer, for its constants.
        memories: memory of each process of the host, uint8; none: this process keeps the table alone.
        process: place of this process among them.
        exchange: sums of the rows over hosts; ``None`` for a single host.

    Attributes:
        parameter: the parameter.
        index: its index among those of the trainer.
        bytes: memory of this process.
    """

    def __init__(
        self,
        sparse: SparseParameter,
        optimizer: mx.optimizer.Optimizer,
        memories: Sequence[npt.NDArray[np.uint8]] = (),
        process: int = 0,
        exchange: HostExchange | None = None,
    ) -> None:
        if not memories:
            pages = mmap.mmap(-1, sparse.bytes(1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            pages.madvise(mmap.MADV_HUGEPAGE)  # rows are read in random order
            memories = [np.frombuffer(pages, np.uint8)]
        self._memories = memories
        self._exchange = exchange
        self.parameter = sparse.parameter
        self.index = sparse.index
        self.bytes = sparse.bytes(len(memories))
        self._prefix = f"{sparse.index}."
        self._weight_decay = optimizer.wd
        self._rule = Rule(optimizer)
        self._moments = self._rule.moments
        self._updates = 0
        self._run = library.functions()
        self._table = self._run.crepe_table_open(
            sparse.shape,
            self._rule.number,
            self._rule.constants,
            has_row_moments(sparse.parameter),
            (ctypes.c_void_p * len(memories))(*[each.ctypes.data for each in memories]),
            len(memories),
            process,
            sparse.most_rows,
            library.threads(),
        )
        _check(self._table is None)
        weakref.finalize(self, self._run.crepe_table_close, self._table)
        self.restore({}, 0)
        sparse.attach(self._table)

    def sum(self) -> None:
        """Sum the gradients of this process's rows over the ranks; every rank calls it."""
        _check(self._run.crepe_table_sum(self._table))
        if self._exchange:
            self._exchange.add(self)

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
        pointers = (ctypes.c_void_p * len(lists))(*[each.ctypes.data for each in lists])
        _check(self._run.crepe_table_take(self._table, pointers, counts, len(lists)))

    def update(self, learning_rate: float, scale: float) -> None:
        """Update this process's rows with ``scale`` times the last sum, in quanta.

        All processes call it, and none reads before all have returned.
        """
        self._updates += 1
        rate = self._rule.rate(learning_rate * self.parameter.lr_mult, self._updates)
        _check(self._run.crepe_table_update(self._table, rate, scale, self._weight_decay))

    def flush(self) -> None:
        """Move all of this process's rows on to the last update.

        All processes call it, and none reads before all have returned.
        """
        _check(self._run.crepe_table_flush(self._table))

    def publish(self) -> None:
        """Copy the values of all rows into the Gluon parameter; rows that were not moved on keep their values."""
        mx.nd.waitall()
        self._run.crepe_table_store(self._table, pointer(self.parameter.data()), None, None, None)

    def arrays(self) -> Arrays:
        """Copy the optimizer's state, which with the parameter's values restores the table.

        Returns:
            The moments under the names of ``runs.state``. If rows have not been moved on, also the update that each
            row is from, int32 [rows], and the drift since each of them, float64 [updates + 1].
        """
        shape = self.parameter.shape
        moments = [np.empty(shape, np.float32) for _ in range(self._moments)]
        updated = np.empty(shape[0], np.int32)
        second = moments[1].ctypes.data if self._moments == 2 else None
        values = np.empty(shape, np.float32)
        self._run.crepe_table_store(
            self._table, values.ctypes.data, moments[0].ctypes.data, second, updated.ctypes.data
        )
        found: Arrays = {}
        if self._updates and any(self._rule.decays):
            found = {f"{self._prefix}{number}": moment for number, moment in enumerate(moments)}
        history = np.empty(self._run.crepe_table_history(self._table, None))
        if len(history) > 1:
            self._run.crepe_table_history(self._table, history.ctypes.data)
            found |= {f"{self._prefix}updated": updated, f"{self._prefix}drift": history}
        return found

    def restore(self, arrays: Arrays, updates: int) -> Arrays:
        """Restore the parameter's current values and the result of ``arrays``; every process calls it.

        Args:
            arrays: arrays of an optimizer.
            updates: number of updates so far.

        Returns:
            The arrays that are not the table's.

        Raises:
            UserError: the arrays do not fit.
        """
        mine = {name: each for name, each in arrays.items() if name.startswith(self._prefix)}
        others = {name: each for name, each in arrays.items() if name not in mine}
        shape = self.parameter.shape
        drift, updated = _ages(mine, self._prefix, shape[0])
        moments = _moments(mine, self._prefix, shape, self._moments)
        if mine or len(drift) > updates + 1 or (drift.any() and moments[0] is None):
            raise _misfit(self._prefix)
        mx.nd.waitall()
        values = np.ascontiguousarray(view(self.parameter.data()))
        addresses = [None if each is None else np.ascontiguousarray(each) for each in (values, *moments)]
        places = [each if each is None else each.ctypes.data for each in addresses] + [None] * (2 - self._moments)
        _check(
            self._run.crepe_table_load(
                self._table, *places, np.ascontiguousarray(updated).ctypes.data, drift.ctypes.data, len(drift)
            )
        )
        self._updates = updates
        return others


def moved_on(
    values: npt.NDArray[np.float32], arrays: Arrays, index: int, optimizer: mx.optimizer.Optimizer
) -> tuple[npt.NDArray[np.float32], Arrays]:
    """Move all rows of a saved table on to the last update, for an engine that trains all rows in each step.

    Args:
        values: values of the parameter.
        arrays: arrays of the optimizer, as ``Table.arrays`` returns them for this parameter.
        index: its index in the trainer.
        optimizer: MXNet's optimizer.

    Returns:
        The values and the arrays for such an engine.

    Raises:
        UserError: the arrays do not fit.
    """
    prefix, arrays = f"{index}.", dict(arrays)
    adam = Rule(optimizer).moments == 2
    drift, updated = _ages(arrays, prefix, values.shape[0] if values.ndim == 2 else 0)
    first, second = (*_moments(arrays, prefix, values.shape, 2 if adam else 1), None)[:2]
    if first is None and drift.any():
        raise _misfit(prefix)
    if first is None:
        return values, arrays
    change, age = drift[updated][:, None], (len(drift) - 1 - updated)[:, None].astype(np.float64)
    if second is None:
        moved, decay = values + change * first, optimizer.momentum
    else:
        moved, decay = values - change * first / (np.sqrt(second) + optimizer.epsilon), optimizer.beta1
        arrays[f"{prefix}1"] = (second * optimizer.beta2**age).astype(np.float32)
    arrays[f"{prefix}0"] = (first * decay**age).astype(np.float32)
    return moved.astype(np.float32), arrays


class HostExchange:
    """Sums of a table's rows over hosts: each rank sends what it has summed to the ranks that keep these rows.

    Args:
        horovod: the module ``horovod.mxnet``.
        ranks: collectives of all ranks.
        hosts: ranks of each host; those of one host share a table.
        sparse: parameter of the table.
    """

    def __init__(
        self, horovod: Any, ranks: Collectives, hosts: Sequence[Sequence[int]], sparse: SparseParameter
    ) -> None:
        self._hvd = horovod
        self._name = f"rows.{sparse.index}"
        self._rank = ranks.rank
        rows = sparse.parameter.shape[0]
        self._kept: dict[int, tuple[int, int]] = {}
        self._order = [rank for host in hosts for rank in host]
        for host in hosts:
            each = library.functions().crepe_table_rows_each(rows, len(host))
            for place, rank in enumerate(host):
                if ranks.rank not in host or rank == ranks.rank:
                    self._kept[rank] = (min(rows, place * each), min(rows, (place + 1) * each))
        self._size = ranks.size

    def add(self, table: Table) -> None:
        """Replace the last sum of this host by that of all hosts, in their order; every rank calls it."""
        nothing = (0, 0)
        lists = [table.give(*self._kept.get(rank, nothing)) for rank in range(self._size)]
        # MXNet has no empty arrays.
        end = np.array([[NO_ROW] + [0] * (lists[0].shape[1] - 1)], np.int32)
        lists[self._rank] = np.concatenate([lists[self._rank], end])
        sent = mx.nd.empty((sum(map(len, lists)), end.shape[1]), ctx=mx.cpu(), dtype="int32")
        view(sent)[:] = np.concatenate(lists)
        received, counts = self._hvd.alltoall(sent, splits=list(map(len, lists)), name=self._name)
        mx.nd.waitall()
        bounds = np.concatenate([[0], np.cumsum(counts.asnumpy())]).astype(int)
        by_rank = [view(received)[start:end] for start, end in zip(bounds, bounds[1:])]
        by_rank[self._rank] = by_rank[self._rank][:-1]
        table.take([by_rank[rank] for rank in self._order if rank in self._kept])


def _ages(arrays: Arrays, prefix: str, rows: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]:
    """Remove the drift and the update of each row from arrays, and return them."""
    drift, updated = (arrays.pop(f"{prefix}{name}", None) for name in ("drift", "updated"))
    if drift is None and updated is None:
        return np.zeros(1), np.zeros(rows, np.int32)
    if drift is None or updated is None or not rows:
        raise _misfit(prefix)
    fits = _is(drift, np.float64, (drift.size,)) and _is(updated, np.int32, (rows,))
    if not fits or not 0 <= updated.min() <= updated.max() < len(drift):
        raise _misfit(prefix)
    return drift, updated


def _moments(arrays: Arrays, prefix: str, shape: tuple[int, ...], number: int) -> list[npt.NDArray[np.float32] | None]:
    """Remove the moments from arrays, and return them: all of them, or ``None`` for each."""
    moments = [arrays.pop(f"{prefix}{place}", None) for place in range(number)]
    given = [each for each in moments if each is not None]
    if len(given) not in (0, number) or not all(_is(each, np.float32, shape) for each in given):
        raise _misfit(prefix)
    return moments


def _misfit(prefix: str) -> UserError:
    return other_optimizer(f"its arrays {prefix}* do not fit")


def _is(array: npt.NDArray[Any], dtype: Any, shape: tuple[int, ...]) -> bool:
    return array.dtype == dtype and array.shape == shape


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("there is not enough memory for the table of rows")
