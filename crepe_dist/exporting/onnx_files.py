"""ONNX file of a network, alone or in a web page. This module imports the optional ONNX and ONNX Runtime."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, checker, helper

from crepe_dist import registry
from crepe_dist.data.alphabet import Encoding
from crepe_dist.errors import UserError
from crepe_dist.exporting import crepe_runtime, web_page
from crepe_dist.exporting.crepe_runtime import FORMAT, Classifier
from crepe_dist.exporting.onnx_encoder import encode
from crepe_dist.model.onnx_graph import Graph
from crepe_dist.model.parameters import Arrays
from crepe_dist.model.shape import Shape
from crepe_dist.predicting.model_summary import summarise
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.version import __version__
from crepe_dist.wording import size

MODEL = "model.onnx"
# Versions of ONNX 1.13: the oldest with every operator used here, for the sake of old readers.
OPSET_VERSION, IR_VERSION = 18, 8
MAX_PARAMETER_BYTES = (1 << 31) - (1 << 20)  # Protocol Buffers end at 2 GiB; 1 MiB is left for the nodes


def write(ours: Predictor, folder: Path, quantize: bool) -> Classifier:
    """Write the ONNX file and ``crepe_runtime.py``; return a classifier that reads the file back."""
    (folder / MODEL).write_bytes(_model(ours, quantize))
    shutil.copyfile(crepe_runtime.__file__, folder / "crepe_runtime.py")
    return Classifier(str(folder / MODEL))


def write_page(ours: Predictor, folder: Path, quantize: bool) -> Classifier:
    """Write the web page; return a classifier with the same model."""
    model = _model(ours, quantize)
    classifier = Classifier(model)
    web_page.write(model, classifier.about, summarise(ours), folder)
    return classifier


def _model(ours: Predictor, quantize: bool) -> bytes:
    engine = ours.engine
    about = metadata(engine.shape, ours.encoding, ours.classes)
    about = {**about, "temperature": ours.calibration.temperature, "min_probability": ours.min_probability}
    if ours.thresholds is not None:
        about["thresholds"] = ours.thresholds.tolist()
    content: bytes = build(engine.shape, ours.encoding, engine.arrays, about, quantize=quantize).SerializeToString()
    return content


def build(
    shape: Shape, encoding: Encoding, arrays: Arrays, about: dict[str, Any], *, quantize: bool = False
) -> ModelProto:
    """Build the ONNX model of a network.

    The input is ``text``, code points. The outputs are ``probabilities``, float32 [batch, classes], and the numbers of
    characters that are ``read`` and that are not, ``characters_cut``, int32 [batch].

    Args:
        arrays: float32 parameters by structural name.
        about: metadata, from ``metadata``; a ``temperature`` divides the logits, and with ``thresholds`` the
            classes are independent.
        quantize: store tables in eight bits; ``eight_bits.rounded`` has already rounded the parameters.

    Raises:
        UserError: the parameters are too large for an ONNX file.
    """
    total = sum(array.nbytes for array in arrays.values())
    if total > MAX_PARAMETER_BYTES:
        raise UserError(
            f"the parameters are too large for an ONNX file: {size(total)}", "the limit is 2 GB", "use --format symbol"
        )
    graph = Graph(quantize)
    encoded = encode(graph, encoding)
    logits = registry.part(shape.kind, "onnx").logits(graph, shape, arrays, encoded.codes)
    if about.get("temperature", 1) != 1:
        logits = graph.node("Div", logits, graph.value(np.array(about["temperature"], np.float32)))
    if "thresholds" in about:
        graph.node("Sigmoid", logits, name="probabilities")
    else:
        graph.node("Softmax", logits, name="probabilities", axis=1)
    graph.outputs.append(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", shape.classes]))
    for name in (encoded.read, encoded.cut):
        graph.outputs.append(helper.make_tensor_value_info(name, TensorProto.INT32, ["batch"]))
    built = helper.make_model(
        helper.make_graph(graph.nodes, shape.kind, graph.inputs, graph.outputs, graph.values),
        opset_imports=[helper.make_opsetid("", OPSET_VERSION)],
        ir_version=IR_VERSION,
        producer_name="crepe_dist",
        producer_version=__version__,
    )
    helper.set_model_props(built, {name: json.dumps(value) for name, value in about.items()})
    checker.check_model(built)
    return built


def metadata(shape: Shape, encoding: Encoding, classes: list[str]) -> dict[str, Any]:
    """Return the metadata: the network, the encoding and the names of the classes."""
    head: dict[str, Any] = {"format": int(FORMAT), "version": __version__, **shape.settings()}
    return {**head, **encoding.to_dict(), "classes": classes}
