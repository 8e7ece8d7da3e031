"""Crepe in ONNX."""

import numpy as np
from onnx import TensorProto

from crepe_dist.data.arrays import Arrays
from crepe_dist.model.onnx_graph import GraphBuilder
from crepe_dist.native.constants import BRANCH_SUM_SCALE, CONV_KERNEL_SIZE, POOLED_BLOCKS
from crepe_dist.networks.crepe.config import CrepeConfig
from crepe_dist.networks.ngrams import onnx as ngrams


def logits(graph: GraphBuilder, config: CrepeConfig, arrays: Arrays, char_ids: str) -> str:
    """Add the nodes of the network. Return the name of the logits, float32 [batch, classes]."""
    char_ids = ngrams.add_boundary_symbols(graph, char_ids, config.alphabet_size, config.stride)
    table = ngrams.table_logits(graph, config.ngram_config, arrays, char_ids, "ngrams.")
    both = graph.node("Add", table, _conv_branch(graph, config, arrays, char_ids))
    return graph.node("Mul", both, graph.value(np.array(BRANCH_SUM_SCALE, np.float32)))


def _conv_branch(graph: GraphBuilder, config: CrepeConfig, arrays: Arrays, char_ids: str) -> str:
    number = config.stride * config.embedding_maxn
    places = ngrams.hash_to_rows(graph, char_ids, config.embedding_maxn, config.embedding_rows, config.embedding_rows)
    places = graph.node("Reshape", places, graph.sizes(0, -1, number))
    # The last row, which is zero, is read where there is no n-gram.
    table = np.pad(arrays["tower.table"], ((0, 1), (0, 0)))
    at = [graph.node("Gather", places, n, axis=2) for n in range(number)]
    embedding = graph.node("Sum", *graph.look_up(table, "tower.table", at))
    axes = graph.sizes(1, 2)
    # A document ends with its last known symbol.
    known = graph.node("Less", places, config.embedding_rows)
    known = graph.node("ReduceMax", graph.node("Cast", known, to=TensorProto.FLOAT), graph.sizes(2), keepdims=0)
    later = graph.node("CumSum", known, 1, reverse=1)
    one = graph.value(np.array(1, np.float32))
    inside = graph.node("Unsqueeze", graph.node("Min", later, one), axes)
    # Two-dimensional convolutions of height 1 are faster than one-dimensional ones in ONNX Runtime.
    x = graph.node("Transpose", graph.node("Relu", embedding), perm=[0, 2, 1])
    x = graph.node("Unsqueeze", x, graph.sizes(2))

    def convolved(x: str, number: int) -> str:
        weight, bias = (f"tower.convolutions.{number}.{name}" for name in ("weight", "bias"))
        values = graph.value(arrays[weight][:, :, None], weight), graph.value(arrays[bias], bias)
        return graph.node("Conv", x, *values, kernel_shape=[1, CONV_KERNEL_SIZE], pads=[0, CONV_KERNEL_SIZE // 2] * 2)

    for block in range(config.blocks):
        hidden = graph.node("Mul", graph.node("Relu", convolved(x, 2 * block)), inside)
        x = graph.node("Relu", graph.node("Add", x, convolved(hidden, 2 * block + 1)))
        x = graph.node("Mul", x, inside)
        if block < POOLED_BLOCKS:
            x, inside = (
                graph.node("MaxPool", array, kernel_shape=[1, 2], strides=[1, 2], ceil_mode=1) for array in (x, inside)
            )
    space = graph.sizes(2, 3)
    positions = graph.node("Max", graph.node("ReduceSum", inside, space, keepdims=0), one)
    mean = graph.node("Div", graph.node("ReduceSum", x, space, keepdims=0), positions)
    features = graph.node("Concat", graph.node("ReduceMax", x, space, keepdims=0), mean, axis=1)
    out = (graph.value(arrays[name], name) for name in ("tower.out.weight", "tower.out.bias"))
    return graph.node("Gemm", features, *out, transB=1)
