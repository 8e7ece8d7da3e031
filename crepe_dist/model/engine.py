"""What computes the network: MXNet's operators on any device, or our own kernels on a CPU."""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import TYPE_CHECKING, Any, Callable

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon

from crepe_dist.model.network import Crepe, cast_to
from crepe_dist.model.precision import Plan
from crepe_dist.native.library import Library

if TYPE_CHECKING:
    from crepe_dist.data.loader import Batch

# Told the name of each phase of a step when it was asked for.
Mark = Callable[[str], None]


def no_mark(phase: str) -> None:
    """Where no profile is wanted."""


class Engine:
    """Computes logits and gradients with the parameters of a network; the parameters and gradients stay Gluon's.

    Attributes:
        network: whose parameters are used.
        plan: precision and kernels, and why these.
        device: where the network is.
    """

    def __init__(self, network: Crepe, plan: Plan, device: Any) -> None:
        self.network = network
        self.plan = plan
        self.device = device

    def refresh(self) -> None:
        """Must be called before ``logits`` when parameters may have changed."""

    def logits(self, batch: Batch) -> mx.nd.NDArray:
        """float32 [B, classes], without dropout, for the parameters at the last ``refresh``."""
        raise NotImplementedError

    def gradients(self, batch: Batch, seed: int, step: int, scale: float, mark: Mark = no_mark) -> mx.nd.NDArray:
        """Sets every parameter's gradient to that of the sum of the weighted losses, times ``scale``.

        Args:
            seed, step: decide the dropout.
            mark: told "copy", "forward" and "backward".

        Returns:
            The sum of the losses, float32 [1], perhaps still being computed.
        """
        raise NotImplementedError


def open_engine(network: Crepe, plan: Plan, device: Any) -> Engine:
    """The engine that the plan names, on parameters that are initialised."""
    if plan.library is not None:
        return NativeEngine(network, plan, device, plan.library)
    return GraphEngine(network, plan, device)


class GraphEngine(Engine):
    """MXNet's operators, compiled into a graph if the network is hybridized."""

    def __init__(self, network: Crepe, plan: Plan, device: Any) -> None:
        super().__init__(network, plan, device)
        self._loss = gluon.loss.SoftmaxCrossEntropyLoss()
        cast_to(network, plan.precision)

    def logits(self, batch: Batch) -> mx.nd.NDArray:
        codes, _, _ = batch.on(self.device)
        return self.network(codes)

    def gradients(self, batch: Batch, seed: int, step: int, scale: float, mark: Mark = no_mark) -> mx.nd.NDArray:
        codes, labels, weights = batch.on(self.device)
        mark("copy")
        if self.network.shape.dropout:
            mx.random.seed(_seed(seed, step, batch.first) & 0x7FFFFFFF)
        with autograd.record():
            loss = self._loss(self.network(codes), labels, weights).sum()
            scaled = loss * scale
        mark("forward")
        scaled.backward()
        mark("backward")
        return loss


class NativeEngine(Engine):
    """Our own kernels (crepe_dist/native), which work on the memory of the Gluon parameters; ``scale`` must be 1."""

    def __init__(self, network: Crepe, plan: Plan, device: Any, library: Library) -> None:
        super().__init__(network, plan, device)
        self._functions = library.functions
        self._parameters = list(network.collect_params().values())
        shape = network.shape
        sizes = (shape.alphabet_size, shape.feature_len, shape.classes, shape.filters, shape.units)
        threads = int(os.environ.get("OMP_NUM_THREADS", "1").split(",")[0])
        self._engine = self._functions.crepe_open(plan.precision == "bfloat16", (ctypes.c_int64 * 5)(*sizes), threads)
        if not self._engine:
            raise MemoryError("no memory for the network")
        weakref.finalize(self, self._functions.crepe_close, self._engine)

    def refresh(self) -> None:
        mx.nd.waitall()
        self._check(self._functions.crepe_set(self._engine, _pointers([p.data() for p in self._parameters])))

    def logits(self, batch: Batch) -> mx.nd.NDArray:
        rows, stride = batch.packed.shape
        logits = mx.nd.empty((rows, self.network.shape.classes))
        status = self._functions.crepe_forward(self._engine, pointer(batch.packed), stride, rows, pointer(logits))
        self._check(status)
        return logits

    def gradients(self, batch: Batch, seed: int, step: int, scale: float, mark: Mark = no_mark) -> mx.nd.NDArray:
        self.refresh()
        rows = len(batch.packed)
        losses = mx.nd.empty((rows,))
        dropout = self.network.shape.dropout
        place = (_seed(seed, step), batch.first)
        run, packed = self._functions, pointer(batch.packed)
        mark("copy")
        self._check(run.crepe_train_forward(self._engine, packed, rows, dropout, *place, pointer(losses)))
        mark("forward")
        self._check(run.crepe_train_backward(self._engine, _pointers([p.grad() for p in self._parameters])))
        for parameter in self._parameters:
            parameter.data()._fresh_grad = True  # as after a backward pass; the trainer asks
        mark("backward")
        return losses.sum()

    def _check(self, status: int) -> None:
        if status:
            raise MemoryError("not enough memory for this batch; make data.batch_size smaller")


def pointer(array: mx.nd.NDArray) -> int:
    """Address of an array in host memory on which nothing is waiting; it must not outlive the array."""
    address = ctypes.c_void_p()
    mx.base.check_call(mx.base._LIB.MXNDArrayGetData(array.handle, ctypes.byref(address)))
    assert address.value is not None
    return address.value


def _pointers(arrays: list[mx.nd.NDArray]) -> Any:
    return (ctypes.c_void_p * len(arrays))(*[pointer(array) for array in arrays])


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])
