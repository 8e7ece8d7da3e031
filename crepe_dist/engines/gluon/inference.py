"""Inference by MXNet's operators on a GPU."""

from __future__ import annotations

import numpy as np

from crepe_dist.data.alphabet import Codes
from crepe_dist.data.batch import pack
from crepe_dist.distributed.device import Device
from crepe_dist.engines.gluon.engine import GraphEngine
from crepe_dist.exchange.parameter import Parameter
from crepe_dist.model.inference import Inference, Logits
from crepe_dist.model.parameters import Arrays
from crepe_dist.model.precision import plan
from crepe_dist.model.shape import Shape
from crepe_dist.settings.model_options import ModelOptions


class GraphInference(Inference):
    """Engine on MXNet's operators."""

    def __init__(self, shape: Shape, arrays: Arrays, device: Device, options: ModelOptions) -> None:
        super().__init__(shape, arrays, plan(options, device, shape))
        parameters = {name: Parameter(array) for name, array in self.arrays.items()}
        self._engine = GraphEngine(shape, parameters, self.plan, device=device)

    def logits(self, codes: Codes) -> Logits:
        # The batch is padded to a power of two, so that few shapes are compiled.
        rows = 1 << max(len(codes) - 1, 0).bit_length()
        batch = pack(codes, np.zeros(len(codes), np.int32), rows, len(codes))
        return self._engine.logits(batch)[: len(codes)]
