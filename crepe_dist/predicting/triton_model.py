"""Model of Triton's Python backend, which the ``model.py`` of ``export --format triton`` imports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as backend

from crepe_dist.predicting.predictor import load
from crepe_dist.predicting.tensors import BYTES, INPUT, outputs, values


class TritonPythonModel:
    """Model as Triton calls it; the methods have the names that Triton wants."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the parameters beside ``model.py``."""
        self._predictor = load(Path(args["model_repository"], args["model_version"]))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests, each of which is a batch of texts, in one batch."""
        batches = [_texts(request) for request in requests]
        predictions = iter(self._predictor.predict([text for batch in batches for text in batch or ()]))
        return [self._answer(batch, predictions) for batch in batches]

    def _answer(self, batch: list[str] | None, predictions: Any) -> Any:
        if batch is None:
            return backend.InferenceResponse(error=backend.TritonError(f"a {INPUT} is not UTF-8"))
        found = values([next(predictions) for _ in batch], self._predictor.classes)
        tensors = []
        for name, kind in outputs(self._predictor.several).items():
            array = [text.encode("utf-8") for text in found[name]] if kind == BYTES else found[name]
            shaped = np.array(array, object if kind == BYTES else np.float32).reshape(len(batch), -1)
            tensors.append(backend.Tensor(name, shaped))
        return backend.InferenceResponse(output_tensors=tensors)


def _texts(request: Any) -> list[str] | None:
    """Decode the texts of a request; ``None`` if one is not UTF-8."""
    encoded = backend.get_input_tensor_by_name(request, INPUT).as_numpy().ravel().tolist()
    try:
        return [text.decode("utf-8") for text in encoded]
    except UnicodeDecodeError:
        return None
