"""Engines that compute logits and gradients: MXNet's operators on any device, or our own kernels on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import partial
from typing import Any, Callable

import mxnet as mx
import numpy as np
import numpy.typing as npt
from mxnet import autograd

from crepe_dist import machine
from crepe_dist.data.batch import Batch, extra_bytes, pieces, rows_per_piece
from crepe_dist.data.dataset import Split
from crepe_dist.data.loader import batches
from crepe_dist.data.order import Order
from crepe_dist.data.targets import SEVERAL
from crepe_dist.engines import block, dropout
from crepe_dist.engines.block import Network
from crepe_dist.engines.context import context
from crepe_dist.engines.loss import Loss
from crepe_dist.engines.unpacking import Unpack
from crepe_dist.exchange.quanta import Quanta
from crepe_dist.exchange.table import SparseParameter
from crepe_dist.model.kernels import Kernels
from crepe_dist.model.objective import PLAIN, Objective
from crepe_dist.model.parameters import Arrays
from crepe_dist.model.part_weight import combined, weighted
from crepe_dist.model.precision import Plan
from crepe_dist.model.shape import Shape
from crepe_dist.mxnet_internals import host_array, pointers, structural_parameters, view
from crepe_dist.native.constants import MULTIPLIER1, MULTIPLIER2
from crepe_dist.native.library import Library

MOST_CACHED = 1 << 29  # bytes of a process's cache of documents' n-grams

# Rows, labels and logits of a batch: int64 [n], int32 [n], float32 [n, classes], or [n, 2, classes] of two parts.
Scored = tuple[Order, npt.NDArray[np.int32], npt.NDArray[np.float32]]

# Called with the name of each phase of a step at its end.
Mark = Callable[[str], None]


def no_mark(phase: str) -> None:
    """Ignore the end of a phase: the default without a profile."""


class Engine:
    """Interface of the engines. Parameters and gradients stay in the Gluon network.

    Attributes:
        network: network to compute.
        plan: precision and kernels.
        device: MXNet context of the network.
        objective: loss function.
        piece: number of documents computed at a time in training, which bounds the memory; 0 means the whole batch.
    """

    def __init__(self, network: Network, plan: Plan, device: Any, objective: Objective = PLAIN, piece: int = 0) -> None:
        self.network = network
        self.plan = plan
        self.device = device
        self.objective = objective
        self.piece = piece

    @property
    def shape(self) -> Shape:
        """Configuration of the network."""
        return self.network.shape

    @property
    def group_size(self) -> int:
        """Number of documents that one rank must compute together; the global batch is cut at multiples of it."""
        return 1

    def scored(self, split: Split, batch_size: int, rank: int, size: int) -> Iterator[Scored]:
        """Yield rows, labels and logits of a rank's share of each batch of a split, with the current parameters."""
        return self._scored(self.logits, split, batch_size, rank, size)

    def scored_apart(self, split: Split, batch_size: int, rank: int, size: int) -> Iterator[Scored]:
        """Yield what ``scored`` does, with the logits of Crepe's two parts, float32 [n, 2, classes]."""
        return self._scored(self.parts, split, batch_size, rank, size)

    def _scored(
        self, compute: Callable[[Batch], mx.nd.NDArray], split: Split, batch_size: int, rank: int, size: int
    ) -> Iterator[Scored]:
        self.refresh()
        for batch in batches(split, np.arange(len(split)), batch_size, rank, size, prepare=self.prepare):
            yield batch.rows, batch.labels, compute(batch).asnumpy()[: len(batch.labels)]

    def prepare(self, batch: Batch) -> Batch:
        """Add the arrays that the engine needs besides the packed documents; the loader's thread calls it."""
        return batch

    def wait(self) -> None:
        """Wait until all computation is done."""
        mx.nd.waitall()

    def refresh(self) -> None:
        """Load the current parameters. Call before ``logits`` if they may have changed."""

    def weigh(self, tower: float) -> None:
        """Set the weight of the logits of Crepe's tower in ``logits``; training does not depend on it."""
        self.network.tower_weight = tower

    @property
    def tower_weight(self) -> float | None:
        """Weight of the logits of Crepe's tower; ``None`` for other networks."""
        return self.network.tower_weight if self.shape.weighed else None

    def values(self) -> Arrays:
        """Return all parameters by structural name, with the weight of the tower, as a checkpoint has them.

        Read them before the next step: see ``block.readable``.
        """
        arrays = block.readable(self.network)
        return weighted(arrays, self.shape.weighed, self.network.tower_weight)

    def quanta(self, documents: int) -> Quanta | None:
        """Leave gradients in whole numbers from now on, for ``open_exchange``, if the engine supports it.

        The parameters in ``Quanta.sparse`` are trained row by row: Gluon has no gradients of them, and a batch is not
        computed in pieces.

        Args:
            documents: largest number of documents of a batch of this rank.

        Returns:
            The quanta, or ``None`` if the engine computes gradients of all rows in floating point.
        """
        return None

    def logits(self, batch: Batch) -> mx.nd.NDArray:
        """Compute logits without dropout, float32 [B, classes], with the parameters of the last ``refresh``."""
        raise NotImplementedError

    def parts(self, batch: Batch) -> mx.nd.NDArray:
        """Compute the logits of Crepe's table and tower as ``logits`` does, float32 [B, 2, classes]."""
        raise NotImplementedError

    def gradients(self, batch: Batch, seed: int, step: int, scale: float, mark: Mark = no_mark) -> Any:
        """Compute the gradients of the sum of the weighted losses, times ``scale``, into the Gluon parameters.

        Args:
            step: number of the step, mixed into the seed of the dropout.
            scale: loss scale, a guard against underflow in float16; 1 otherwise.
            mark: callback after the phases "copy", "forward" and "backward".

        Returns:
            The sum of the losses: a number from our own kernels; else float32 [1], which may still be pending.
        """
        first, *others = pieces(batch, self.rows_at_a_time(batch))
        loss = self._gradients(first, seed, step, scale, mark)
        if others:
            gradients = [parameter.grad() for parameter in block.trained(self.network).values()]
            sums = [gradient.copy() for gradient in gradients]
            for piece in others:
                loss = loss + self._gradients(piece, seed, step, scale, mark)
                for total, gradient in zip(sums, gradients):
                    self._add(total, gradient)
            for total, gradient in zip(sums, gradients):
                gradient[:] = total
        return loss

    def rows_at_a_time(self, batch: Batch) -> int:
        """Return the number of rows of a batch over which ``gradients`` sums in the precision of the plan."""
        rows = batch.packed.shape[0]
        return rows_per_piece(rows, self.piece or rows, self.group_size)

    def _add(self, total: mx.nd.NDArray, gradient: mx.nd.NDArray) -> None:
        """Add the gradient of a piece to a total, in place."""
        total += gradient

    def _gradients(self, batch: Batch, seed: int, step: int, scale: float, mark: Mark) -> Any:
        """Compute the gradients of one piece; see ``gradients``."""
        raise NotImplementedError


