"""Row-sparse training of an embedding: each step reads, sums and updates only the rows that its documents use.

Apart from rounding and two exceptions, the result equals the result of a dense optimizer. A dense optimizer also
changes a row in steps without a gradient for it, because of the momentum of the row. Here, such changes are lazy: they
are applied when the row is next read or updated (``native/sharded_embedding.h``). The first exception is that weight
decay acts on a row only in the steps that use the row. The second exception is that Adam's epsilon is not rescaled
while the row has no gradient. On GPUs, each step updates all rows (``cuda_optimizer.py``).
"""

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
from crepe_dist.optim.optimizer_state import LazyState, Moments, OptimizerState
from crepe_dist.optim.optimizers import OptimizerSpec
from crepe_dist.optim.parameter import Parameter
from crepe_dist.parallel.host_shared_memory import back_with_huge_pages

Int32Array = npt.NDArray[np.int32]


class RowSharding(ctypes.Structure):
    """Division of the rows of an embedding among ranks. Each rank owns a shard, which is a contiguous block of rows.

    The shards of a host are adjacent. This structure has the same fields as the struct of the same name in
    ``native/sharded_embedding.h``.

    Attributes:
        num_shards: Number of ranks.
        first_local_shard: First shard of this host.
        num_local_shards: Number of shards of this host, which is its number of processes.
    """

    _fields_ = (("num_shards", ctypes.c_int), ("first_local_shard", ctypes.c_int), ("num_local_shards", ctypes.c_int))


