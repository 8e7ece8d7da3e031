"""Inference on a GPU."""

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
    """Inference engine for a GPU. It uses the training engine that ``backend`` selects.

    Raises:
        MemoryError: The network does not fit into the GPU's memory.
    """

    def __init__(self, config: NetworkConfig, arrays: Arrays, backend: Backend, device: Device) -> None:
        super().__init__(config, arrays, backend)
        parameters = {name: Parameter(array) for name, array in self.arrays.items()}
        self._engine = create_engine(config, parameters, backend, device=device)
        self._engine.load_weights()
        self._lock = threading.Lock()  # An engine is not thread-safe.

    def logits(self, char_ids: CharIds) -> Logits:
        # MXNet compiles the network for each batch shape. Padding to a power of two limits the number of shapes.
        num_rows = 1 << max(len(char_ids) - 1, 0).bit_length()
        batch = pack_batch(char_ids, np.zeros(len(char_ids), np.int32), num_rows, len(char_ids))
        with self._lock:
            return self._engine.logits(batch)[: len(char_ids)]
