"""Engine on our own kernels for GPUs (``crepe_dist/cuda``)."""

from __future__ import annotations

import numpy as np

from crepe_dist import network_registry
from crepe_dist.cuda.branch import Dropping, Part, Program, Texts
from crepe_dist.cuda.gpu import Gpu, Memory
from crepe_dist.data.arrays import Arrays
from crepe_dist.data.batch import Batch
from crepe_dist.data.targets import SEVERAL
from crepe_dist.distributed.process_group import World
from crepe_dist.engines.engine import Engine, Logits
from crepe_dist.model.branch_weight import combined
from crepe_dist.native import constants
from crepe_dist.optim.fixed_point import Quanta
from crepe_dist.optim.optimizers import Optimizer
from crepe_dist.optim.parameter import Parameter
from crepe_dist.parallel.cuda_optimizer import CudaExchange
from crepe_dist.settings.options import OptimizerOptions


class CudaEngine(Engine):
    """Engine on a GPU. Parameters, gradients and the optimizer's state are in its memory, with copies on the host.

    Gradients are whole numbers, see ``Quanta``. A term of a gradient is that of one document, so the division of a
    batch among ranks changes no bit.

    Attributes:
        quanta: quanta of the gradients, once the exchange is open.
    """

    quanta: Quanta

    def _open(self, parameters: dict[str, Parameter]) -> None:
        shape = self.shape
        self.parameters = parameters
        network = network_registry.part(shape.kind, "cuda")
        gpu, of_all = Gpu(self.device.device_id), shared_constants()
        self._run = Program(gpu, network.PROGRAM, {**of_all, **network.constants(shape)}, self.backend.precision)
        self._values = {name: gpu.copy(each.value) for name, each in self.parameters.items()}
        self._parts: list[Part] = network.parts(shape, self._run, self._values)
        class_weights = self.objective.class_weights(shape.classes) / np.float32(len(self._parts))
        self._class_weights = gpu.copy(class_weights)
        self._exchange: CudaExchange | None = None

    def wait(self) -> None:
        self._run.gpu.wait()

    def values(self) -> Arrays:
        for name, parameter in self.parameters.items():
            self._values[name].read(parameter.value)
        return super().values()

    def set_values(self, arrays: Arrays) -> None:
        super().set_values(arrays)
        for name, parameter in self.parameters.items():
            self._values[name].write(parameter.value)

    def open_exchange(self, world: World, options: OptimizerOptions, documents: int) -> CudaExchange:
        self.quanta = Quanta({name: each for name, each in self.parameters.items() if each.is_trained})
        on_gpu = self._run, self._values, self.shape.tables, self.loss_scale
        self._exchange = CudaExchange(world, Optimizer(options), self.quanta, *on_gpu)
        return self._exchange

    def logits(self, batch: Batch) -> Logits:
        parts = self.parts(batch)
        return combined(parts, 1.0) if self.shape.summands > 1 else parts[:, 0]

    def parts(self, batch: Batch) -> Logits:
        logits = np.empty((len(self._parts), len(batch.packed), self.shape.classes), np.float32)
        texts, _ = self._texts(batch)
        self._forward(texts).read(logits)
        return logits.swapaxes(0, 1)

    def forward_backward(self, batch: Batch) -> Memory:
        """Compute the gradients of a batch; return the losses, float32 [summands, documents], which may be pending."""
        exchange, run, documents = self._exchange, self._run, len(batch.packed)
        assert exchange is not None, "open_exchange comes first"
        self.quanta.begin(batch.documents)
        # That of the global batch, so that the loss scale does not depend on the number of ranks.
        scale = self.loss_scale.begin(batch.documents)
        dropping = Dropping(self.shape.dropout, batch.seed)
        objective = self.objective.smoothing, self.objective.pairs, self.objective.labelled == SEVERAL
        texts, packed = self._texts(batch)
        logits = self._forward(texts, dropping)
        gradients, of_parts = self._of_parts("logit gradients", documents)
        losses = run.buffer("losses", 4 * len(self._parts) * documents).view(0, 4 * len(self._parts) * documents)
        run(
            "compute_losses", (documents, len(self._parts)), logits, self.shape.classes, packed, batch.packed.shape[1],
            self.shape.feature_len, *objective, self._class_weights, scale, gradients, losses,
        )  # fmt: skip
        sums = exchange.begin(documents)
        for part, own in of_parts:
            part.backward(texts, own, sums, dropping)
        return losses

    def _forward(self, texts: Texts, dropping: Dropping | None = None) -> Memory:
        """Compute and return the logits of all parts, float32 [parts, documents, classes]."""
        logits, of_parts = self._of_parts("logits", texts.documents)
        for part, own in of_parts:
            part.forward(texts, own, dropping)
        return logits

    def _of_parts(self, name: str, documents: int) -> tuple[Memory, list[tuple[Part, Memory]]]:
        """Return memory for float32 [parts, documents, classes], and each part with its own piece of it."""
        size = 4 * documents * self.shape.classes
        memory = self._run.buffer(name, len(self._parts) * size)
        return memory, [(part, memory.view(number * size, size)) for number, part in enumerate(self._parts)]

    def _texts(self, batch: Batch) -> tuple[Texts, Memory]:
        """Copy a batch to the GPU and unpack its texts; return them and the batch as it was."""
        run, (documents, stride), length = self._run, batch.packed.shape, self.shape.feature_len
        packed = run.buffer("packed", batch.packed.nbytes)
        packed.write(np.ascontiguousarray(batch.packed))
        texts = run.buffer("texts", documents * (length + 2))
        lengths = run.buffer("lengths", 4 * documents)
        run("add_boundary_symbols", documents, packed, stride, length, self.shape.alphabet_size, texts, lengths)
        return Texts(documents, batch.first, length + 2, texts, lengths), packed


def shared_constants() -> dict[str, str]:
    """Return the constants that Python shares with the kernels, as C++ expressions."""
    written = {}
    for name, value in vars(constants).items():
        if name.isupper() and isinstance(value, (int, float)):
            written[name] = f"{value!r}f" if isinstance(value, float) else f"{value}{'ull' * (value >= 2**31)}"
    return written
