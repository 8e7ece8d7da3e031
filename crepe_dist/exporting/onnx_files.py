"""The network as an ONNX file, alone or in a page. Imports ONNX and ONNX Runtime, which need not be installed."""

from __future__ import annotations

import shutil
from pathlib import Path

from crepe_dist.exporting import crepe_runtime, onnx_graph, web_page
from crepe_dist.exporting.crepe_runtime import Classifier
from crepe_dist.model import parameters
from crepe_dist.predicting.model_summary import ModelSummary
from crepe_dist.predicting.predictor import Predictor

MODEL = "model.onnx"


def write(ours: Predictor, folder: Path) -> Classifier:
    """Write the network and the module that classifies by it; return a classifier by what was written."""
    (folder / MODEL).write_bytes(_model(ours))
    shutil.copyfile(crepe_runtime.__file__, folder / "crepe_runtime.py")
    return Classifier(str(folder / MODEL))


def write_page(ours: Predictor, summary: ModelSummary, folder: Path) -> Classifier:
    """Write a page that classifies by the network; return a classifier by the same model."""
    model = _model(ours)
    classifier = Classifier(model)
    web_page.write(model, classifier.about, summary, folder)
    return classifier


def _model(ours: Predictor) -> bytes:
    network = ours.engine.network
    made = onnx_graph.model(network.shape, parameters.values(network), ours.encoding, ours.classes)
    found: bytes = made.SerializeToString()
    return found
