"""Engine on MXNet's operators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import mxnet as mx
from mxnet import autograd, gluon

from crepe_dist.data.batch import Batch
from crepe_dist.distributed.device import Device
from crepe_dist.distributed.world import World
from crepe_dist.engines.engine import Engine, Logits, Mark, added, dropout_seed
from crepe_dist.engines.gluon import block
from crepe_dist.engines.gluon.context import context
from crepe_dist.engines.gluon.loss import Loss
from crepe_dist.engines.gluon.unpacking import Unpack
from crepe_dist.exchange.exchange import Exchange
from crepe_dist.exchange.gluon_optimizers import make_optimizer
from crepe_dist.exchange.horovod import HorovodExchange
from crepe_dist.exchange.parameter import Parameter
from crepe_dist.exchange.rule import Rule
from crepe_dist.exchange.single import SingleExchange
from crepe_dist.model.objective import Objective
from crepe_dist.model.parameters import Arrays
from crepe_dist.model.precision import Plan
from crepe_dist.model.shape import Shape
from crepe_dist.mxnet_internals import host_array, structural_parameters
from crepe_dist.settings.training_options import OptimizerOptions


class GraphEngine(Engine):
    """Engine on MXNet's operators, compiled into a graph if it is asked for.

    Attributes:
        network: Gluon block, which holds the parameters.
    """

    def __init__(
        self,
        shape: Shape,
        parameters: Mapping[str, Parameter],
        plan: Plan,
        objective: Objective,
        piece: int,
        device: Device,
        *,
        compiled: bool,
    ) -> None:
        super().__init__(shape, plan, objective, piece, device)
        self._context = context(device)
        self.network = block.build(shape, parameters, self._context)
        if compiled:
            self.network.hybridize(static_alloc=True, static_shape=True)
        class_weights = mx.nd.array(objective.class_weights(shape.classes), ctx=self._context)
        self._class_weights = (class_weights,) if objective.weights else ()
        self._scales: dict[float, mx.nd.NDArray] = {}
        # Graphs, because a single operator outside one takes the host about as long as a whole graph.
        self._unpack, self._loss = Unpack(objective.pairs, shape.classes), Loss(objective)
        for graph in (self._unpack, self._loss):
            graph.hybridize(static_alloc=True, static_shape=True)
        self.network.compute_in(plan.precision, self._context)

    def prepare(self, batch: Batch, seed: int | None = None) -> Batch:
        batch = self.network.prepare(batch, seed)
        if seed is not None and self.rows_at_a_time(batch) < len(batch.packed):  # it will be divided in host memory
            return batch
        # The copies run beside the steps before. They are not from page-locked memory, which MXNet 1.9.1 allocates and
        # frees anew for each array (src/storage/pinned_memory_storage.h); CUDA stops other work on the GPU for that.
        return replace(batch, extra=self._copied(batch.extra))

    def wait(self) -> None:
        mx.nd.waitall()

    def gpu_memory(self) -> tuple[int, int] | None:
        if self.device.device_type != "gpu":
            return None
        free, total = mx.context.gpu_memory_info(self.device.device_id)
        return free, total

    def values(self) -> Arrays:
        return block.values(self.network)

    def set_values(self, arrays: Arrays) -> None:
        block.set_values(self.network, arrays)
        # Compiled graphs would write gradients into the old arrays.
        self.network.compute_in(self.plan.precision, self._context)

    def open_exchange(self, world: World, options: OptimizerOptions, documents: int) -> Exchange:
        rule, trained = Rule(options), block.trained(self.network)
        names = {parameter.name: name for name, parameter in structural_parameters(self.network).items()}
        if world.size > 1:
            return HorovodExchange(world, trained, rule, names)
        return SingleExchange(gluon.Trainer(trained, make_optimizer(rule), kvstore=None), rule, names)

    def _logits(self, batch: Batch) -> Logits:
        codes, _, _ = self._unpacked(batch)
        logits: Logits = self.network.logits(*self._inputs(batch, codes)).asnumpy()
        return logits

    def parts(self, batch: Batch) -> Logits:
        codes, _, _ = self._unpacked(batch)
        parts: Logits = mx.nd.stack(*self.network.parts(*self._inputs(batch, codes)), axis=1).asnumpy()
        return parts

    def _inputs(self, batch: Batch, codes: mx.nd.NDArray, seed: int | None = None) -> tuple[mx.nd.NDArray, ...]:
        """Return the arguments of the forward pass; ``seed``: as for ``prepare``, for a batch that is not prepared."""
        prepared = batch if batch.extra else self.network.prepare(batch, seed)
        return self.network.inputs(codes, *self._copied(prepared.extra))

    def _copied(self, arrays: Iterable[Any]) -> tuple[mx.nd.NDArray, ...]:
        """Copy arrays to the device that are not MXNet's yet."""
        return tuple(
            each if isinstance(each, mx.nd.NDArray) else host_array(each).as_in_context(self._context)
            for each in arrays
        )

    def _unpacked(self, batch: Batch) -> tuple[mx.nd.NDArray, mx.nd.NDArray, mx.nd.NDArray]:
        codes, labels, weights = self._unpack(host_array(batch.packed).as_in_context(self._context))
        return codes, labels, weights

    def _gradients(
        self, batch: Batch, seed: int, step: int, scale: float, mark: Mark, *, adds: bool = False
    ) -> mx.nd.NDArray:
        codes, labels, weights = self._unpacked(batch)
        inputs = self._inputs(batch, codes, dropout_seed(seed, step))
        mark("copy")
        with autograd.record():
            parts = self.network.training_logits(*inputs)
            losses = [self._loss(logits, labels, weights, *self._class_weights) for logits in parts]
            loss = losses[0] if len(losses) == 1 else sum(losses) / len(losses)
        mark("forward")
        gradients = [parameter.grad() for parameter in block.trained(self.network).values()] if adds else []
        with added(gradients):
            loss.backward(self._scale(scale))
        mark("backward")
        return loss

    def _scale(self, scale: float) -> mx.nd.NDArray:
        """Return the gradient of the scaled loss by the loss, float32 [1] on the device."""
        if scale not in self._scales:
            self._scales = {scale: mx.nd.full((1,), scale, ctx=self._context)}
        return self._scales[scale]
