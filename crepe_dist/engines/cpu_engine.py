"""Engine that uses the native CPU kernels (``crepe_dist/native``)."""

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

MAX_CACHE_BYTES = 1 << 29  # Maximum size, in bytes, of a process's cache of the n-gram rows of documents.


class CpuEngine(Engine):
    """Engine that uses the native CPU kernels, which access the arrays of the parameters directly.

    Gradients are fixed-point numbers (``FixedPointScales``). Embeddings are row-sparse parameters.

    Attributes:
        scales: Fixed-point scales of the gradients. ``create_optimizer`` sets this attribute.
    """

    scales: FixedPointScales

    def _open(self, parameters: dict[str, Parameter]) -> None:
        self.reduction_group = self.config.reduction_group
        self.parameters = parameters
        self._kernels = NativeModel(self.config, self.backend, num_threads())
        class_weights = np.ascontiguousarray(self.loss.class_weights(self.config.num_classes))
        constants = ctypes.byref(self.loss.constants)
        self._kernels.call("crepe_set_loss", constants, class_weights.ctypes.data, len(class_weights))
        self._addresses = to_c_parameters(parameter.data for parameter in self.parameters.values())
        self.load_weights()
        self._listed_batch: Batch | None = None  # Batch of the list of rows that the kernels have prepared.

    def create_optimizer(
        self, group: ProcessGroup, options: OptimizerOptions, max_shard_size: int
    ) -> SharedMemoryOptimizer:
        sparse_parameters = [
            SparseParameter(name, self.parameters[name], max_rows, partial(self._attach_embedding, index))
            for index, (name, max_rows) in enumerate(self.config.max_rows_per_batch(max_shard_size).items())
        ]
        self.scales = FixedPointScales(self.parameters)
        self._optimizer = SharedMemoryOptimizer(group, OptimizerSpec(options), self.scales, sparse_parameters)
        return self._optimizer

    def _attach_embedding(self, index: int, address: int) -> None:
        """Make the kernels use the native embedding at ``address`` as embedding number ``index`` of the network."""
        cache_bytes = min(MAX_CACHE_BYTES, hardware.memory() // 32)
        self._kernels.call("crepe_attach_embedding", index, address, cache_bytes)

    def load_weights(self) -> None:
        self._kernels.call("crepe_set_parameters", self._addresses, True)

    def logits(self, batch: Batch) -> Logits:
        return self._forward("crepe_forward", batch, 1)[:, 0]

    def branch_logits(self, batch: Batch) -> Logits:
        num_branches = self.config.num_branches
        return self._forward("crepe_forward" if num_branches == 1 else "crepe_branch_logits", batch, num_branches)

    def _forward(self, function: str, batch: Batch, num_branches: int) -> Logits:
        """Compute the logits of the network or of its branches, float32 [B, num_branches, classes]."""
        num_rows, stride = self._check_batch(batch)
        self._listed_batch = None  # The kernels have one list of rows, which this call replaces.
        logits = np.empty((num_branches, num_rows, self.config.num_classes), np.float32)
        self._kernels.call(function, batch.packed.ctypes.data, stride, num_rows, logits.ctypes.data)
        return logits.swapaxes(0, 1)

    def forward_backward(self, batch: Batch, next_batch: Batch | None = None) -> float:
        num_rows, _ = self._check_batch(batch)
        packed, scales, loss = batch.packed.ctypes.data, self.scales, ctypes.c_double()
        dropout = self.config.dropout, batch.seed, batch.first
        scales.start_step(batch.global_batch_size)
        # The argument False means that the kernels do not read buffers again. Only trained parameters have changed.
        self._kernels.call("crepe_set_parameters", self._addresses, False)
        self._optimizer.wait_for_update()
        if batch is not self._listed_batch:
            self._list_rows(batch)
            self._optimizer.pull_rows()
        self._listed_batch = None  # The kernels change the list.
        fixed_point = scales.grad_addresses, scales.exponents, scales.bound_unit, scales.sum_bounds
        self._kernels.call("crepe_forward_backward", packed, num_rows, *dropout, *fixed_point, ctypes.byref(loss))
        if next_batch is not None and self._optimizer.requests_rows:
            self._list_rows(next_batch)
            self._optimizer.request_next_rows()
        return loss.value

    def _list_rows(self, batch: Batch) -> None:
        """List the rows of the embeddings that a batch uses, for the next computation of gradients."""
        num_rows, _ = self._check_batch(batch)
        self._kernels.call("crepe_find_rows", batch.packed.ctypes.data, num_rows)
        self._listed_batch = batch

    def _check_batch(self, batch: Batch) -> tuple[int, int]:
        """Return the number of rows of a batch, and its bytes per row.

        Raises:
            ValueError: The number of bytes per row does not match the network. The kernels do not check it.
        """
        num_rows, stride = batch.packed.shape
        length = self.config.feature_len
        expected = length + num_trailer_bytes(self.loss.max_labels)
        if stride != expected:
            raise ValueError(f"the batch has {stride} bytes per row; {length} characters need {expected}")
        return num_rows, stride
