"""The bag of characters in ONNX."""

import numpy as np

from crepe_dist.data.arrays import Arrays
from crepe_dist.model.onnx_graph import GraphBuilder
from tests.helpers.bag.config import BagShape


def logits(graph: GraphBuilder, shape: BagShape, arrays: Arrays, char_ids: str) -> str:
    """Add the nodes of the network; return the name of the logits, float32 [batch, classes]."""
    one_hot = graph.value(np.eye(256, shape.alphabet_size, dtype=np.float32))
    characters = graph.node("Gather", one_hot, char_ids)
    counts = graph.node("ReduceSum", characters, graph.value(np.array([1], np.int64)), keepdims=0)
    weight, bias = (graph.value(arrays[name], name) for name in ("weight", "bias"))
    return graph.node("Gemm", counts, weight, bias, transB=1)
