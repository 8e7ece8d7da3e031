"""The n-gram network in ONNX."""

import numpy as np
from onnx import TensorProto

from crepe_dist.data.arrays import Arrays
from crepe_dist.data.char_encoder import PAD_UNK_ID
from crepe_dist.model.onnx_graph import GraphBuilder
from crepe_dist.native.constants import GOLDEN, NGRAM_ROOT_SCALE, NGRAM_SCALE, RADIX
from crepe_dist.networks.ngrams.config import NGramConfig

ENDLESS = 1 << 31  # End of a slice without an upper limit.
# Maximum number of columns that are added to the characters of a text: two boundary symbols, and padding to a multiple
# of the stride.
EDGES = 66


def logits(graph: GraphBuilder, config: NGramConfig, arrays: Arrays, char_ids: str) -> str:
    """Add the nodes of the network. Return the name of the logits, float32 [batch, classes]."""
    return table_logits(graph, config, arrays, add_boundary_symbols(graph, char_ids, config.alphabet_size))


def add_boundary_symbols(graph: GraphBuilder, char_ids: str, alphabet_size: int, stride: int = 1) -> str:
    """Add the nodes that put a symbol before and after each text, like ``hashing.add_boundary_symbols``.

    The width of the result is the length of the longest text with its symbols, rounded up to a multiple of ``stride``.
    """
    node = graph.node
    positions = node("Cast", node("Gather", node("Shape", char_ids), 1), to=TensorProto.INT32)
    known = node("Cast", node("Less", char_ids, PAD_UNK_ID), to=TensorProto.INT32)
    end = node("Mul", known, node("Range", 1, node("Add", positions, 1), 1))
    end = node("ReduceMax", end, graph.sizes(1), keepdims=1)
    longest = node("Cast", node("Max", node("ReduceMax", end, keepdims=0), 1), to=TensorProto.INT64)
    longest = node("Reshape", longest, graph.sizes(1))
    char_ids = node("Slice", char_ids, graph.sizes(0), longest, graph.sizes(1))
    padding = node("Mod", node("Sub", graph.sizes(-2), longest), graph.sizes(stride))  # 0 … stride - 1
    pads = node("Concat", graph.sizes(0, 1, 0), node("Add", padding, graph.sizes(1)), axis=0)
    char_ids = node("Pad", char_ids, pads, PAD_UNK_ID)
    width = node("Cast", node("Gather", node("Shape", char_ids), 1), to=TensorProto.INT32)
    place = node("Range", 0, width, 1)
    is_edge = node("Or", node("Equal", place, 0), node("Equal", place, node("Add", end, 1)))
    return node("Where", node("And", node("Greater", end, 0), is_edge), alphabet_size, char_ids)


def next_values(graph: GraphBuilder, values: str) -> str:
    """Add nodes that shift ``values`` ([batch, positions]) left by one position. The last position becomes 0."""
    return graph.node("Pad", _all_but_first(graph, values), graph.sizes(0, 0, 0, 1))


def _all_but_first(graph: GraphBuilder, values: str) -> str:
    return graph.node("Slice", values, graph.sizes(1), graph.sizes(ENDLESS), graph.sizes(1))


def _all_but_last(graph: GraphBuilder, values: str) -> str:
    return graph.node("Slice", values, graph.sizes(0), graph.sizes(-1), graph.sizes(1))


