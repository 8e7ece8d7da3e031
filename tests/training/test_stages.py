"""The two graphs of the paper's network, and the order in which they compute gradients; no GPU is needed."""

from __future__ import annotations

import re

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

from crepe_dist.data.batch import pack
from crepe_dist.networks.paper.gluon import DROPOUTS, Paper
from crepe_dist.networks.paper.shape import PaperShape
from tests.helpers.engines import gradients, initial

SHAPE = PaperShape(69, 123, 3, 8, 16, 0.5)
ROWS = 2
# Gradients that Horovod sends: of the dense layers, and of the convolutions.
DENSE = re.compile(r"dense|logits")
CONVOLUTION = re.compile(r"conv")


def make(device=None, precision: str = "float32") -> Paper:
    network: Paper = initial(SHAPE).opened(None).network
    network.compute_in(precision, device or mx.cpu())
    return network


def backward(symbol: mx.sym.Symbol, **shapes: tuple[int, ...]) -> list[str]:
    """Names of the operators of the backward pass in the order in which the executor runs them."""
    types = {"codes": "uint8", "kept": "uint8"}
    writes = {name: "null" if name in types else "write" for name in symbol.list_arguments()}
    types = {name: each for name, each in types.items() if name in shapes}
    executor = symbol.simple_bind(mx.cpu(), grad_req=writes, type_dict=types, **shapes)
    operators = re.findall(r"^Op:(\S+), Name=(\S+)", executor.debug_str(), re.MULTILINE)
    return [name for operator, name in operators if operator.startswith("_backward")]


def in_two_graphs(precision: str) -> tuple[list[str], list[str]]:
    """The backward passes of the head and of the tower, which needs the head's result."""
    stages = make(precision=precision).stages
    features = mx.sym.var("features", dtype=precision)
    head = stages.dropping_head(features, mx.sym.var("kept"))
    return (
        backward(head, features=(ROWS, SHAPE.filters), kept=(ROWS, 2, SHAPE.units)),
        backward(stages.tower(mx.sym.var("codes")), codes=(ROWS, SHAPE.feature_len)),
    )


def last(pattern: re.Pattern[str], names: list[str]) -> int:
    return max(place for place, name in enumerate(names) if pattern.search(name))


def first(pattern: re.Pattern[str], names: list[str]) -> int:
    return min(place for place, name in enumerate(names) if pattern.search(name))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_gradients_of_the_dense_layers_come_before_the_convolutions(precision):
    head, tower = in_two_graphs(precision)
    assert not any(CONVOLUTION.search(name) for name in head)
    assert not any(DENSE.search(name) for name in tower)
    group_size = head + tower
    assert last(DENSE, group_size) < first(CONVOLUTION, group_size)
    casts = sum("amp_cast" in name and bool(DENSE.search(name)) for name in head)
    assert casts == (0 if precision == "float32" else 7)  # six parameters and the logits


def test_a_training_step_records_tower_and_head():
    """So the backward pass goes through the head first, whose gradient is the tower's input."""
    network = make()
    codes = mx.nd.array(np.zeros((ROWS, SHAPE.feature_len)), dtype="uint8")
    with autograd.record():
        (logits,) = network.training_logits(codes, mx.nd.ones((ROWS, DROPOUTS, SHAPE.units), dtype="uint8"))
    recorded = [name for name in autograd.get_symbol(logits).get_internals().list_outputs() if name.startswith("node_")]
    assert len(recorded) == 2
    assert "flatten" in recorded[0]
    assert "logits" in recorded[1]


def pools(symbol: mx.sym.Symbol) -> list[str]:
    attributes = symbol.attr_dict()
    return [attributes[name]["kernel"] for name in attributes if "pool_type" in attributes[name]]


def test_a_gpu_pools_in_two_dimensions():
    codes = mx.sym.var("codes")
    assert pools(make()(codes)) == ["(3,)"] * 3
    network = make(mx.gpu(0))
    (logits,) = network.training_logits(codes, mx.sym.var("kept"))
    assert pools(logits) == ["(1, 3)"] * 3
    assert pools(network(codes)) == ["(1, 3)"] * 3


def test_both_pools_give_the_same():
    codes = np.random.default_rng(0).integers(0, 69, (5, SHAPE.feature_len)).astype(np.uint8)
    batch, found = pack(codes, np.arange(5, dtype=np.int32) % 3, 6, 5), []
    for device in (mx.cpu(), mx.gpu(0)):
        engine = initial(SHAPE).opened(None)
        engine.network.compute_in("float32", device)
        loss, arrays = gradients(engine, batch, 1, 2)
        found.append([loss, engine.logits(batch), *arrays.values()])
    for one, other in zip(*found):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("compiled", [True, False])
def test_stages_compute_what_the_network_does(compiled):
    network = initial(SHAPE).opened(None, compiled=compiled).network
    codes = mx.nd.array(np.random.default_rng(0).integers(0, 75, (5, SHAPE.feature_len)), dtype="uint8")
    np.testing.assert_allclose(network.logits(codes).asnumpy(), network(codes).asnumpy(), atol=1e-6)