@dataclass(frozen=True)
class SparseParameter:
    """Row-sparse parameter. A step uses only few of its rows.

    Attributes:
        name: Structural name of the parameter.
        parameter: Parameter [rows, columns]. Its ``grad`` is ``None``.
        max_rows_per_step: Maximum number of rows that this rank uses in a step.
        on_open: Callback that receives the address of the native embedding. The engine's kernels read rows from this
            embedding and add gradients to it.
    """

    name: str
    parameter: Parameter
    max_rows_per_step: int
    on_open: Callable[[int], None]

    @property
    def c_shape(self) -> Any:
        """C array that contains the number of rows, the number of columns and ``max_rows_per_step``."""
        return (ctypes.c_int64 * 3)(*self.parameter.shape, self.max_rows_per_step)

    def segment_bytes(self, sharding: RowSharding) -> int:
        """Return the size in bytes of the memory that each process of a host needs, rounded up to whole pages."""
        size = library.functions().crepe_embedding_bytes(self.c_shape, ctypes.byref(sharding))
        return -(-int(size) // mmap.PAGESIZE) * mmap.PAGESIZE


class ShardedEmbedding:
    """Embedding whose rows and optimizer state are sharded over all ranks.

    Args:
        sparse: The parameter. Its current values are copied into the embedding.
        optimizer: Hyperparameters of the optimizer.
        sharding: Division of the rows among ranks.
        segments: For each process of the host, the memory of this embedding, uint8, in the order of local ranks.
        local_rank: Local rank of this process.

    Attributes:
        handle: Address of the native embedding.
    """

    def __init__(
        self,
        sparse: SparseParameter,
        optimizer: OptimizerSpec,
        sharding: RowSharding,
        segments: Sequence[npt.NDArray[np.uint8]],
        local_rank: int,
    ) -> None:
        self._sharding = sharding
        self._segments = segments  # This reference keeps the memory mapped while the native embedding uses it.
        self.name = sparse.name
        self.parameter = sparse.parameter
        self._optimizer = optimizer
        self._num_updates = 0
        self._functions = library.functions()
        self.handle = self._functions.crepe_embedding_open(
            sparse.c_shape,
            optimizer.is_adam,
            optimizer.constants,
            (ctypes.c_void_p * len(segments))(*[segment.ctypes.data for segment in segments]),
            ctypes.byref(sharding),
            local_rank,
            library.num_threads(),
        )
        check_memory(self.handle is None)
        values = self.parameter.data
        back_with_huge_pages(values.ctypes.data, values.nbytes)  # Evaluation reads these values in random order.
        weakref.finalize(self, self._functions.crepe_embedding_close, self.handle)
        self._rows_per_shard = self._functions.crepe_embedding_rows_per_shard(sparse.c_shape, ctypes.byref(sharding))
        self._load(0, None, (np.zeros(1), np.zeros(self.parameter.shape[0], np.int32)))
        sparse.on_open(self.handle)

    def shard_slice(self, shard: int, count: int = 1) -> slice:
        """Return the rows of ``count`` adjacent shards. The first of them is ``shard``."""
        num_rows = self.parameter.shape[0]
        return slice(*[min(index * self._rows_per_shard, num_rows) for index in (shard, shard + count)])

    @property
    def host_slice(self) -> slice:
        """Rows of this host's shards."""
        return self.shard_slice(self._sharding.first_local_shard, self._sharding.num_local_shards)

    def step(self, learning_rate: float, grad_factor: float) -> None:
        """Update the rows of this process's shard with the sum of their gradients.

        If ``RowExchange.add_grads`` was not called in this step, this call also sums the gradients over the processes
        of the host, in the same pass over memory. All processes must call this method. No process may read rows before
        the call has returned in all processes.

        Args:
            learning_rate: Learning rate, before the learning-rate multiplier and Adam's bias correction.
            grad_factor: Factor that converts the summed gradient from fixed-point units to the mean.
        """
        self._num_updates += 1
        corrected_lr = self._optimizer.bias_corrected_lr(learning_rate * self.parameter.lr_mult, self._num_updates)
        check_memory(
            self._functions.crepe_embedding_update(self.handle, corrected_lr, grad_factor, self._optimizer.weight_decay)
        )

    def synchronize(self) -> None:
        """Apply the lazy updates to all rows of this process's shard, and round the rows to float16.

        Model files contain float16 numbers, so evaluation uses the same values. All processes must call this method. No
        process may read rows before the call has returned in all processes.
        """
        check_memory(self._functions.crepe_embedding_apply_lazy_updates(self.handle))

    def copy_to_parameter(self) -> None:
        """Copy the values of this host's rows to the parameter."""
        self._store(self.host_slice, [self.parameter.data])

    def state_dict(self, rows: slice) -> Arrays:
        """Copy rows of this host to new arrays. The arrays have the names that ``OptimizerState`` documents.

        Returns:
            The values before lazy updates, the moments, and the last update of each row. The arrays have one item for
            each row of the whole embedding. Only the items of ``rows`` are filled.
        """
        arrays: Arrays = {self.name: np.empty(self.parameter.shape, np.float32)}
        for index, shape in enumerate(self._optimizer.state_shapes(self.parameter)):
            arrays[f"{self.name}.{index}"] = np.empty(shape, np.float32)
        last_update = np.empty(self.parameter.shape[0], np.int32)
        self._store(rows, [*arrays.values()], last_update)
        return {**arrays, f"{self.name}.last_update": last_update}

    def _store(
        self, rows: slice, arrays: Sequence[npt.NDArray[np.float32]], last_update: Int32Array | None = None
    ) -> None:
        """Copy the values and the moments of rows to ``arrays``, and their last updates to ``last_update``."""
        addresses = pointers([*[*arrays, None, None][:3], last_update])
        self._functions.crepe_embedding_store(self.handle, rows.start, rows.stop, *addresses)

    def drift_history(self) -> npt.NDArray[np.float64]:
        """Return ``lazy_drift`` as ``OptimizerState`` defines it, float64 [updates since ``synchronize`` + 1]."""
        history = np.empty(self._functions.crepe_embedding_drift_history(self.handle, None))
        self._functions.crepe_embedding_drift_history(self.handle, history.ctypes.data)
        return history

    def load_state_dict(self, state: OptimizerState) -> None:
        """Load the parameter's current values and a saved optimizer state. Every process must call this method."""
        moments = state.moments(self.name, self._optimizer.state_shapes(self.parameter))
        self._load(state.num_updates, moments, state.lazy_state(self.name, self.parameter.shape[0]))

    def _load(self, num_updates: int, moments: Moments | None, lazy_state: LazyState) -> None:
        """Load the parameter's current values, and the state of the optimizer after ``num_updates`` updates."""
        arrays = [np.ascontiguousarray(array) for array in (self.parameter.data, *(moments or []))]
        addresses = [array.ctypes.data for array in arrays] + [None] * (3 - len(arrays))
        drift, last_update = map(np.ascontiguousarray, lazy_state)
        check_memory(
            self._functions.crepe_embedding_load(
                self.handle, *addresses, last_update.ctypes.data, drift.ctypes.data, len(drift)
            )
        )
        self._num_updates = num_updates


def apply_lazy_updates(
    values: npt.NDArray[np.float32], moments: Moments, lazy_state: LazyState, optimizer: OptimizerSpec
) -> tuple[npt.NDArray[np.float32], Moments]:
    """Apply the lazy updates to all rows of a saved embedding, for an optimizer that has no lazy updates.

    Args:
        values: Saved values of the parameter, before lazy updates.
        moments: Saved moments.
        lazy_state: Result of ``OptimizerState.lazy_state``.
        optimizer: Hyperparameters of the optimizer.

    Returns:
        The updated values and moments.
    """
    drift, last_update = lazy_state
    if len(drift) == 1:
        return values, moments
    row_drift, age = drift[last_update][:, None], (len(drift) - 1 - last_update)[:, None].astype(np.float64)
    decayed = [(moment * beta**age).astype(np.float32) for moment, beta in zip(moments, optimizer.betas)]
    if len(moments) == 1:
        return (values + row_drift * moments[0]).astype(np.float32), decayed
    first, second = moments
    updated = values - row_drift * first / (np.sqrt(second) + optimizer.epsilon)
    return updated.astype(np.float32), decayed


def check_memory(has_failed: int) -> None:
    """Check the result of a C function that allocates memory.

    Raises:
        MemoryError: The function has failed.
    """
    if has_failed:
        raise MemoryError("there is not enough memory for the embedding table")