def keys_to_rows(graph: GraphBuilder, keys: str, rows: int) -> str:
    """Add the nodes that map keys, int64, to rows, int32, like ``hashing.hash_to_rows``."""
    node = graph.node

    def multiply(values: str, factor: int) -> str:
        # Signed integers are multiplied, because only the latest versions of ONNX Runtime can multiply unsigned ones.
        # Modulo 2^64, the signed and the unsigned product have the same bits.
        signed = node("Cast", values, to=TensorProto.INT64)
        product = node("Mul", signed, graph.value(np.array(factor, np.uint64).astype(np.int64)))
        return node("Cast", product, to=TensorProto.UINT64)

    def shift_right(values: str, bits: int) -> str:
        return node("BitShift", values, graph.value(np.array(bits, np.uint64)), direction="RIGHT")

    def xor_shifted(values: str, bits: int) -> str:
        return node("BitwiseXor", values, shift_right(values, bits))

    z = xor_shifted(node("Cast", keys, to=TensorProto.UINT64), 30)
    z = xor_shifted(multiply(z, 0xBF58476D1CE4E5B9), 27)
    z = xor_shifted(multiply(z, 0x94D049BB133111EB), 31)
    return node("Cast", shift_right(multiply(shift_right(z, 32), rows), 32), to=TensorProto.INT32)


def hash_to_rows(graph: GraphBuilder, char_ids: str, maxn: int, rows: int, none: int) -> str:
    """Add the nodes that hash the n-grams at each position, int32 [batch, positions, maxn]; see ``hashing``.

    If no n-gram of a length starts at a position, its row is ``none``.
    """
    node = graph.node
    digit = node("Cast", node("Add", char_ids, 1), to=TensorProto.INT64)
    known = node("Cast", node("Less", char_ids, PAD_UNK_ID), to=TensorProto.INT32)
    key, all_known, keys, knowns = digit, known, [digit], [known]
    for _ in range(maxn - 1):
        digit, known = next_values(graph, digit), next_values(graph, known)
        key = node("Add", node("Mul", key, graph.value(np.array(RADIX, np.int64))), digit)
        all_known = node("Mul", all_known, known)
        keys.append(key)
        knowns.append(all_known)
    last = graph.sizes(2)
    keys, knowns = ([node("Unsqueeze", value, last) for value in values] for values in (keys, knowns))
    row = keys_to_rows(graph, node("Concat", *keys, axis=2), rows)
    return node("Where", node("Equal", node("Concat", *knowns, axis=2), 1), row, none)


def word_rows(graph: GraphBuilder, edged_char_ids: str, config: NGramConfig) -> str:
    """Add nodes that hash the words and the pairs of words of texts, int32 [batch, words and pairs].

    Unused elements are ``config.buckets``. The key of a word is the sum of digit × RADIX^(end - place) over its
    characters. It is computed as RADIX^end times the difference of two prefix sums of digit / RADIX^place.
    """
    node = graph.node
    inside = node("Cast", node("Less", edged_char_ids, config.num_word_char_ids), to=TensorProto.INT64)
    ends = node("Mul", inside, node("Sub", graph.sizes(1), next_values(graph, inside)))
    number = node("CumSum", ends, 1)
    width = node("Slice", node("Shape", ends), graph.sizes(1), graph.sizes(2))

    def powers(base: int) -> str:
        steps = np.full(config.feature_len + EDGES, base, np.uint64)
        steps[0] = 1
        return node("Slice", graph.value(np.cumprod(steps).astype(np.int64)), graph.sizes(0), width, graph.sizes(0))

    digits = node("Mul", inside, node("Cast", node("Add", edged_char_ids, 1), to=TensorProto.INT64))
    sums = node("CumSum", node("Mul", digits, powers(pow(RADIX, -1, 1 << 64))), 1)
    count = node("ReduceMax", number, graph.sizes(1), keepdims=1)
    most = node("Reshape", node("ReduceMax", count, keepdims=0), graph.sizes(1))
    batch = node("Slice", node("Shape", ends), graph.sizes(0), graph.sizes(1))
    none = node("Expand", graph.sizes(0), node("Concat", batch, node("Add", most, graph.sizes(1)), axis=0))
    at = node("Mul", number, ends)

    def values_at_word_ends(values: str) -> str:
        """Return a 0, followed by the values at the ends of the words, in the order of the words."""
        return node("ScatterElements", none, at, node("Mul", ends, values), axis=1, reduction="add")

    last, power = values_at_word_ends(sums), _all_but_first(graph, values_at_word_ends(powers(RADIX)))
    key = node("Mul", node("Sub", _all_but_first(graph, last), _all_but_last(graph, last)), power)
    exists = node("Not", node("Equal", power, graph.sizes(0)))
    pair = node("Mul", _all_but_last(graph, key), graph.value(np.array(GOLDEN, np.uint64).astype(np.int64)))
    pair = node("Add", pair, _all_but_first(graph, key))
    exists = node("Concat", exists, _all_but_first(graph, exists), axis=1)
    row = keys_to_rows(graph, node("Concat", key, pair, axis=1), config.word_buckets)
    return node("Where", exists, node("Add", row, config.buckets - config.word_buckets), config.buckets)