def open_engine(network: Network, plan: Plan, device: Any, objective: Objective = PLAIN, piece: int = 0) -> Engine:
    """Build the engine selected by ``plan`` for an initialised network; see ``Engine`` for the arguments."""
    if plan.library is not None:
        return NativeEngine(network, plan, device, plan.library, objective, piece)
    return GraphEngine(network, plan, device, objective, piece)


class GraphEngine(Engine):
    """Engine on MXNet's operators, compiled into a graph if the network is hybridized."""

    def __init__(self, network: Network, plan: Plan, device: Any, objective: Objective = PLAIN, piece: int = 0) -> None:
        device = context(device)
        super().__init__(network, plan, device, objective, piece)
        class_weights = mx.nd.array(objective.class_weights(network.shape.classes), ctx=device)
        self._class_weights = (class_weights,) if objective.weights else ()
        self._scales: dict[float, mx.nd.NDArray] = {}
        # Graphs, because a single operator outside one takes the host about as long as a whole graph.
        self._unpack, self._loss = Unpack(objective.pairs, network.shape.classes), Loss(objective)
        for graph in (self._unpack, self._loss):
            graph.hybridize(static_alloc=True, static_shape=True)
        network.compute_in(plan.precision, device)

    def prepare(self, batch: Batch) -> Batch:
        return self.network.prepare(batch)

    def logits(self, batch: Batch) -> mx.nd.NDArray:
        codes, _, _ = self._unpack(host_array(batch.packed).as_in_context(self.device))
        return self.network.logits(*self.network.inputs(batch, codes))

    def parts(self, batch: Batch) -> mx.nd.NDArray:
        codes, _, _ = self._unpack(host_array(batch.packed).as_in_context(self.device))
        return mx.nd.stack(*self.network.parts(*self.network.inputs(batch, codes)), axis=1)

    def _gradients(self, batch: Batch, seed: int, step: int, scale: float, mark: Mark) -> mx.nd.NDArray:
        codes, labels, weights = self._unpack(host_array(batch.packed).as_in_context(self.device))
        inputs = self.network.inputs(batch, codes)
        mark("copy")

        def kept(probability: float, *axes: int, stream: int = 0) -> mx.nd.NDArray:
            shape, random = (batch.packed.shape[0], *axes), _seed(seed, step) ^ stream
            return dropout.kept(probability, random, batch.first, shape).as_in_context(self.device)

        with autograd.record():
            parts = self.network.training_logits(kept, *inputs)
            losses = [self._loss(logits, labels, weights, *self._class_weights) for logits in parts]
            loss = losses[0] if len(losses) == 1 else sum(losses) / len(losses)
        mark("forward")
        loss.backward(self._scale(scale))
        mark("backward")
        return loss

    def _scale(self, scale: float) -> mx.nd.NDArray:
        """Return the gradient of the scaled loss by the loss, float32 [1] on the device."""
        if scale not in self._scales:
            self._scales = {scale: mx.nd.full((1,), scale, ctx=self.device)}
        return self._scales[scale]


