"""Encoding of texts in an ONNX graph, so that no program has to write it anew.

No operator takes characters out of a string: the input has their code points, one text a row, padded with -1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from crepe_dist.data.alphabet import BLANK, Encoding
from crepe_dist.model.onnx_graph import Graph

NOTHING = BLANK - 1  # stands for no code in the table of spellings


class Encoded(NamedTuple):
    """Names of the encoded texts' values in a graph.

    Args:
        codes: int32 [batch, positions], in the order in which the network reads; as long as the longest text.
        read: number of known characters that the network reads, without spaces, int32 [batch].
        cut: number of characters that are not read, because the text is too long, int32 [batch].
    """

    codes: str
    read: str
    cut: str


def encode(graph: Graph, encoding: Encoding) -> Encoded:
    """Add the input ``text``, int32 [batch, characters], and the nodes that encode it as ``Encoding.encode`` does."""
    node, length, (head, tail) = graph.node, encoding.feature_len, encoding.kept
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
    wider = node("Pad", spelled, graph.sizes(0, 0, 0, 1), BLANK)
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
    codes = node("Where", is_read, codes, BLANK)
    return Encoded(
        codes,
        _count(graph, _known(graph, codes, encoding), "read"),
        _count(graph, _unread(graph, ends, number, is_cut, is_text, table.shape[1], head, tail), "characters_cut"),
    )


def _spellings(encoding: Encoding) -> npt.NDArray[np.uint8]:
    """Return the codes of each character, uint8 [characters + 2, codes], by code point."""
    listed: dict[str, Any] = encoding.listed()
    codes = {character: [code] for code, each in enumerate(listed["characters"]) for character in each}
    codes |= listed["spellings"]
    table = np.full((max(map(ord, codes)) + 3, max(map(len, codes.values()))), NOTHING, np.uint8)
    table[:-1, 0] = BLANK
    for character, each in codes.items():
        table[ord(character), : len(each)] = each
    return table


def _known(graph: Graph, codes: str, encoding: Encoding) -> str:
    """Tell which codes are of known characters, except spaces."""
    space = encoding.alphabet.index(" ")
    counted = graph.node("Less", codes, int(encoding.listed()["counted"]))
    return graph.node("And", counted, graph.node("Not", graph.node("Equal", codes, space)))


def _unread(
    graph: Graph, ends: str, number: str, is_cut: str, is_text: str, most_codes: int, head: int, tail: int
) -> str:
    """Tell which characters have all their codes in the gap of a text that is cut."""
    node = graph.node
    ends = node("Reshape", ends, graph.sizes(0, -1, most_codes))
    begins_after = node("Greater", node("Gather", ends, 0, axis=2), head)
    ends_before = node("Not", node("Greater", node("Gather", ends, most_codes - 1, axis=2), node("Sub", number, tail)))
    return node("And", node("And", is_cut, is_text), node("And", begins_after, ends_before))


def _count(graph: Graph, which: str, name: str) -> str:
    numbers = graph.node("Cast", which, to=TensorProto.INT32)
    return graph.node("ReduceSum", numbers, graph.sizes(1), name=name, keepdims=0)
