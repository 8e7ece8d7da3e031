"""Engine that uses the native GPU kernels (``crepe_dist/cuda``)."""

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
    """Engine that uses the native GPU kernels. Parameters, gradients and optimizer state are in GPU memory.

    ``Parameter.data`` is a copy on the host. ``state_dict`` updates it from the GPU, and ``load_state_dict`` writes it
    to the GPU. Gradients are fixed-point numbers (``FixedPointScales``). The gradient of each group of
    ``reduction_group`` documents is rounded separately, so the sum is bit-identical no matter how a batch is divided
    among ranks.

    Attributes:
        scales: Fixed-point scales of the gradients. ``create_optimizer`` sets this attribute.
    """

    scales: FixedPointScales

    def _open(self, parameters: dict[str, Parameter]) -> None:
        config = self.config
        self.parameters = parameters
        network = network_registry.import_network_module(config.kind, "cuda")
        self.reduction_group = network.REDUCTION_GROUP
        gpu = Gpu(self.device.device_id)
        kernel_constants = {**shared_constants(), **network.constants(config)}
        self._program = KernelProgram(gpu, network.PROGRAM, kernel_constants, self.backend.precision)
        self._buffers = {name: gpu.copy(parameter.data) for name, parameter in self.parameters.items()}
        self._branches: list[Branch] = network.branches(config, self._program, self._buffers)
        # The network's loss is the mean of the losses of its branches.
        class_weights = self.loss.class_weights(config.num_classes) / np.float32(len(self._branches))
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
        self.scales = FixedPointScales(self.parameters)
        self._optimizer = CudaOptimizer(
            group,
            OptimizerSpec(options),
            self.scales,
            self._program,
            self._buffers,
            self.config.sparse_parameters,
            self.grad_scaler,
        )
        return self._optimizer

    def logits(self, batch: Batch) -> Logits:
        branch_logits = self.branch_logits(batch)
        return add_branches(branch_logits, 1.0) if self.config.num_branches > 1 else branch_logits[:, 0]

    def branch_logits(self, batch: Batch) -> Logits:
        logits = np.empty((len(self._branches), len(batch.packed), self.config.num_classes), np.float32)
        device_batch, _ = self._copy_batch(batch)
        self._forward(device_batch).read(logits)
        return logits.swapaxes(0, 1)

    def forward_backward(self, batch: Batch, next_batch: Batch | None = None) -> DeviceBuffer:
        """Compute the gradients of a batch, and return the buffer of the losses, float32 [branches, documents].

        The call does not wait for the GPU, so the losses may not have been computed yet.
        """
        optimizer, program, num_documents = self._optimizer, self._program, len(batch.packed)
        assert optimizer is not None, "call create_optimizer first"
        self.scales.start_step(batch.global_batch_size)
        # Use the size of the global batch, so that the loss scale does not depend on the number of ranks.
        scale = self.grad_scaler.scale_for(batch.global_batch_size)
        dropout = DropoutState(self.config.dropout, batch.seed)
        loss_options = self.loss.smoothing, self.loss.max_labels, self.loss.label_type == MULTILABEL
        device_batch, packed = self._copy_batch(batch)
        logits = self._forward(device_batch, dropout)
        logit_gradients, branch_gradients = self._branch_buffers("logit gradients", num_documents)
        losses_bytes = 4 * len(self._branches) * num_documents
        # The buffer may be larger than this batch needs.
        losses = program.buffer("losses", losses_bytes).view(0, losses_bytes)
        program(
            "compute_losses", (num_documents, len(self._branches)),
            logits, self.config.num_classes, packed, batch.packed.shape[1],
            self.config.feature_len, *loss_options, self._class_weights, scale, logit_gradients, losses,
        )  # fmt: skip
        accumulators = optimizer.zero_grad(num_documents)
        for branch, buffer in branch_gradients:
            branch.backward(device_batch, buffer, accumulators, dropout)
        return losses

    def _forward(self, device_batch: DeviceBatch, dropout: DropoutState | None = None) -> DeviceBuffer:
        """Compute and return the logits of all branches, float32 [branches, documents, classes]."""
        logits, branch_logits = self._branch_buffers("logits", device_batch.documents)
        for branch, buffer in branch_logits:
            branch.forward(device_batch, buffer, dropout)
        return logits

    def _branch_buffers(self, name: str, num_documents: int) -> tuple[DeviceBuffer, list[tuple[Branch, DeviceBuffer]]]:
        """Return a float32 buffer [branches, documents, classes], and each branch with its part of the buffer."""
        size = 4 * num_documents * self.config.num_classes
        buffer = self._program.buffer(name, len(self._branches) * size)
        return buffer, [(branch, buffer.view(index * size, size)) for index, branch in enumerate(self._branches)]

    def _copy_batch(self, batch: Batch) -> tuple[DeviceBatch, DeviceBuffer]:
        """Copy a batch to the GPU, and unpack its texts there. Return the unpacked texts and the packed batch."""
        program, (num_documents, stride), length = self._program, batch.packed.shape, self.config.feature_len
        packed = program.buffer("packed", batch.packed.nbytes)
        packed.write(np.ascontiguousarray(batch.packed))
        texts = program.buffer("texts", num_documents * (length + 2))
        lengths = program.buffer("lengths", 4 * num_documents)
        program(
            "add_boundary_symbols", num_documents, packed, stride, length, self.config.alphabet_size, texts, lengths
        )
        return DeviceBatch(num_documents, batch.first, length + 2, texts, lengths), packed


def shared_constants() -> dict[str, str]:
    """Return the constants of ``native/constants.py`` as C++ expressions for the compiler of the CUDA kernels."""
    expressions = {}
    for name, value in vars(constants).items():
        if name.isupper() and isinstance(value, (int, float)):
            expressions[name] = f"{value!r}f" if isinstance(value, float) else f"{value}{'ull' * (value >= 2**31)}"
    return expressions
