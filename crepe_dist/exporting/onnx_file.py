"""Export of a network as an ONNX model: as a file, or in a web page.

This module imports ONNX and ONNX Runtime, which are optional dependencies. The graph also encodes the texts, so that
programs need no encoder of their own. ONNX has no operator that splits a string into characters. Therefore, the input
consists of code points, with one text per row, padded with -1.
"""

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
from crepe_dist.version import __version__

MODEL = "model.onnx"
COUNTS = ("read", "characters_cut")  # Names of the outputs that count characters.
# Versions of the operator set and of the file format in ONNX 1.13. This is the oldest release that has every operator
# of the graph. The oldest version is used so that old runtimes can open the file.
OPSET_VERSION, IR_VERSION = 18, 8
# A Protocol Buffers message is limited to 2 GiB. 1 MiB is reserved for the nodes of the graph.
MAX_PARAMETER_BYTES = (1 << 31) - (1 << 20)
NO_ID = PAD_UNK_ID - 1  # Filler in the table of ids, for characters with fewer ids than the table has columns.


def write(predictor: Predictor, folder: Path, *, in_page: bool) -> Classifier:
    """Write the ONNX file, or the web page. Return a classifier that runs the ONNX model."""
    model = _build_model(predictor)
    classifier = Classifier(model)
    if in_page:
        web_page.write(model, classifier.metadata, predictor, folder)
    else:
        (folder / MODEL).write_bytes(model)
    return classifier


def _build_model(predictor: Predictor) -> bytes:
    """Build the ONNX model of a network.

    The input ``text`` contains code points. The outputs are ``probabilities``, float32 [batch, classes], and two
    character counts per text, int32 [batch]: ``read`` counts the known characters that the network reads, without
    spaces, and ``characters_cut`` counts the characters that are not read because the text is too long.

    Raises:
        UserError: The parameters are too large for an ONNX file.
    """
    config, arrays, temperature = predictor.engine.config, predictor.engine.arrays, predictor.calibration.temperature
    total = sum(array.nbytes for array in arrays.values())
    if total > MAX_PARAMETER_BYTES:
        raise UserError(f"the parameters are too large for an ONNX file: {size(total)}", remedy="use --format crepe")
    graph = GraphBuilder()
    char_ids = encode(graph, predictor.encoding)
    logits = network_registry.import_network_module(config.kind, "onnx").logits(graph, config, arrays, char_ids)
    if temperature != 1:
        logits = graph.node("Div", logits, graph.value(np.array(temperature, np.float32)))
    metadata: dict[str, Any] = {"format": int(FORMAT), "version": __version__, **config.settings()}
    metadata |= {**predictor.encoding.to_dict(), "classes": predictor.classes}
    metadata |= {"temperature": temperature, "min_probability": predictor.min_probability}
    if predictor.thresholds is None:
        graph.node("Softmax", logits, name="probabilities", axis=1)
    else:
        graph.node("Sigmoid", logits, name="probabilities")
        metadata["thresholds"] = predictor.thresholds.tolist()
    graph.outputs.append(
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", config.num_classes])
    )
    for name in COUNTS:
        graph.outputs.append(helper.make_tensor_value_info(name, TensorProto.INT32, ["batch"]))
    built = helper.make_model(
        helper.make_graph(graph.nodes, config.kind, graph.inputs, graph.outputs, graph.values),
        opset_imports=[helper.make_opsetid("", OPSET_VERSION)],
        ir_version=IR_VERSION,
        producer_name="crepe_dist",
        producer_version=__version__,
    )
    helper.set_model_props(built, {name: json.dumps(value) for name, value in metadata.items()})
    checker.check_model(built)
    content: bytes = built.SerializeToString()
    return content


