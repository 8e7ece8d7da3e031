"""Dropout masks: a function of seed and place."""

from __future__ import annotations

import json

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

from crepe_dist.data.dataset import open_dataset
from crepe_dist.data.loader import batches
from crepe_dist.engines.gluon import dropout
from crepe_dist.networks.crepe.shape import CrepeShape
from crepe_dist.networks.paper.shape import PaperShape
from tests.engines.test_native import some_batch
from tests.helpers.engines import gradients, initial

SEED = 2**63 + 12345


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1 / 3, 0.999])
def test_units_are_those_of_the_formula(probability):
    """SplitMix64 in whole numbers, as engine.h defines it."""
    got = dropout.kept(probability, SEED, 7, (3, 2, 21))
    assert got.dtype == np.uint8
    expected = []
    for place in range(7 * 42, 10 * 42):
        z = SEED + (place // 4 + 1) * 0x9E3779B97F4A7C15 & (2**64 - 1)
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
        z = (z ^ z >> 27) * 0x94D049BB133111EB & (2**64 - 1)
        expected.append(((z ^ z >> 31) >> 16 * (place % 4) & 0xFFFF) / 2**16 >= probability)
    assert got.ravel().tolist() == expected


def test_a_rank_s_mask_is_a_part_of_the_global_one():
    whole = dropout.kept(0.4, SEED, 0, (9, 2, 5))
    assert (dropout.kept(0.4, SEED, 6, (3, 2, 5)) == whole[6:]).all()
    assert (dropout.kept(0.4, SEED + 1, 0, (9, 2, 5)) != whole).any()
    assert 0.3 < whole.mean() < 0.9


def operators(symbol: mx.sym.Symbol, name: str) -> list[dict[str, str]]:
    """The attributes of a graph's operators of that name."""
    nodes = json.loads(symbol.tojson())["nodes"]
    return [node.get("attrs", {}) for node in nodes if node["op"] == name]


class TestWithoutGenerator:
    shape = PaperShape(69, 123, 3, 8, 16, 0.5)

    def test_training_draws_nothing_from_mxnet_s_generators(self):
        """A draw would change what the generator gives next; cuDNN's would ignore the seed."""
        engine = initial(self.shape).opened(None)
        drawn = []
        for steps in (0, 2):
            mx.random.seed(5)
            for step in range(steps):
                engine.gradients(some_batch(self.shape, 4), 0, step, 1.0).wait_to_read()
            drawn.append(mx.nd.random.uniform(shape=8).asnumpy().tolist())
        assert drawn[0] == drawn[1]

    @pytest.mark.parametrize("precision", ["float32", "float16"])
    def test_no_graph_holds_cudnn_s_dropout(self, precision):
        network, codes = initial(self.shape).opened(None, compiled=False).network, mx.sym.var("codes")
        network.compute_in(precision, mx.gpu(0))
        (trained,) = network.training_logits(codes, mx.sym.var("kept"))
        assert "kept" in trained.list_arguments()
        assert operators(trained, "Dropout") == []
        assert [each["cudnn_off"] for each in operators(network(codes), "Dropout")] == ["True", "True"]


def test_in_plain_gluon_it_follows_mxnet_s_seed():
    """As in the examples, which call the network itself."""
    network = initial(TestWithoutGenerator.shape).opened(None).network
    codes = mx.nd.array(np.arange(123)[None] % 69, dtype="uint8")
    found = []
    for seed in (1, 1, 2):
        mx.random.seed(seed)
        with autograd.record():
            found.append(network(codes).asnumpy().tolist())
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("kind", ["crepe", "paper"])
def test_the_loader_draws_the_masks_of_each_step(kind, data):
    dataset = open_dataset(data)
    shape = (
        PaperShape(dataset.encoding.codes, dataset.encoding.feature_len, 3, 8, 16, 0.5)
        if kind == "paper"
        else CrepeShape(dataset.encoding.codes, dataset.encoding.feature_len, 3, 2, 64, 2, 64, 8, 1, 2, 0.5)
    )
    engine, part = initial(shape).opened(None), dataset.splits["train"]
    order, seed, step = np.arange(len(part))[:200], 5, 7
    plain = list(batches(part, order, 50, 0, 1, 50))
    prepared = list(batches(part, order, 50, 0, 1, 50, engine.preparing(seed, step)))
    assert len(plain) == len(prepared) == 3
    for number, (one, other) in enumerate(zip(plain, prepared), step):
        expected, _ = gradients(engine, one, seed, number)
        assert gradients(engine, other, seed, number)[0] == expected
        assert gradients(engine, one, seed, number + 1)[0] != expected
