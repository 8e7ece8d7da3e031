"""The paper's network, and the files of the original notebook that contain it."""

import json
from dataclasses import replace

import mxnet as mx
import numpy as np
import pytest
from workloads import notebook_network

from crepe_dist.data.batch import pack_batch
from crepe_dist.data.char_encoder import ALPHABET, PAD_UNK_ID, CharEncoder
from crepe_dist.errors import UserError
from crepe_dist.model import weights_io
from crepe_dist.networks.paper.config import SIZES, PaperConfig
from crepe_dist.networks.paper.gluon import Paper
from crepe_dist.settings.options import ModelOptions
from tests.helpers.engines import initial

SHAPE = PaperConfig(69, 123, 4, 32, 32, 0.0)


def opened(shape: PaperConfig = SHAPE):
    """Return an engine on MXNet's operators."""
    return initial(shape, seed=1).opened(None)


@pytest.mark.parametrize(("size", "inputs", "count"), [("small", 8704, 11_341_063), ("large", 34816, 95_939_591)])
def test_the_papers_networks(size, inputs, count):
    """The paper's table 2: 8704 inputs to the first dense layer of the small network at 1014 characters."""
    filters, units = SIZES[size]
    network = Paper(PaperConfig(69, 1014, 7, filters, units))
    shapes = {name: p.shape for name, p in network._collect_params_with_prefix().items()}
    assert shapes["0.weight"] == (filters, 69, 7)
    assert shapes["10.weight"] == (units, inputs)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == count


def test_codes_beyond_the_alphabet_are_blank():
    """Ids between the alphabet and the padded depth have zero weights. MXNet's one_hot maps higher ids to zeros."""
    codes = np.array([[code] * 123 for code in (PAD_UNK_ID, 69, 79, 80, 200)], np.uint8)
    blank, *others = opened().network(mx.nd.array(codes, dtype="uint8")).asnumpy()
    assert all((other == blank).all() for other in others)


def test_dropout_follows_mxnets_seed():
    network, found = opened(replace(SHAPE, dropout=0.5)).network, []
    codes = mx.nd.array(np.arange(123)[None] % 69, dtype="uint8")
    for seed in (1, 1, 2):
        mx.random.seed(seed)
        with mx.autograd.record():
            found.append(network(codes).asnumpy().tolist())
    assert found[0] == found[1] != found[2]
    (drop, _) = (each for each in network if isinstance(each, mx.gluon.nn.Dropout))
    nodes = json.loads(drop(mx.sym.var("x")).tojson())["nodes"]
    assert [node["attrs"]["cudnn_off"] for node in nodes if node["op"] == "Dropout"] == ["True"]


def test_too_short_documents_are_refused():
    with pytest.raises(UserError, match="at least 123"):
        PaperConfig(69, 122, 2, 4, 4)


def test_auto_size_follows_the_rows():
    sizes = {
        rows: PaperConfig.for_data(ModelOptions(), CharEncoder(feature_len=123), 4, rows) for rows in (99_999, 100_000)
    }
    assert [(each.filters, each.units) for each in sizes.values()] == [SIZES["tiny"], SIZES["small"]]
    with pytest.raises(UserError):
        ModelOptions(dropout=1.0)


def test_weights_have_the_notebooks_spread():
    values = initial(PaperConfig(69, 123, 4, 64, 8), seed=1).values
    assert values["2.weight"].std() == pytest.approx((2.24 / (64 * 7) / 3) ** 0.5, rel=0.25)
    assert not values["2.bias"].any()


def one_hot(codes):
    matrix = np.zeros((len(codes), len(ALPHABET), codes.shape[1]), dtype=np.float32)
    for row, column in zip(*np.nonzero(codes < len(ALPHABET))):
        matrix[row, codes[row, column], column] = 1
    return mx.nd.array(matrix)


class TestNotebookFiles:
    codes = np.random.default_rng(3).integers(0, 75, (3, 150)).astype(np.uint8)

    @pytest.fixture
    def notebook(self):
        net = notebook_network(PaperConfig(69, 150, 7, 8, 16))
        net.initialize(mx.init.Xavier(magnitude=2.24))
        net(one_hot(self.codes)).wait_to_read()
        return net

    @pytest.mark.parametrize("how", ["save_params", "save_parameters", "collect_params"])
    def test_are_read(self, notebook, tmp_path, how):
        path = tmp_path / "crepe_gluon_epoch6.params"
        if how == "save_params":
            with pytest.warns(UserWarning, match="save_params is deprecated"):
                notebook.save_params(str(path))
        elif how == "save_parameters":
            notebook.save_parameters(str(path))
        else:
            notebook.collect_params().save(str(path))
        arrays = weights_io.load(path)
        shape = weights_io.infer_config(arrays, 69, 150)
        assert shape == PaperConfig(69, 150, 7, 8, 16)
        engine = opened(shape)
        engine.load_state_dict(arrays)
        expected = notebook(one_hot(self.codes)).asnumpy()
        got = engine.network(mx.nd.array(self.codes, dtype="uint8")).asnumpy()
        np.testing.assert_allclose(got, expected, atol=1e-5)

    def test_other_lengths_and_alphabets_are_refused(self, notebook, tmp_path):
        notebook.save_parameters(str(tmp_path / "n.params"))
        arrays = weights_io.load(tmp_path / "n.params")
        with pytest.raises(UserError, match="do not fit documents of 1014"):
            weights_io.infer_config(arrays, 69, 1014)
        with pytest.raises(UserError, match="the encoding has 95"):
            weights_io.infer_config(arrays, 95, 150)


class TestSettingValues:
    """In MXNet 1.9.1 on the CPU, `set_data` and `load_parameters` keep the old values after an inference pass."""

    batch = pack_batch(
        np.random.default_rng(0).integers(0, 69, (2, 123)).astype(np.uint8), np.arange(2, dtype=np.int32), 2, 2
    )

    def test_takes_effect_after_an_inference_pass(self):
        engine, other = opened(), opened()
        doubled = {name: array * 2 for name, array in other.state_dict().items()}
        other.load_state_dict(doubled)
        expected = other.logits(self.batch)
        engine.logits(self.batch)
        engine.load_state_dict(doubled)
        np.testing.assert_array_equal(engine.logits(self.batch), expected)

    def test_wrong_names_shapes_and_numbers_are_refused(self):
        engine = opened()
        values = engine.state_dict()
        for change, what in (
            ({"15.weight": values["0.bias"]}, "do not belong to this network"),
            ({"0.bias": np.zeros(9, np.float32)}, "do not belong to this network"),
            ({"0.bias": np.full(32, np.nan, np.float32)}, "non-finite"),
        ):
            with pytest.raises(UserError, match=what):
                engine.load_state_dict({**values, **change})