def encode(graph: GraphBuilder, encoding: CharEncoder) -> str:
    """Add the input ``text``, int32 [batch, characters], and nodes that encode it like ``CharEncoder.encode``.

    The nodes also compute the outputs ``COUNTS``; see ``_build_model``.

    Returns:
        The name of the character ids, int32 [batch, positions], in the reading order of the network. The number of
        positions is the number of ids that the network reads from the longest text of the batch, at least 1.
    """
    node, length, (head, tail) = graph.node, encoding.feature_len, encoding.head_tail_lengths
    table = _spellings(encoding)
    text = graph.input("text", TensorProto.INT32, "batch", "characters")
    is_text = node("Not", node("Less", text, 0))
    # The last row of the table represents padding. The row before it represents all unknown characters.
    row = node("Where", is_text, node("Min", text, len(table) - 2), len(table) - 1)
    spelled = node("Gather", graph.value(table), row)
    if encoding.mark_ids:
        spelled = node("Concat", _marks(graph, encoding, row, len(table)), spelled, axis=2)
    spelled = node("Reshape", spelled, graph.sizes(0, -1))
    spelled = node("Cast", spelled, to=TensorProto.INT32)
    is_code = node("Not", node("Equal", spelled, NO_ID))
    ends = node("CumSum", node("Cast", is_code, to=TensorProto.INT32), 1)
    number = node("ReduceMax", ends, graph.sizes(1), keepdims=1)
    # The ids of a text are moved to the left, to close the gaps where fillers were. The fillers are moved to an
    # additional last position, which is never read.
    width = node("Cast", node("Gather", node("Shape", spelled), 1), to=TensorProto.INT32)
    wider = node("Pad", spelled, graph.sizes(0, 0, 0, 1), PAD_UNK_ID)
    place = node("Where", is_code, node("Sub", ends, 1), width)
    codes = node("ScatterElements", wider, place, spelled, axis=1)
    # If a text is too long, only its first and last ids are read, with blanks between them. All cases except
    # ``notebook`` read texts in reverse.
    count = node("Min", number, length)
    longest = node("Max", node("ReduceMax", count, keepdims=0), 1)
    place = node("Range", 0, longest, 1)
    if not encoding.in_reading_order:
        place = node("Sub", node("Sub", count, 1), place)
    is_cut = node("Greater", number, length)
    is_tail = node("And", is_cut, node("Not", node("Less", place, length - tail)))
    is_gap = node("And", node("And", is_cut, node("Not", is_tail)), node("Not", node("Less", place, head)))
    is_text_place = node("And", node("Not", node("Less", place, 0)), node("Less", place, count))
    is_read = node("And", is_text_place, node("Not", is_gap))
    source = node("Add", place, node("Where", is_tail, node("Sub", number, length), 0))
    codes = node("GatherElements", codes, node("Where", is_read, source, 0), axis=1)
    codes = node("Where", is_read, codes, PAD_UNK_ID)
    known = node("Less", codes, int(encoding.export_tables()["counted"]))
    for uncounted in (encoding.alphabet.index(" "), *encoding.mark_ids):
        known = node("And", known, node("Not", node("Equal", codes, uncounted)))
    _count(graph, known, COUNTS[0])
    # A character is truncated if all of its ids are between the first and the last ids that the network reads.
    columns = table.shape[1] + bool(encoding.mark_ids)
    ends, is_code = (node("Reshape", values, graph.sizes(0, -1, columns)) for values in (ends, is_code))
    first_is_code = node("Cast", node("Gather", is_code, 0, axis=2), to=TensorProto.INT32)
    begins_after = node("Not", node("Less", node("Sub", node("Gather", ends, 0, axis=2), first_is_code), head))
    last = node("Gather", ends, columns - 1, axis=2)
    ends_before = node("Not", node("Greater", last, node("Sub", number, tail)))
    unread = node("And", node("And", is_cut, is_text), node("And", begins_after, ends_before))
    _count(graph, unread, COUNTS[1])
    return codes


def _marks(graph: GraphBuilder, encoding: CharEncoder, row: str, num_rows: int) -> str:
    """Add nodes that find the marks of capital letters, as ``CharEncoder`` does in the case ``keep``.

    Args:
        row: Name of the row of each character in the table of ``_spellings``, [batch, characters].
        num_rows: Number of rows of this table.

    Returns:
        The name of the id of the mark before each character, or ``NO_ID``, uint8 [batch, characters, 1].
    """
    node, (capital, capitals) = graph.node, encoding.mark_ids
    table = np.append(encoding.is_capital[: num_rows - 2], [False, False])
    is_capital = node("Gather", graph.value(table), row)
    number = node("Cast", is_capital, to=TensorProto.INT32)
    width = node("Gather", node("Shape", number), graph.sizes(1))
    padded = node("Pad", number, graph.sizes(0, 1, 0, 1), 0)
    previous = node("Slice", padded, graph.sizes(0), width, graph.sizes(1))
    following = node("Slice", padded, graph.sizes(2), node("Add", width, graph.sizes(2)), graph.sizes(1))
    starts = node("And", is_capital, node("Equal", previous, 0))
    ids = node("Where", node("Equal", following, 0), capital, capitals)
    marks = node("Cast", node("Where", starts, ids, NO_ID), to=TensorProto.UINT8)
    return node("Unsqueeze", marks, graph.sizes(2))


def _spellings(encoding: CharEncoder) -> npt.NDArray[np.uint8]:
    """Return a table with the ids of each code point, uint8 [code points + 2, ids].

    Unused elements are ``NO_ID``. The last two rows are for unknown characters and for padding.
    """
    listed: dict[str, Any] = encoding.export_tables()
    ids = {character: [number] for number, characters in enumerate(listed["characters"]) for character in characters}
    ids |= listed["spellings"]
    table = np.full((max(map(ord, ids)) + 3, max(map(len, ids.values()))), NO_ID, np.uint8)
    table[:-1, 0] = PAD_UNK_ID
    for character, character_ids in ids.items():
        table[ord(character), : len(character_ids)] = character_ids
    return table


def _count(graph: GraphBuilder, which: str, name: str) -> None:
    numbers = graph.node("Cast", which, to=TensorProto.INT32)
    graph.node("ReduceSum", numbers, graph.sizes(1), name=name, keepdims=0)
