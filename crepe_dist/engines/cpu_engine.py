"""Engine on our own kernels (``crepe_dist/native``)."""

from __future__ import annotations

import ctypes
from functools import partial

import numpy as np

from crepe_dist import hardware
from crepe_dist.data.batch import Batch, num_trailer_bytes
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.engines.engine import Engine, Logits
from crepe_dist.model.inference import NativeModel, to_c_parameters
from crepe_dist.native.library import num_threads
from crepe_dist.optim.fixed_point import FixedPointScales
from crepe_dist.optim.optimizers import OptimizerSpec
from crepe_dist.optim.parameter import Parameter
from crepe_dist.parallel.sharded_embedding import SparseParameter
from crepe_dist.parallel.shared_memory_optimizer import SharedMemoryOptimizer
from crepe_dist.settings.options import OptimizerOptions

MAX_CACHE_BYTES = 1 << 29  # bytes of a process's cache of documents' n-grams


class CpuEngine(Engine):
    """Engine on our own kernels, which access the memory of the parameters.

    Gradients are whole numbers, see ``FixedPointScales``. Tables are trained row by row. One thread calls it at a time.

    Attributes:
        quanta: quanta of the gradients, once the exchange is open.
    """

    scales: FixedPointScales

    def _open(self, parameters: dict[str, Parameter]) -> None:
        shape, objective = self.config, self.loss
        self.reduction_group = shape.reduction_group
        self.parameters = parameters
        self._kernels = NativeModel(shape, self.backend, num_threads())
        weights = np.ascontiguousarray(objective.class_weights(shape.num_classes))
        constants = ctypes.byref(objective.constants)
        self._kernels.call("crepe_set_loss", constants, weights.ctypes.data, len(weights))
        self._addresses = to_c_parameters(parameter.data for parameter in self.parameters.values())
        self.load_weights()

    def create_optimizer(
        self, group: ProcessGroup, options: OptimizerOptions, max_shard_size: int
    ) -> SharedMemoryOptimizer:
        sparse = [
            SparseParameter(name, self.parameters[name], rows, partial(self._attach_embedding, which))
            for which, (name, rows) in enumerate(self.config.max_rows_per_batch(max_shard_size).items())
        ]
        self.scales = FixedPointScales({name: each for name, each in self.parameters.items() if each.requires_grad})
        self._optimizer = SharedMemoryOptimizer(group, OptimizerSpec(options), self.scales, sparse)
        return self._optimizer

    def _attach_embedding(self, which: int, table: int) -> None:
        cached = min(MAX_CACHE_BYTES, hardware.memory() // 32)
        self._kernels.call("crepe_attach_embedding", which, table, cached)

    def load_weights(self) -> None:
        self._kernels.call("crepe_set_parameters", self._addresses, True)

    def logits(self, batch: Batch) -> Logits:
        return self._forward("crepe_forward", batch, 1)[:, 0]

    def branch_logits(self, batch: Batch) -> Logits:
        summands = self.config.num_branches
        return self._forward("crepe_forward" if summands == 1 else "crepe_branch_logits", batch, summands)

    def _forward(self, function: str, batch: Batch, parts: int) -> Logits:
        """Compute the logits of the network or of its summands, float32 [B, parts, classes]."""
        rows, stride = self._check_batch(batch)
        logits = np.empty((parts, rows, self.config.num_classes), np.float32)
        self._kernels.call(function, batch.packed.ctypes.data, stride, rows, logits.ctypes.data)
        return logits.swapaxes(0, 1)

    def forward_backward(self, batch: Batch) -> float:
        rows, _ = self._check_batch(batch)
        packed, quanta, loss = batch.packed.ctypes.data, self.scales, ctypes.c_double()
        dropping = self.config.dropout, batch.seed, batch.first
        quanta.start_step(batch.global_batch_size)
        self._kernels.call("crepe_set_parameters", self._addresses, False)  # only what is trained has changed
        self._optimizer.wait_for_update()
        self._kernels.call("crepe_find_rows", packed, rows)
        self._optimizer.pull_rows()
        rounded = quanta.grad_addresses, quanta.exponents, quanta.bound_unit, quanta.sum_bounds
        self._kernels.call("crepe_forward_backward", packed, rows, *dropping, *rounded, ctypes.byref(loss))
        return loss.value

    def _check_batch(self, batch: Batch) -> tuple[int, int]:
        """Return a batch's number of rows and bytes per row, after checking them: the kernels cannot."""
        rows, stride = batch.packed.shape
        length = self.config.feature_len
        expected = length + num_trailer_bytes(self.loss.max_labels)
        if stride != expected:
            raise ValueError(f"the batch has {stride} bytes per row; {length} characters need {expected}")
        return rows, stride
