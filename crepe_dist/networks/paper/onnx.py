"""The paper's network in ONNX."""

import numpy as np

from crepe_dist.data.arrays import Arrays
from crepe_dist.data.char_encoder import PAD_UNK_ID
from crepe_dist.model.onnx_graph import GraphBuilder
from crepe_dist.native.constants import PAPER_POOL
from crepe_dist.networks.paper.config import CONVOLUTION_NAMES, CONVOLUTIONS, DENSE_NAMES, PaperConfig

CODES = 256  # Number of values of a byte.


def logits(graph: GraphBuilder, config: PaperConfig, arrays: Arrays, char_ids: str) -> str:
    """Add the nodes of the network. Return the name of the logits, float32 [batch, classes]."""
    # The network requires texts of a fixed length.
    padded = graph.node("Pad", char_ids, graph.sizes(0, 0, 0, config.feature_len), PAD_UNK_ID)
    char_ids = graph.node("Slice", padded, graph.sizes(0), graph.sizes(config.feature_len), graph.sizes(1))
    # One-hot vectors are looked up in a table. Ids beyond the alphabet have a row of zeros.
    table = np.eye(CODES, config.alphabet_size, dtype=np.float32)
    last = graph.node("Gather", graph.value(table, "one-hot"), char_ids)
    last = graph.node("Transpose", last, perm=[0, 2, 1])
    # In ONNX Runtime on a CPU, a two-dimensional convolution of height 1 is twice as fast as a one-dimensional one.
    last = graph.node("Unsqueeze", last, graph.sizes(2))

    def parameters(name: str) -> tuple[str, str]:
        weight, bias = arrays[f"{name}.weight"], arrays[f"{name}.bias"]
        weight = weight[:, :, None] if weight.ndim == 3 else weight
        return graph.value(weight, f"{name}.weight"), graph.value(bias, f"{name}.bias")

    for name, (kernel, pooled) in zip(CONVOLUTION_NAMES, CONVOLUTIONS):
        last = graph.node("Relu", graph.node("Conv", last, *parameters(name), kernel_shape=[1, kernel]))
        if pooled:
            last = graph.node("MaxPool", last, kernel_shape=[1, PAPER_POOL], strides=[1, PAPER_POOL])
    last = graph.node("Flatten", last)
    for name in DENSE_NAMES[:-1]:
        last = graph.node("Relu", graph.node("Gemm", last, *parameters(name), transB=1))
    return graph.node("Gemm", last, *parameters(DENSE_NAMES[-1]), transB=1)
