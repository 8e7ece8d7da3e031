"""ONNX graphs of the networks, built node by node from their parameters.

MXNet's own exporter rejects one-dimensional convolutions (because of their layout's name), works with few versions of
onnx and writes no metadata.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

from crepe_dist.data.alphabet import Encoding
from crepe_dist.errors import UserError
from crepe_dist.exporting import eight_bits
from crepe_dist.exporting.crepe_runtime import FORMAT
from crepe_dist.model.parameters import Arrays
from crepe_dist.model.shape import Shape
from crepe_dist.networks.crepe.shape import SUM_SCALE, CrepeShape
from crepe_dist.networks.crepe.tower import POOLED_BLOCKS, TAPS
from crepe_dist.networks.ngrams.shape import ROOT_SCALE, SCALE, NGramShape
from crepe_dist.networks.paper.shape import CONVOLUTION_NAMES, CONVOLUTIONS, DENSE_NAMES, POOL
from crepe_dist.version import __version__
from crepe_dist.wording import size

# Versions of ONNX 1.8: the oldest with every operator used here, for the sake of old readers.
OPSET_VERSION, IR_VERSION = 13, 7
MAX_PARAMETER_BYTES = (1 << 31) - (1 << 20)  # Protocol Buffers end at 2 GiB; 1 MiB is left for the nodes
CODES = 256  # values of a byte


def model(shape: Shape, arrays: Arrays, about: dict[str, Any], *, quantize: bool = False) -> ModelProto:
    """Build the ONNX model of a network.

    The inputs depend on the kind of network; see ``crepe_runtime.Classifier.inputs``. The output is ``probabilities``,
    float32 [batch, classes]. The metadata, as JSON values, contain everything that an encoder needs.

    Args:
        arrays: float32 parameters by structural name.
        about: metadata, from the function ``about``; a ``temperature`` divides the logits, and with ``thresholds`` the
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
    graph = _Graph(quantize)
    if isinstance(shape, CrepeShape):
        logits = _crepe(graph, shape, arrays)
    elif isinstance(shape, NGramShape):
        logits = _ngrams(graph, shape, arrays)
    else:
        logits = _paper(graph, shape, arrays)
    if about.get("temperature", 1) != 1:
        logits = graph.node("Div", logits, graph.value(np.array(about["temperature"], np.float32)))
    if "thresholds" in about:
        graph.node("Sigmoid", logits, name="probabilities")
    else:
        graph.node("Softmax", logits, name="probabilities", axis=1)
    graph.outputs.append(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", shape.classes]))
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


def about(shape: Shape, encoding: Encoding, classes: list[str]) -> dict[str, Any]:
    """Return the metadata: the encoding of the inputs and the names of the outputs."""
    head: dict[str, Any] = {"format": int(FORMAT), "version": __version__, **shape.settings()}
    return {**head, **encoding.to_dict(), **encoding.listed(), "classes": classes}


class _Graph:
    """Graph under construction."""

    def __init__(self, quantize: bool) -> None:
        self.quantize = quantize
        self.nodes: list[Any] = []
        self.values: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []

    def input(self, name: str, kind: int, *shape: str | int) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def value(self, array: npt.NDArray[Any], name: str = "") -> str:
        self.values.append(numpy_helper.from_array(np.asarray(array, order="C"), name or f"value{len(self.values)}"))
        return str(self.values[-1].name)

    def node(self, kind: str, *inputs: str, name: str = "", **settings: Any) -> str:
        name = name or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **settings))
        return name

    def look_up(self, table: npt.NDArray[np.float32], name: str, rows: Sequence[str]) -> list[str]:
        """Add the nodes that read rows of a table, for each of several inputs."""
        if not self.quantize:
            values = self.value(table, name)
            return [self.node("Gather", values, each) for each in rows]
        codes, scales = eight_bits.split(table)
        pair = self.value(codes, f"{name}.codes"), self.value(scales, f"{name}.scales")

        def floats(values: str, row: str) -> str:
            return self.node("Cast", self.node("Gather", values, row), to=TensorProto.FLOAT)

        return [self.node("Mul", *(floats(values, each) for values in pair)) for each in rows]


def _paper(graph: _Graph, shape: Shape, arrays: Arrays) -> str:
    codes = graph.input("codes", TensorProto.UINT8, "batch", shape.feature_len)
    # Look up one-hot vectors in a table, in which codes beyond the alphabet are zeros.
    table = np.eye(CODES, shape.alphabet_size, dtype=np.float32)
    last = graph.node("Gather", graph.value(table, "one-hot"), graph.node("Cast", codes, to=TensorProto.INT32))
    last = graph.node("Transpose", last, perm=[0, 2, 1])
    # Two-dimensional convolutions of height 1 take half the time in ONNX Runtime on a CPU.
    last = graph.node("Unsqueeze", last, graph.value(np.array([2], np.int64)))

    def parameters(name: str) -> tuple[str, str]:
        weight, bias = arrays[f"{name}.weight"], arrays[f"{name}.bias"]
        weight = weight[:, :, None] if weight.ndim == 3 else weight
        return graph.value(weight, f"{name}.weight"), graph.value(bias, f"{name}.bias")

    for name, (kernel, pooled) in zip(CONVOLUTION_NAMES, CONVOLUTIONS):
        last = graph.node("Relu", graph.node("Conv", last, *parameters(name), kernel_shape=[1, kernel]))
        if pooled:
            last = graph.node("MaxPool", last, kernel_shape=[1, POOL], strides=[1, POOL])
    last = graph.node("Flatten", last)
    for name in DENSE_NAMES[:-1]:
        last = graph.node("Relu", graph.node("Gemm", last, *parameters(name), transB=1))
    return graph.node("Gemm", last, *parameters(DENSE_NAMES[-1]), transB=1)


