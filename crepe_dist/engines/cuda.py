"""Engine on our own kernels for GPUs (``crepe_dist/cuda``)."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from crepe_dist import registry
from crepe_dist.cuda.gpu import Gpu, Memory
from crepe_dist.cuda.network import Dropping, Part, Program, Sum, Texts
from crepe_dist.data.arrays import Arrays
from crepe_dist.data.batch import Batch
from crepe_dist.data.targets import SEVERAL
from crepe_dist.distributed.world import World
from crepe_dist.engines.engine import Engine, Logits
from crepe_dist.exchange.cuda import CudaExchange
from crepe_dist.exchange.optimizer import Optimizer
from crepe_dist.exchange.quanta import Parameter, Quanta
from crepe_dist.model.objective import rounded
from crepe_dist.model.part_weight import combined
from crepe_dist.native import constants
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
        network = registry.part(shape.kind, "cuda")
        gpu, of_all = Gpu(self.device.device_id), shared_constants()
        self._run = Program(gpu, network.PROGRAM, {**of_all, **network.constants(shape)}, self.backend.precision)
        self._values = {name: gpu.allocate(each.value.nbytes) for name, each in self.parameters.items()}
        self._upload()
        self._parts: list[Part] = network.parts(shape, self._run, self._values)
        class_weights = self.objective.class_weights(shape.classes) / np.float32(len(self._parts))
        self._class_weights = gpu.allocate(class_weights.nbytes)
        self._class_weights.write(class_weights)
        self._exchange: CudaExchange | None = None
        self._lock = threading.Lock()  # the parts keep what they computed from one kernel to the next

    def wait(self) -> None:
        self._run.gpu.wait()

    def values(self) -> Arrays:
        for name, parameter in self.parameters.items():
            self._values[name].read(parameter.value)
        return super().values()

    def set_values(self, arrays: Arrays) -> None:
        super().set_values(arrays)
        self._upload()

    def _upload(self) -> None:
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
        parts = np.empty((len(self._parts), len(batch.packed), self.shape.classes), np.float32)
        with self._lock:
            texts, _ = self._texts(batch)
            for part, logits in zip(self._parts, parts):
                on_gpu = self._run.buffer("logits", logits.nbytes)
                part.forward(texts, on_gpu)
                on_gpu.read(logits)
        return parts.swapaxes(0, 1)

    def forward_backward(self, batch: Batch) -> float:
        exchange, bounds = self._exchange, np.ctypeslib.as_array(self.quanta.bounds)
        assert exchange is not None, "open_exchange comes first"
        self.quanta.begin(batch.documents)
        exchange.clear()
        # That of the global batch, so that the loss scale does not depend on the number of ranks.
        scale = self.loss_scale.begin(batch.documents)
        with self._lock:
            dropping = Dropping(self.shape.dropout, batch.seed)
            loss, bounds[:] = self._add_gradients(batch, exchange.totals, dropping, scale)
        return loss

    def _add_gradients(
        self, batch: Batch, totals: Mapping[str, Memory], dropping: Dropping, scale: float
    ) -> tuple[float, npt.NDArray[np.float32]]:
        """Add the gradients of a batch to sums on the GPU; return its loss, and the bounds of the parameters' terms."""
        texts, packed = self._texts(batch)
        run, shape, quanta, documents = self._run, self.shape, self.quanta, len(batch.packed)
        size = 4 * documents * shape.classes
        logits = run.buffer("logits", size)
        gradients = [run.buffer(f"logit gradients {number}", size) for number in range(len(self._parts))]
        # The results of a step, to be read at once: bounds of the parameters, and the losses of the documents.
        results = run.buffer("results", 4 * (len(quanta.parameters) + len(self._parts) * documents))
        objective = self.objective.smoothing, self.objective.pairs, self.objective.labelled == SEVERAL
        for number, part in enumerate(self._parts):
            part.forward(texts, logits, dropping)
            losses = results.view(4 * (len(quanta.parameters) + number * documents), 4 * documents)
            run(
                "losses", documents, logits, shape.classes, packed, batch.packed.shape[1], shape.feature_len,
                *objective, self._class_weights, scale, gradients[number], losses,
            )  # fmt: skip
        largest = run.buffer("largest terms", 4 * len(quanta.parameters) * documents)
        largest.clear()
        sums = {
            name: Sum(total, 1 / quanta.of(name), largest.view(4 * number * documents, 4 * documents))
            for number, (name, total) in enumerate(totals.items())
        }
        for part, of_logits in zip(self._parts, gradients):
            part.backward(texts, of_logits, sums, dropping)
        run("bound_sums", len(quanta.parameters), largest, documents, quanta.unit, results)
        read = np.empty(len(quanta.parameters) + len(self._parts) * documents, np.float32)
        results.read(read)
        bounds, losses_of_parts = np.split(read, [len(quanta.parameters)])
        losses = losses_of_parts.reshape(len(self._parts), documents).sum(axis=0, dtype=np.float32)
        return float(rounded(losses).sum()), bounds

    def _texts(self, batch: Batch) -> tuple[Texts, Memory]:
        """Copy a batch to the GPU and unpack its texts; return them and the batch as it was."""
        run, (documents, stride), length = self._run, batch.packed.shape, self.shape.feature_len
        packed = run.buffer("packed", batch.packed.nbytes)
        packed.write(np.ascontiguousarray(batch.packed))
        texts = run.buffer("texts", documents * (length + 2))
        lengths = run.buffer("lengths", 4 * documents)
        run("read_texts", documents, packed, stride, length, self.shape.alphabet_size, texts, lengths)
        return Texts(documents, batch.first, length + 2, texts, lengths), packed


def shared_constants() -> dict[str, str]:
    """Return the constants that Python shares with the kernels, as C++ expressions."""
    written = {}
    for name, value in vars(constants).items():
        if name.isupper() and isinstance(value, (int, float)):
            written[name] = f"{value!r}f" if isinstance(value, float) else f"{value}{'ull' * (value >= 2**31)}"
    return written