class NativeEngine(Engine):
    """Engine on our own kernels (``crepe_dist/native``), which access the memory of the Gluon parameters.

    ``scale`` must be 1. Concurrent calls are serialised, since each uses all cores.
    """

    def __init__(
        self, network: Network, plan: Plan, device: Any, library: Library, objective: Objective = PLAIN, piece: int = 0
    ) -> None:
        super().__init__(network, plan, device, objective, piece)
        self._parameters = list(network.collect_params().values())
        self._trained = list(block.trained(network).values())
        self._kernels = Kernels(network.shape, library, plan.precision)
        self._quanta = Quanta(self._trained)
        self._leaves_whole = False
        self._addresses: Any = None  # of the parameters
        self._begin()

    @property
    def group_size(self) -> int:
        return self.network.shape.group_size

    def _begin(self) -> None:
        classes = self.network.shape.classes
        weights = np.ascontiguousarray(self.objective.class_weights(classes))
        targets = self.objective.pairs, self.objective.labelled == SEVERAL
        self._kernels.call("crepe_objective", self.objective.smoothing, weights.ctypes.data, classes, *targets)
        self._has_weights = False

    def quanta(self, documents: int) -> Quanta:
        named, sparse = structural_parameters(self.network), []
        for which, (name, rows) in enumerate(self.network.shape.most_rows(documents).items()):
            named[name].grad_req = "null"
            sparse.append(SparseParameter(named[name], rows, partial(self._use_table, which)))
            self.piece = 0  # the memory does not grow with the batch as that of the paper's network does
        self._quanta = Quanta(self._trained, sparse)
        self._leaves_whole = True
        return self._quanta

    def gradients(self, batch: Batch, seed: int, step: int, scale: float, mark: Mark = no_mark) -> float:
        if self._leaves_whole:
            return self._whole_gradients(batch, seed, step, scale, mark)
        self._quanta.restore(None)
        self._quanta.begin(batch.documents)
        loss = self._whole_gradients(batch, seed, step, scale, mark)
        while not self._quanta.fit([self._quanta.bounds[:]]):
            loss = self._whole_gradients(batch, seed, step, scale, mark)
        mx.nd.waitall()  # it may still be copying the sums of several pieces
        self._quanta.to_float()
        return loss

    def _whole_gradients(self, batch: Batch, seed: int, step: int, scale: float, mark: Mark) -> float:
        ctypes.memset(self._quanta.bounds, 0, ctypes.sizeof(self._quanta.bounds))
        return float(super().gradients(batch, seed, step, scale, mark))

    def _add(self, total: mx.nd.NDArray, gradient: mx.nd.NDArray) -> None:
        mx.nd.waitall()
        whole = view(total).view(np.int32)
        whole += view(gradient).view(np.int32)

    def _use_table(self, which: int, table: int) -> None:
        cached = min(MOST_CACHED, machine.memory() // 32)
        self._kernels.call("crepe_use_table", which, table, cached)

    def refresh(self) -> None:
        self._follow_fork()
        with self._kernels.lock:
            self._set(anew=True)

    def logits(self, batch: Batch) -> mx.nd.NDArray:
        if self.network.tower_weight == 1:
            return host_array(self._forward("crepe_forward", batch, 1)[0])
        parts = self._forward("crepe_forward_parts", batch, 2).swapaxes(0, 1)
        return host_array(combined(parts, self.network.tower_weight))

    def parts(self, batch: Batch) -> mx.nd.NDArray:
        return host_array(self._forward("crepe_forward_parts", batch, 2).swapaxes(0, 1))

    def _forward(self, function: str, batch: Batch, parts: int) -> npt.NDArray[np.float32]:
        """Compute the logits of the network, or of its two parts, float32 [parts, B, classes]."""
        self._follow_fork()
        if not self._has_weights:
            self.refresh()
        rows, stride = self._shape_of(batch)
        logits = np.empty((parts, rows, self.network.shape.classes), np.float32)
        with self._kernels.lock:
            self._kernels.call(function, batch.packed.ctypes.data, stride, rows, logits.ctypes.data)
        return logits

    def _gradients(self, batch: Batch, seed: int, step: int, scale: float, mark: Mark) -> float:
        self._follow_fork()
        rows, _ = self._shape_of(batch)
        dropping = (self.network.shape.dropout, _seed(seed, step), batch.first)
        quanta, loss = self._quanta, ctypes.c_double()
        with self._kernels.lock:
            self._set(anew=not self._has_weights)
            mark("copy")
            self._kernels.call("crepe_train_forward", batch.packed.ctypes.data, rows, *dropping, ctypes.byref(loss))
            mark("forward")
            rounding = quanta.exponents, quanta.unit, quanta.bounds
            self._kernels.call("crepe_train_backward", quanta.gradients, *rounding)
        mark("backward")
        return loss.value

    def _set(self, anew: bool) -> None:
        mx.nd.waitall()
        if anew:
            self._addresses = pointers([p.data() for p in self._parameters])
        self._kernels.call("crepe_set", self._addresses, anew)
        self._has_weights = True

    def _shape_of(self, batch: Batch) -> tuple[int, int]:
        """Return a batch's number of rows and bytes per row, after checking them: the kernels cannot."""
        rows, stride = batch.packed.shape
        length = self.network.shape.feature_len
        expected = length + extra_bytes(self.objective.pairs)
        if stride != expected:
            raise ValueError(f"the batch has {stride} bytes per row; {length} characters need {expected}")
        return rows, stride

    def _follow_fork(self) -> None:
        """Open another engine if this process was forked after the last one was opened."""
        if self._kernels.follow_fork():
            self._begin()


def _seed(seed: int, step: int) -> int:
    """Return the seed of a step's dropout, uint64; ``kept`` scrambles it."""
    return (seed * MULTIPLIER2 + step * MULTIPLIER1) % 2**64
