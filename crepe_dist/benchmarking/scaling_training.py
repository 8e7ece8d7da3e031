"""Timed training and all-reduces in the processes of ``crepe_dist.benchmarking.scaling_worker``."""

from __future__ import annotations

import time
from typing import Any

import mxnet as mx
import numpy as np

from crepe_dist.benchmarking.ours import SETTINGS, Training
from crepe_dist.data.batch import pack
from crepe_dist.distributed.device import pick
from crepe_dist.engines.block import build
from crepe_dist.networks.paper.shape import PaperShape
from crepe_dist.settings.model_options import ModelOptions, Precision


class Worker:
    """Handlers of the requests to a worker; every request goes to all ranks of a world."""

    def __init__(self, world: Any, place: int) -> None:
        self._world = world
        self._place = place

    def build(self, on: str = "cpu", precision: Precision = "auto", **shape: Any) -> dict[str, Any]:
        """Build the network, on a GPU of its own or on the CPU; answer the ``bytes`` of its gradients."""
        self._shape = PaperShape(**shape)
        device = pick(on, self._world)
        if on == "gpu" and self._world.size == 1:
            device = mx.gpu(self._place)  # independent processes do not know of each other's GPUs
        self._training = Training(self._shape, self._world, device, precision)
        # A second set of gradients, to time the all-reduce apart from the step.
        parameters = build(self._shape, ModelOptions(), device, seed=0).collect_params()
        self._trainer = self._world.trainer(parameters, mx.optimizer.create("sgd", **SETTINGS)).gluon
        self._gradients = [each.grad() for each in parameters.values() if each.grad_req != "null"]
        return {"bytes": sum(each.size * each.dtype().itemsize for each in self._gradients)}

    def train(self, batch: int, steps: int) -> dict[str, Any]:
        """Train ``steps`` times on ``batch`` documents; answer the ``seconds`` and the ``rate`` in documents/s."""
        shape, size = self._shape, self._world.size
        codes = np.random.default_rng(number := self._world.rank).integers(
            0, shape.alphabet_size, [batch, shape.feature_len], dtype=np.uint8
        )
        labels = (np.arange(batch, dtype=np.int32) + number) % shape.classes
        packed = pack(codes, labels, batch, batch * size)
        start = time.perf_counter()
        self._training.on(packed for _ in range(steps))
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "rate": batch * steps / seconds}

    def allreduce(self, times: int) -> dict[str, Any]:
        """Answer the ``seconds`` of each of ``times`` all-reduces of the gradients."""
        seconds = []
        for _ in range(times):
            for gradient in self._gradients:
                gradient[:] = 1
            mx.nd.waitall()
            self._world.gather(0, "scaling.start")  # a barrier
            start = time.perf_counter()
            self._trainer.allreduce_grads()
            mx.nd.waitall()
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds}