def table_logits(
    graph: GraphBuilder, config: NGramConfig, arrays: Arrays, edged_char_ids: str, prefix: str = ""
) -> str:
    """Add the nodes of the n-gram network. Its parameter names start with ``prefix``. Return the name of the logits."""
    first_word = config.buckets - config.word_buckets
    hashed = hash_to_rows(graph, edged_char_ids, config.maxn, first_word, config.buckets)
    hashed = graph.node("Reshape", hashed, graph.sizes(0, -1))
    hashed = graph.node("Concat", hashed, word_rows(graph, edged_char_ids, config), axis=1)
    number = graph.node("Gather", graph.node("Shape", hashed), graph.sizes(1))
    # The first output of TopK contains the buckets of a text in ascending order. A bucket counts only where it differs
    # from the preceding bucket, so that duplicates count once.
    hashed = graph.node("TopK", hashed, number, axis=1, largest=0, sorted=1)
    preceding = graph.node("Slice", hashed, graph.sizes(0), graph.sizes(-1), graph.sizes(1))
    preceding = graph.node("Pad", preceding, graph.sizes(0, 1, 0, 0), -1)
    is_distinct = graph.node("And", graph.node("Less", hashed, config.buckets), graph.node("Less", preceding, hashed))
    buckets = graph.node("Where", is_distinct, hashed, 0)
    distinct = graph.node("Cast", is_distinct, to=TensorProto.FLOAT)
    bias = graph.value(arrays[f"{prefix}bias"], f"{prefix}bias")
    one, axis = graph.value(np.array(1, np.float32)), graph.sizes(1)
    significant = graph.value(arrays[f"{prefix}significant"].astype(np.uint8), f"{prefix}significant")
    significant_mask = graph.node("Cast", graph.node("Gather", significant, buckets), to=TensorProto.FLOAT)
    significant_mask = graph.node("Mul", distinct, significant_mask)

    def scaled(group: str) -> str:
        number = graph.node("Max", graph.node("ReduceSum", group, axis, keepdims=1), one)
        root = graph.node("Mul", graph.node("Sqrt", number), graph.value(np.array(NGRAM_ROOT_SCALE, np.float32)))
        scale = graph.node("Min", root, graph.value(np.array(NGRAM_SCALE, np.float32)))
        return graph.node("Mul", group, graph.node("Div", scale, number))

    words = graph.node("Cast", graph.node("GreaterOrEqual", buckets, first_word), to=TensorProto.FLOAT)
    factors = ""
    for group in (significant_mask, graph.node("Sub", distinct, significant_mask)):
        word_mask = graph.node("Mul", group, words)
        for part in (word_mask, graph.node("Sub", group, word_mask)):
            factors = graph.node("Add", factors, scaled(part)) if factors else scaled(part)
    factors = graph.node("Unsqueeze", factors, axis)
    (rows,) = graph.look_up(arrays[f"{prefix}weight"], f"{prefix}weight", [buckets])
    return graph.node("Add", graph.node("Squeeze", graph.node("MatMul", factors, rows), axis), bias)
