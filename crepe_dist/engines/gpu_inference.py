"""Inference on a GPU."""

from __future__ import annotations

import threading

import numpy as np

from crepe_dist.data.arrays import Arrays
from crepe_dist.data.batch import pack_batch
from crepe_dist.data.char_encoder import CharIds
from crepe_dist.distributed.device import Device
from crepe_dist.engines.engine import create_engine
from crepe_dist.model.backend import Backend
from crepe_dist.model.inference import InferenceEngine, Logits
from crepe_dist.model.network_config import NetworkConfig
from crepe_dist.optim.parameter import Parameter


class GpuInferenceEngine(InferenceEngine):
    """Inference by the engine that ``backend`` selects for a GPU.

    Raises:
        MemoryError: The network does not fit into the GPU's memory.
    """

    def __init__(self, shape: NetworkConfig, arrays: Arrays, backend: Backend, device: Device) -> None:
        super().__init__(shape, arrays, backend)
        parameters = {name: Parameter(array) for name, array in self.arrays.items()}
        self._engine = create_engine(shape, parameters, backend, device=device)
        self._engine.load_weights()
        self._lock = threading.Lock()  # an engine is for one thread at a time

    def logits(self, codes: CharIds) -> Logits:
        # The batch is padded to a power of two, so that there are few shapes, each of which MXNet compiles.
        rows = 1 << max(len(codes) - 1, 0).bit_length()
        batch = pack_batch(codes, np.zeros(len(codes), np.int32), rows, len(codes))
        with self._lock:
            return self._engine.logits(batch)[: len(codes)]
