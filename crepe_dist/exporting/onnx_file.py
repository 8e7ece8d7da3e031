"""ONNX file of a network, alone or in a web page. This module imports the optional ONNX and ONNX Runtime.

The graph encodes texts, so that no program has to write it anew. No operator takes characters out of a string: the
input has their code points, one text a row, padded with -1.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, checker, helper

from crepe_dist import network_registry
from crepe_dist.data.char_encoder import PAD_UNK_ID, CharEncoder
from crepe_dist.errors import UserError
from crepe_dist.exporting import web_page
from crepe_dist.exporting.crepe_runtime import FORMAT, Classifier
from crepe_dist.formatting import size
from crepe_dist.model.onnx_graph import GraphBuilder
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.runs import checkpoint
from crepe_dist.version import __version__

MODEL = "model.onnx"
COUNTS = ("read", "characters_cut")
# Versions of ONNX 1.13: the oldest with every operator used here, for the sake of old readers.
OPSET_VERSION, IR_VERSION = 18, 8
MAX_PARAMETER_BYTES = (1 << 31) - (1 << 20)  # Protocol Buffers end at 2 GiB; 1 MiB is left for the nodes
NOTHING = PAD_UNK_ID - 1  # stands for no code in the table of spellings


def write(ours: Predictor, folder: Path, *, in_page: bool) -> Classifier:
    """Write the ONNX file, or the web page; return a classifier with the model."""
    model = _model(ours)
    classifier = Classifier(model)
    if in_page:
        web_page.write(model, classifier.metadata, ours, folder)
    else:
        (folder / MODEL).write_bytes(model)
    return classifier


def _model(ours: Predictor) -> bytes:
    """Build the ONNX model of a network.

    The input is ``text``, code points. The outputs are ``probabilities``, float32 [batch, classes], and the numbers of
    characters that are ``read`` and that are not, ``characters_cut``, int32 [batch].

    Raises:
        UserError: the parameters are too large for an ONNX file.
    """
    shape, arrays, temperature = ours.engine.config, ours.engine.arrays, ours.calibration.temperature
    total = sum(array.nbytes for array in arrays.values())
    if total > MAX_PARAMETER_BYTES:
        raise UserError(f"the parameters are too large for an ONNX file: {size(total)}", remedy="use --format crepe")
    graph = GraphBuilder()
    codes = encode(graph, ours.encoding)
    logits = network_registry.import_network_module(shape.kind, "onnx").logits(graph, shape, arrays, codes)
    if temperature != 1:
        logits = graph.node("Div", logits, graph.value(np.array(temperature, np.float32)))
    about: dict[str, Any] = {"format": int(FORMAT), "version": __version__, **shape.settings()}
    about |= {**ours.encoding.to_dict(), "classes": ours.classes}
    about |= {"beside": checkpoint.read_preprocessor(ours.metadata).to_dict().get("beside", [])}
    about |= {"temperature": temperature, "min_probability": ours.min_probability}
    if ours.thresholds is None:
        graph.node("Softmax", logits, name="probabilities", axis=1)
    else:
        graph.node("Sigmoid", logits, name="probabilities")
        about["thresholds"] = ours.thresholds.tolist()
    graph.outputs.append(
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", shape.num_classes])
    )
    for name in COUNTS:
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
    content: bytes = built.SerializeToString()
    return content


def encode(graph: GraphBuilder, encoding: CharEncoder) -> str:
    """Add the input ``text``, int32 [batch, characters], and the nodes that encode it as ``CharEncoder.encode`` does.

    The result is the name of the codes, int32 [batch, positions], in the order in which the network reads; they are as
    long as the longest text. The values ``COUNTS``, int32 [batch], are the numbers of known characters that the network
    reads, without spaces, and of characters that are not read, because the text is too long.
    """
    node, length, (head, tail) = graph.node, encoding.feature_len, encoding.head_tail_lengths
    table = _spellings(encoding)
    text = graph.input("text", TensorProto.INT32, "batch", "characters")
    is_text = node("Not", node("Less", text, 0))
    # The last row of the table is that of padding, the one before it that of all unknown characters.
    row = node("Where", is_text, node("Min", text, len(table) - 2), len(table) - 1)
    spelled = node("Reshape", node("Gather", graph.value(table), row), graph.sizes(0, -1))
    spelled = node("Cast", spelled, to=TensorProto.INT32)
    is_code = node("Not", node("Equal", spelled, NOTHING))
    ends = node("CumSum", node("Cast", is_code, to=TensorProto.INT32), 1)
    number = node("ReduceMax", ends, graph.sizes(1), keepdims=1)
    # The codes of a text are moved together; what is no code goes to a last position, which nothing reads.
    width = node("Cast", node("Gather", node("Shape", spelled), 1), to=TensorProto.INT32)
    wider = node("Pad", spelled, graph.sizes(0, 0, 0, 1), PAD_UNK_ID)
    place = node("Where", is_code, node("Sub", ends, 1), width)
    codes = node("ScatterElements", wider, place, spelled, axis=1)
    # The first and the last codes of a longer text are read, with blanks between; most modes read in reverse.
    count = node("Min", number, length)
    longest = node("Max", node("ReduceMax", count, keepdims=0), 1)
    place = node("Range", 0, longest, 1)
    if encoding.mode != "notebook":
        place = node("Sub", node("Sub", count, 1), place)
    is_cut = node("Greater", number, length)
    is_tail = node("And", is_cut, node("Not", node("Less", place, length - tail)))
    is_gap = node("And", node("And", is_cut, node("Not", is_tail)), node("Not", node("Less", place, head)))
    is_text_place = node("And", node("Not", node("Less", place, 0)), node("Less", place, count))
    is_read = node("And", is_text_place, node("Not", is_gap))
    source = node("Add", place, node("Where", is_tail, node("Sub", number, length), 0))
    codes = node("GatherElements", codes, node("Where", is_read, source, 0), axis=1)
    codes = node("Where", is_read, codes, PAD_UNK_ID)
    counted = node("Less", codes, int(encoding.export_tables()["counted"]))
    known = node("And", counted, node("Not", node("Equal", codes, encoding.alphabet.index(" "))))
    _count(graph, known, COUNTS[0])
    # A character is unread if all its codes are in the gap of a text that is cut.
    ends = node("Reshape", ends, graph.sizes(0, -1, table.shape[1]))
    begins_after = node("Greater", node("Gather", ends, 0, axis=2), head)
    last = node("Gather", ends, table.shape[1] - 1, axis=2)
    ends_before = node("Not", node("Greater", last, node("Sub", number, tail)))
    unread = node("And", node("And", is_cut, is_text), node("And", begins_after, ends_before))
    _count(graph, unread, COUNTS[1])
    return codes


def _spellings(encoding: CharEncoder) -> npt.NDArray[np.uint8]:
    """Return the codes of each character, uint8 [characters + 2, codes], by code point."""
    listed: dict[str, Any] = encoding.export_tables()
    codes = {character: [code] for code, each in enumerate(listed["characters"]) for character in each}
    codes |= listed["spellings"]
    table = np.full((max(map(ord, codes)) + 3, max(map(len, codes.values()))), NOTHING, np.uint8)
    table[:-1, 0] = PAD_UNK_ID
    for character, each in codes.items():
        table[ord(character), : len(each)] = each
    return table


def _count(graph: GraphBuilder, which: str, name: str) -> None:
    numbers = graph.node("Cast", which, to=TensorProto.INT32)
    graph.node("ReduceSum", numbers, graph.sizes(1), name=name, keepdims=0)
