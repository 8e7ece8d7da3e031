"""ONNX file of a network, alone or in a web page. This module imports the optional ONNX and ONNX Runtime."""

from __future__ import annotations

import shutil
from pathlib import Path

from crepe_dist.exporting import crepe_runtime, onnx_graph, web_page
from crepe_dist.exporting.crepe_runtime import Classifier
from crepe_dist.predicting.model_summary import ModelSummary
from crepe_dist.predicting.predictor import Predictor

MODEL = "model.onnx"


def write(ours: Predictor, folder: Path, quantize: bool) -> Classifier:
    """Write the ONNX file and ``crepe_runtime.py``; return a classifier that reads the file back."""
    (folder / MODEL).write_bytes(_model(ours, quantize))
    shutil.copyfile(crepe_runtime.__file__, folder / "crepe_runtime.py")
    return Classifier(str(folder / MODEL))


def write_page(ours: Predictor, summary: ModelSummary, folder: Path, quantize: bool) -> Classifier:
    """Write the web page; return a classifier with the same model."""
    model = _model(ours, quantize)
    classifier = Classifier(model)
    web_page.write(model, classifier.about, summary, folder)
    return classifier


def _model(ours: Predictor, quantize: bool) -> bytes:
    engine = ours.engine
    about = onnx_graph.about(engine.shape, ours.encoding, ours.classes)
    about = {**about, "temperature": ours.calibration.temperature, "min_probability": ours.min_probability}
    if ours.thresholds is not None:
        about["thresholds"] = ours.thresholds.tolist()
    content: bytes = onnx_graph.model(engine.shape, engine.arrays, about, quantize=quantize).SerializeToString()
    return content
