"""Engine on our own kernels for GPUs (``crepe_dist/cuda``)."""

from __future__ import annotations

import numpy as np

from crepe_dist import network_registry
from crepe_dist.cuda.branch import Branch, DeviceBatch, DropoutState, KernelProgram
from crepe_dist.cuda.gpu import DeviceBuffer, Gpu
from crepe_dist.data.arrays import Arrays
from crepe_dist.data.batch import Batch
from crepe_dist.data.targets import MULTILABEL
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.engines.engine import Engine, Logits
from crepe_dist.model.branch_weight import add_branches
from crepe_dist.native import constants
from crepe_dist.optim.fixed_point import FixedPointScales
from crepe_dist.optim.optimizers import OptimizerSpec
from crepe_dist.optim.parameter import Parameter
from crepe_dist.parallel.cuda_optimizer import CudaOptimizer
from crepe_dist.settings.options import OptimizerOptions


class CudaEngine(Engine):
    """Engine on a GPU. Parameters, gradients and the optimizer's state are in its memory, with copies on the host.

    Gradients are whole numbers, see ``FixedPointScales``. A term of a gradient is that of one document, so the
    division of a
    batch among ranks changes no bit.

    Attributes:
        quanta: quanta of the gradients, once the exchange is open.
    """

    scales: FixedPointScales

    def _open(self, parameters: dict[str, Parameter]) -> None:
        shape = self.config
        self.parameters = parameters
        network = network_registry.import_network_module(shape.kind, "cuda")
        gpu, of_all = Gpu(self.device.device_id), shared_constants()
        self._program = KernelProgram(
            gpu, network.PROGRAM, {**of_all, **network.constants(shape)}, self.backend.precision
        )
        self._buffers = {name: gpu.copy(each.data) for name, each in self.parameters.items()}
        self._branches: list[Branch] = network.branches(shape, self._program, self._buffers)
        class_weights = self.loss.class_weights(shape.num_classes) / np.float32(len(self._branches))
        self._class_weights = gpu.copy(class_weights)
        self._optimizer: CudaOptimizer | None = None

    def wait(self) -> None:
        self._program.gpu.wait()

    def state_dict(self) -> Arrays:
        for name, parameter in self.parameters.items():
            self._buffers[name].read(parameter.data)
        return super().state_dict()

    def load_state_dict(self, arrays: Arrays) -> None:
        super().load_state_dict(arrays)
        for name, parameter in self.parameters.items():
            self._buffers[name].write(parameter.data)

    def create_optimizer(self, group: ProcessGroup, options: OptimizerOptions, max_shard_size: int) -> CudaOptimizer:
        self.scales = FixedPointScales({name: each for name, each in self.parameters.items() if each.requires_grad})
        on_gpu = self._program, self._buffers, self.config.sparse_parameters, self.grad_scaler
        self._optimizer = CudaOptimizer(group, OptimizerSpec(options), self.scales, *on_gpu)
        return self._optimizer

    def logits(self, batch: Batch) -> Logits:
        parts = self.branch_logits(batch)
        return add_branches(parts, 1.0) if self.config.num_branches > 1 else parts[:, 0]

    def branch_logits(self, batch: Batch) -> Logits:
        logits = np.empty((len(self._branches), len(batch.packed), self.config.num_classes), np.float32)
        texts, _ = self._copy_batch(batch)
        self._forward(texts).read(logits)
        return logits.swapaxes(0, 1)

    def forward_backward(self, batch: Batch) -> DeviceBuffer:
        """Compute the gradients of a batch; return the losses, float32 [summands, documents], which may be pending."""
        exchange, run, documents = self._optimizer, self._program, len(batch.packed)
        assert exchange is not None, "open_exchange comes first"
        self.scales.start_step(batch.global_batch_size)
        # That of the global batch, so that the loss scale does not depend on the number of ranks.
        scale = self.grad_scaler.scale_for(batch.global_batch_size)
        dropping = DropoutState(self.config.dropout, batch.seed)
        objective = self.loss.smoothing, self.loss.max_labels, self.loss.label_type == MULTILABEL
        texts, packed = self._copy_batch(batch)
        logits = self._forward(texts, dropping)
        gradients, of_parts = self._branch_buffers("logit gradients", documents)
        losses = run.buffer("losses", 4 * len(self._branches) * documents).view(0, 4 * len(self._branches) * documents)
        run(
            "compute_losses", (documents, len(self._branches)),
            logits, self.config.num_classes, packed, batch.packed.shape[1],
            self.config.feature_len, *objective, self._class_weights, scale, gradients, losses,
        )  # fmt: skip
        sums = exchange.zero_grad(documents)
        for part, own in of_parts:
            part.backward(texts, own, sums, dropping)
        return losses

    def _forward(self, texts: DeviceBatch, dropping: DropoutState | None = None) -> DeviceBuffer:
        """Compute and return the logits of all parts, float32 [parts, documents, classes]."""
        logits, of_parts = self._branch_buffers("logits", texts.documents)
        for part, own in of_parts:
            part.forward(texts, own, dropping)
        return logits

    def _branch_buffers(self, name: str, documents: int) -> tuple[DeviceBuffer, list[tuple[Branch, DeviceBuffer]]]:
        """Return memory for float32 [parts, documents, classes], and each part with its own piece of it."""
        size = 4 * documents * self.config.num_classes
        memory = self._program.buffer(name, len(self._branches) * size)
        return memory, [(part, memory.view(number * size, size)) for number, part in enumerate(self._branches)]

    def _copy_batch(self, batch: Batch) -> tuple[DeviceBatch, DeviceBuffer]:
        """Copy a batch to the GPU and unpack its texts; return them and the batch as it was."""
        run, (documents, stride), length = self._program, batch.packed.shape, self.config.feature_len
        packed = run.buffer("packed", batch.packed.nbytes)
        packed.write(np.ascontiguousarray(batch.packed))
        texts = run.buffer("texts", documents * (length + 2))
        lengths = run.buffer("lengths", 4 * documents)
        run("add_boundary_symbols", documents, packed, stride, length, self.config.alphabet_size, texts, lengths)
        return DeviceBatch(documents, batch.first, length + 2, texts, lengths), packed


def shared_constants() -> dict[str, str]:
    """Return the constants that Python shares with the kernels, as C++ expressions."""
    written = {}
    for name, value in vars(constants).items():
        if name.isupper() and isinstance(value, (int, float)):
            written[name] = f"{value!r}f" if isinstance(value, float) else f"{value}{'ull' * (value >= 2**31)}"
    return written