def _ngrams(graph: _Graph, shape: NGramShape, arrays: Arrays, prefix: str = "") -> str:
    # The encoder hashes the n-grams, because ONNX does not define the overflow of a 64-bit product.
    buckets = graph.input("buckets", TensorProto.INT32, "batch", "ngrams")
    own = graph.input("own", TensorProto.FLOAT, "batch", "ngrams")
    bias = graph.value(arrays[f"{prefix}bias"], f"{prefix}bias")
    significant = arrays[f"{prefix}significant"].astype(np.uint8 if graph.quantize else np.float32)
    one, axis = graph.value(np.array(1, np.float32)), graph.value(np.array([1], np.int64))
    tells = graph.node("Gather", graph.value(significant, f"{prefix}significant"), buckets)
    telling = graph.node("Mul", own, graph.node("Cast", tells, to=TensorProto.FLOAT) if graph.quantize else tells)

    def scaled(group: str) -> str:
        number = graph.node("Max", graph.node("ReduceSum", group, axis, keepdims=1), one)
        scale = graph.value(np.array(SCALE, np.float32))
        if shape.edges:
            root = graph.node("Mul", graph.node("Sqrt", number), graph.value(np.array(ROOT_SCALE, np.float32)))
            scale = graph.node("Min", root, scale)
        return graph.node("Mul", group, graph.node("Div", scale, number))

    factors = graph.node("Add", scaled(telling), scaled(graph.node("Sub", own, telling)))
    factors = graph.node("Unsqueeze", factors, axis)
    (rows,) = graph.look_up(arrays[f"{prefix}weight"], f"{prefix}weight", [buckets])
    return graph.node("Add", graph.node("Squeeze", graph.node("MatMul", factors, rows), axis), bias)


def _crepe(graph: _Graph, shape: CrepeShape, arrays: Arrays) -> str:
    both = graph.node("Add", _ngrams(graph, shape.table, arrays, "ngrams."), _tower(graph, shape, arrays))
    return graph.node("Mul", both, graph.value(np.array(SUM_SCALE, np.float32)))


def _tower(graph: _Graph, shape: CrepeShape, arrays: Arrays) -> str:
    each = shape.stride * shape.reach
    places = graph.input("places", TensorProto.INT32, "batch", "positions", each)
    # A last row of zeros stands for "no n-gram".
    table = np.pad(arrays["tower.table"], ((0, 1), (0, 0)))
    at = [graph.node("Gather", places, graph.value(np.array(n, np.int32)), axis=2) for n in range(each)]
    embedding = graph.node("Sum", *graph.look_up(table, "tower.table", at))
    axes = graph.value(np.array([1, 2], np.int64))
    # A document ends with its last known symbol.
    known = graph.node("Less", places, graph.value(np.array(shape.rows, np.int32)))
    known = graph.node("ReduceMax", graph.node("Cast", known, to=TensorProto.FLOAT), axes=[2], keepdims=0)
    later = graph.node("CumSum", known, graph.value(np.array(1, np.int32)), reverse=1)
    one = graph.value(np.array(1, np.float32))
    inside = graph.node("Unsqueeze", graph.node("Min", later, one), axes)
    # Two-dimensional convolutions of height 1, as in the paper's network.
    x = graph.node("Transpose", graph.node("Relu", embedding), perm=[0, 2, 1])
    x = graph.node("Unsqueeze", x, graph.value(np.array([2], np.int64)))

    def convolved(x: str, number: int) -> str:
        weight, bias = (f"tower.convolutions.{number}.{name}" for name in ("weight", "bias"))
        values = graph.value(arrays[weight][:, :, None], weight), graph.value(arrays[bias], bias)
        return graph.node("Conv", x, *values, kernel_shape=[1, TAPS], pads=[0, TAPS // 2] * 2)

    for block in range(shape.blocks):
        hidden = graph.node("Mul", graph.node("Relu", convolved(x, 2 * block)), inside)
        x = graph.node("Relu", graph.node("Add", x, convolved(hidden, 2 * block + 1)))
        x = graph.node("Mul", x, inside)
        if block < POOLED_BLOCKS:
            x, inside = (
                graph.node("MaxPool", each, kernel_shape=[1, 2], strides=[1, 2], ceil_mode=1) for each in (x, inside)
            )
    space = graph.value(np.array([2, 3], np.int64))
    positions = graph.node("Max", graph.node("ReduceSum", inside, space, keepdims=0), one)
    mean = graph.node("Div", graph.node("ReduceSum", x, space, keepdims=0), positions)
    features = graph.node("Concat", graph.node("ReduceMax", x, axes=[2, 3], keepdims=0), mean, axis=1)
    out = (graph.value(arrays[name], name) for name in ("tower.out.weight", "tower.out.bias"))
    return graph.node("Gemm", features, *out, transB=1)
