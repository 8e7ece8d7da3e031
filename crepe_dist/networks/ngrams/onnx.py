"""The n-gram table in ONNX."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from crepe_dist.model.onnx_graph import Graph
from crepe_dist.model.parameters import Arrays
from crepe_dist.native.constants import NGRAM_SCALE, ROOT_SCALE
from crepe_dist.networks.ngrams.shape import NGramShape


def logits(graph: Graph, shape: NGramShape, arrays: Arrays, prefix: str = "") -> str:
    """Add the nodes of the table, whose parameters have names with a prefix; return the name of the logits."""
    # The encoder hashes the n-grams, because ONNX does not define the overflow of a 64-bit product.
    buckets = graph.input("buckets", TensorProto.INT32, "batch", "ngrams")
    own = graph.input("own", TensorProto.FLOAT, "batch", "ngrams")
    bias = graph.value(arrays[f"{prefix}bias"], f"{prefix}bias")
    one, axis = graph.value(np.array(1, np.float32)), graph.value(np.array([1], np.int64))
    significant = graph.value(arrays[f"{prefix}significant"].astype(np.uint8), f"{prefix}significant")
    telling = graph.node("Cast", graph.node("Gather", significant, buckets), to=TensorProto.FLOAT)
    telling = graph.node("Mul", own, telling)

    def scaled(group: str) -> str:
        number = graph.node("Max", graph.node("ReduceSum", group, axis, keepdims=1), one)
        root = graph.node("Mul", graph.node("Sqrt", number), graph.value(np.array(ROOT_SCALE, np.float32)))
        scale = graph.node("Min", root, graph.value(np.array(NGRAM_SCALE, np.float32)))
        return graph.node("Mul", group, graph.node("Div", scale, number))

    factors = graph.node("Add", scaled(telling), scaled(graph.node("Sub", own, telling)))
    factors = graph.node("Unsqueeze", factors, axis)
    (rows,) = graph.look_up(arrays[f"{prefix}weight"], f"{prefix}weight", [buckets])
    return graph.node("Add", graph.node("Squeeze", graph.node("MatMul", factors, rows), axis), bias)
