"""Row-sparse training of a parameter: each step reads, sums and updates only the rows that its documents touch.

The result is that of the dense optimizer up to rounding: a row that a step does not touch is moved on when it is next
read or updated, by as much as its momentum would have moved it since
(``native/sharded_embedding.h``). Two things are different:
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
from crepe_dist.native import library
from crepe_dist.native.library import pointers
from crepe_dist.optim.optimizer_state import OptimizerState
from crepe_dist.optim.optimizers import OptimizerSpec
from crepe_dist.optim.parameter import Parameter
from crepe_dist.parallel.host_shared_memory import back_with_huge_pages

Int32Array = npt.NDArray[np.int32]
LazyState = tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]  # drift and update of each row; see ``Table.arrays``
Moments = list[npt.NDArray[np.float32]]


class RowSharding(ctypes.Structure):
    """The ranks that own the rows of a table, a block each; those of a host are neighbours.

    Attributes:
        all: their number.
        first: number of this host's first one.
        processes: number of those of this host.
    """

    _fields_ = (("num_shards", ctypes.c_int), ("first_local_shard", ctypes.c_int), ("num_local_shards", ctypes.c_int))


@dataclass(frozen=True)
class SparseParameter:
    """A parameter to be trained row by row.

    Attributes:
        parameter: parameter [rows, columns] without a gradient.
        most_rows: largest number of rows that this rank touches in a step.
        attach: called with the address of the table, from which the engine reads and to which it adds its gradient.
    """

    name: str
    parameter: Parameter
    max_rows_per_step: int
    on_open: Callable[[int], None]

    @property
    def c_shape(self) -> Any:
        return (ctypes.c_int64 * 3)(*self.parameter.shape, self.max_rows_per_step)

    def segment_bytes(self, sharding: RowSharding) -> int:
        """Return the memory that each process of a host needs, in whole pages."""
        size = library.functions().crepe_embedding_bytes(self.c_shape, ctypes.byref(sharding))
        return -(-int(size) // mmap.PAGESIZE) * mmap.PAGESIZE


class ShardedEmbedding:
    """Values and optimizer state of a parameter's rows, divided among all ranks, each of which owns a block.

    Args:
        sparse: the parameter; its current values are copied.
        memories: memory of each process of the host, uint8.
        rank: local rank of this process among them.
    """

    def __init__(
        self,
        sparse: SparseParameter,
        optimizer: OptimizerSpec,
        sharding: RowSharding,
        segments: Sequence[npt.NDArray[np.uint8]],
        local_rank: int,
    ) -> None:
        self._owners = sharding
        self._memories = segments
        self.name = sparse.name
        self.parameter = sparse.parameter
        self._optimizer = optimizer
        self._updates = 0
        self._run = library.functions()
        self._handle = self._run.crepe_embedding_open(
            sparse.c_shape,
            optimizer.kernel_id,
            optimizer.constants,
            (ctypes.c_void_p * len(segments))(*[memory.ctypes.data for memory in segments]),
            ctypes.byref(sharding),
            local_rank,
            library.num_threads(),
        )
        _check_memory(self._handle is None)
        value = self.parameter.data
        back_with_huge_pages(value.ctypes.data, value.nbytes)  # scoring reads it
        weakref.finalize(self, self._run.crepe_embedding_close, self._handle)
        self._rows_each = self._run.crepe_embedding_rows_per_shard(sparse.c_shape, ctypes.byref(sharding))
        self._bounds = np.zeros(sharding.num_shards + 1, np.int64)  # of the rows of each owner among those of `keep`
        self._kept = np.zeros(0, np.int32), np.zeros((0, self.parameter.shape[1]), np.int32)
        self._load(0, None, (np.zeros(1), np.zeros(self.parameter.shape[0], np.int32)))
        sparse.on_open(self._handle)

    def squared_norm(self) -> int:
        """Return the sum of the squares of the last sum, in quanta."""
        sums = (ctypes.c_uint64 * 2)()
        self._run.crepe_embedding_squared_norm(self._handle, sums)
        low, high = sums
        return low + (high << 32)

    def shard_slice(self, shard: int, count: int = 1) -> slice:
        """Return the rows of an owner, or of a number of neighbours."""
        return slice(*[min(at * self._rows_each, self.parameter.shape[0]) for at in (shard, shard + count)])

    @property
    def host_slice(self) -> slice:
        """The rows of this host's owners."""
        return self.shard_slice(self._owners.first_local_shard, self._owners.num_local_shards)

    def collect_remote_rows(self) -> None:
        """List the rows of other hosts that the host's batch touches, of the owners that this process deals with."""
        addresses = (ctypes.c_void_p * 2)()
        self._run.crepe_embedding_collect_remote_rows(self._handle, self._bounds.ctypes.data, addresses)
        count, columns = int(self._bounds[-1]), self.parameter.shape[1]
        rows, numbers = (
            np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_int32)), (size,))
            for address, size in zip(addresses, (count, count * columns))
        )
        self._kept = rows, numbers.reshape(count, columns)

    def remote_row_ids(self, shard: int) -> Int32Array:
        """Return the rows of an owner that ``keep`` has listed, int32 [n]."""
        return self._kept[0][slice(*self._bounds[shard : shard + 2])]

    def remote_buffer(self, shard: int) -> Int32Array:
        """Return the memory of the numbers of these rows, flat: values, to be written; or sums, see ``sum_kept``."""
        return self._kept[1][slice(*self._bounds[shard : shard + 2])].reshape(-1)

    def num_elements(self, rows: Int32Array) -> int:
        """Return the count of the numbers of rows."""
        return len(rows) * int(self.parameter.shape[1])

    def read_rows(self, rows: Int32Array) -> Int32Array:
        """Return the values of ascending rows of this process, float32 as int32, flat."""
        values = np.empty(self.num_elements(rows), np.float32)
        self._run.crepe_embedding_read_rows(self._handle, rows.ctypes.data, len(rows), values.ctypes.data)
        return values.view(np.int32)

    def reduce_remote_grads(self) -> None:
        """Replace the values of the rows of ``keep`` by the sums of their gradients on this host, in quanta."""
        _check_memory(self._run.crepe_embedding_reduce_remote_grads(self._handle))

    def accumulate(self, rows: Sequence[Int32Array], sums: Sequence[Int32Array]) -> None:
        """Add sums of other hosts to this one's: lists of this process's rows, and their sums."""
        counts = (ctypes.c_int64 * len(rows))(*map(len, rows))
        _check_memory(
            self._run.crepe_embedding_accumulate(self._handle, pointers(rows), pointers(sums), counts, len(rows))
        )

    def step(self, learning_rate: float, grad_factor: float) -> None:
        """Update the rows of this process with the sum of their gradients.

        If ``add`` was not called in this step, this call sums the gradients over the processes of the host, in the same
        pass over memory. All processes call it, and no process reads rows before all calls have returned.

        Args:
            scale: Factor of the sum, which is in units of the fixed-point scale.
        """
        self._updates += 1
        rate = self._optimizer.bias_corrected_lr(learning_rate * self.parameter.lr_mult, self._updates)
        _check_memory(self._run.crepe_embedding_update(self._handle, rate, grad_factor, self._optimizer.weight_decay))

    def synchronize(self) -> None:
        """Move all of this process's rows on to the last update, and round them to float16, as files have them.

        All processes call it, and none reads before all have returned.
        """
        _check_memory(self._run.crepe_embedding_apply_lazy_updates(self._handle))

    def copy_to_parameter(self) -> None:
        """Copy the values of this host's rows into the parameter."""
        self._store(self.host_slice, [self.parameter.data])

    def state_dict(self, rows: slice) -> Arrays:
        """Copy rows of this host into new arrays of all rows, under the names of ``OptimizerState``.

        Returns:
            The values, which may not have been moved on, the moments, and the update that each row is from.
        """
        arrays: Arrays = {self.name: np.empty(self.parameter.shape, np.float32)}
        for number, shape in enumerate(self._optimizer.state_shapes(self.parameter)):
            arrays[f"{self.name}.{number}"] = np.empty(shape, np.float32)
        updated = np.empty(self.parameter.shape[0], np.int32)
        self._store(rows, [*arrays.values()], updated)
        return {**arrays, f"{self.name}.updated": updated}

    def _store(self, rows: slice, arrays: Sequence[npt.NDArray[np.float32]], updated: Int32Array | None = None) -> None:
        addresses = pointers([*[*arrays, None, None][:3], updated])
        self._run.crepe_embedding_store(self._handle, rows.start, rows.stop, *addresses)

    def drift_history(self) -> npt.NDArray[np.float64]:
        """Return the drift since each update, float64 [updates since ``flush`` + 1]."""
        history = np.empty(self._run.crepe_embedding_drift_history(self._handle, None))
        self._run.crepe_embedding_drift_history(self._handle, history.ctypes.data)
        return history

    def load_state_dict(self, saved: OptimizerState) -> None:
        """Restore the parameter's current values and the result of ``arrays``; every process calls it."""
        ages = saved.lazy_state(self.name, self.parameter.shape[0])
        self._load(saved.num_updates, saved.moments(self.name, self._optimizer.state_shapes(self.parameter)), ages)

    def _load(self, updates: int, moments: Moments | None, ages: LazyState) -> None:
        """Load the parameter's current values, and the optimizer's state after ``updates`` updates."""
        arrays = [np.ascontiguousarray(array) for array in (self.parameter.data, *(moments or []))]
        addresses = [array.ctypes.data for array in arrays] + [None] * (3 - len(arrays))
        drift, updated = map(np.ascontiguousarray, ages)
        _check_memory(
            self._run.crepe_embedding_load(self._handle, *addresses, updated.ctypes.data, drift.ctypes.data, len(drift))
        )
        self._updates = updates


def apply_lazy_updates(
    values: npt.NDArray[np.float32], moments: Moments, lazy_state: LazyState, optimizer: OptimizerSpec
) -> tuple[npt.NDArray[np.float32], Moments]:
    """Move all rows of a saved table on to the last update, for an optimizer that updates all rows in each step.

    Args:
        ages: result of ``OptimizerState.lazy_state``.

    Returns:
        The values and the moments for such an optimizer.
    """
    drift, updated = lazy_state
    if len(drift) == 1:
        return values, moments
    change, age = drift[updated][:, None], (len(drift) - 1 - updated)[:, None].astype(np.float64)
    decayed = [(moment * decay**age).astype(np.float32) for moment, decay in zip(moments, optimizer.betas)]
    if len(moments) == 1:
        return (values + change * moments[0]).astype(np.float32), decayed
    first, second = moments
    moved = values - change * first / (np.sqrt(second) + optimizer.epsilon)
    return moved.astype(np.float32), decayed


def _check_memory(failed: int) -> None:
    if failed:
        raise MemoryError("there is not enough memory for the table of rows")
