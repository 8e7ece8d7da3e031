"""One model on every runtime, and the same answers from the reference implementations of encoder and network."""

import runpy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

import crepe_dist
from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.data.targets import MULTILABEL
from crepe_dist.data.text_preprocessing import TextPreprocessor
from crepe_dist.distributed.device import CPU
from crepe_dist.engines.gpu_inference import GpuInferenceEngine
from crepe_dist.exporting.exporter import export, synthetic_texts
from crepe_dist.model.backend import Backend
from crepe_dist.native import library
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.serving.app import ServiceMetrics, create_app
from crepe_dist.serving.batching import DynamicBatcher
from crepe_dist.settings.options import ServiceOptions
from tests.exporting.test_export import make
from tests.helpers import reference

Answers = Sequence[Any]  # Predictions of the package or of the exported module.


@dataclass(frozen=True)
class Model:
    """Checkpoint with random parameters."""

    path: Path

    @classmethod
    def make(
        cls, folder: Path, kind: str, encoder: CharEncoder, *, strip_html: bool = False, multilabel: bool = False
    ) -> "Model":
        preprocessor = TextPreprocessor(strip_html=strip_html)
        more = {"labels": {"kind": MULTILABEL, "thresholds": [0.2, 0.5, 0.8]}} if multilabel else {}
        return cls(make(folder, kind, encoder, more={**more, "composition": preprocessor.to_dict()}))

    def load(self) -> Predictor:
        return crepe_dist.load(self.path, device="cpu")


def by_package(model: Model, texts: Sequence[str]) -> Answers:
    """Answers of ``crepe predict`` with the kernels that the environment selects."""
    return _stream(model.load(), texts)


def _stream(predictor: Predictor, rows: Sequence[str]) -> Answers:
    # A batch of ASCII texts is encoded differently, so ASCII texts have their own batches.
    return [answer for _, group in groupby(rows, str.isascii) for answer in predictor.predict_stream(group)]


def by_numpy(model: Model, texts: Sequence[str]) -> Answers:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.KERNELS_ENV, library.NONE)
        return by_package(model, texts)


def by_onnx(model: Model, texts: Sequence[str]) -> Answers:
    folder, predictor = model.path.parent / "onnx", model.load()
    export(predictor, "onnx", folder, synthetic_texts(predictor.encoding))
    classifier = runpy.run_path(str(folder / "crepe_runtime.py"))["Classifier"](str(folder / "model.onnx"))
    return list(classifier.predict(texts))


def by_mxnet(model: Model, texts: Sequence[str]) -> Answers:
    """Answers of MXNet's operators, which only the network ``paper`` has."""
    predictor = model.load()
    backend = Backend("float32", None, "for a test")
    engine = GpuInferenceEngine(predictor.engine.config, predictor.engine.parameters, backend, CPU)
    return _stream(replace(predictor, engine=engine), texts)


def by_service(model: Model, texts: Sequence[str]) -> list[dict[str, Any]]:
    """JSON answers of ``crepe serve``."""
    predictor = model.load()
    metrics = ServiceMetrics(predictor.path.name, predictor.kernels)
    batcher = DynamicBatcher(
        lambda rows: list(predictor.predict_stream(iter(rows))), predictor.explain, metrics.batch_texts.observe
    )
    options = ServiceOptions(max_chars=1 << 20, max_body=1 << 30)
    client = TestClient(create_app(batcher, predictor, metrics, options), base_url="http://127.0.0.1")
    try:
        requests = [{"texts": list(texts[start : start + 100]), "top": 3} for start in range(0, len(texts), 100)]
        replies = [client.post("/predict", json=request) for request in requests]
        assert {reply.status_code for reply in replies} == {200}, replies[-1].text
        return [answer for reply in replies for answer in reply.json()["predictions"]]
    finally:
        batcher.close()


def by_definition(model: Model, texts: Sequence[str], encode: Any) -> tuple[Any, Any]:
    """Return the probabilities and the numbers of read characters that the reference network and encoder compute.

    Args:
        encode: Reference encoder: text, encoder → list of ids.
    """
    predictor = model.load()
    composed = list(map(predictor.composition.text, texts))
    char_ids = np.array([encode(text, predictor.encoding) for text in composed], np.uint8)
    config = predictor.engine.config
    parts = [
        reference.logits(config, predictor.engine.arrays, char_ids[start : start + 100])
        for start in range(0, len(char_ids), 100)
    ]
    logits = np.concatenate(parts) / predictor.calibration.temperature
    return predictor.probabilities(logits.astype(np.float32)), predictor.count_known(char_ids)
