"""The paper's network, and the files of the notebook that hold it."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest

from crepe_dist.data.alphabet import ALPHABET, BLANK
from crepe_dist.engines.gluon import block
from crepe_dist.engines.gluon.layers import OneHotConv1D
from crepe_dist.errors import UserError
from crepe_dist.model import parameters
from crepe_dist.networks.paper.gluon import Paper
from crepe_dist.networks.paper.shape import PaperShape, lengths
from crepe_dist.settings.model_options import SIZES, ModelOptions
from tests.helpers.engines import initial


def build(feature_len=123, classes=4, filters=8, units=16, dropout=0.0, alphabet_size=69, **options):
    """Gluon block of a network."""
    shape = PaperShape(alphabet_size, feature_len, classes, filters, units, dropout)
    return initial(shape, seed=1).opened(None, **options).network


def test_lengths_are_the_papers():
    assert lengths(1014) == [1014, 1008, 336, 330, 110, 108, 106, 104, 102, 34]
    assert lengths(123)[-1] == 1
    assert lengths(122)[-1] < 1


@pytest.mark.parametrize(("size", "inputs", "count"), [("small", 8704, 11_341_063), ("large", 34816, 95_939_591)])
def test_the_papers_networks(size, inputs, count):
    """The paper's table 2: 8704 inputs to the first dense layer of the small network at 1014 characters."""
    filters, units = SIZES[size]
    network = Paper(PaperShape(69, 1014, 7, filters, units))
    shapes = {name: p.shape for name, p in network._collect_params_with_prefix().items()}
    assert shapes["0.weight"] == (filters, 69, 7)
    assert shapes["10.weight"] == (units, inputs)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == count


def dense_first_layer(codes, weight, bias):
    """The same by a plain one-hot matrix, without padding, in NumPy."""
    _, size, kernel = weight.shape
    one_hot = np.zeros((len(codes), size, codes.shape[1]), dtype=np.float64)
    for row, column in zip(*np.nonzero(codes < size)):
        one_hot[row, codes[row, column], column] = 1
    windows = np.lib.stride_tricks.sliding_window_view(one_hot, kernel, axis=2)
    return np.maximum(np.einsum("bclk,fck->bfl", windows, weight) + bias[None, :, None], 0)


@pytest.mark.parametrize("hybridize", [False, True])
def test_first_layer_reads_codes_and_blanks(hybridize):
    layer = OneHotConv1D(69, 5, 7)
    layer.initialize(mx.init.Normal(1))
    layer.bias.set_data(mx.nd.array([1, 0, 2, -1, 3]))
    if hybridize:
        layer.hybridize(static_alloc=True, static_shape=True)
    codes = np.random.default_rng(0).integers(0, 69, (3, 20)).astype(np.uint8)
    codes[1, 5:] = BLANK
    got = layer(mx.nd.array(codes, dtype="uint8")).asnumpy()
    expected = dense_first_layer(codes, layer.weight.data().asnumpy(), layer.bias.data().asnumpy())
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_codes_beyond_the_alphabet_are_blank():
    """Between the alphabet and the padded depth lie zero weights; above it MXNet's one_hot gives zeros."""
    network = build()
    with_blanks = np.full((1, 123), BLANK, dtype=np.uint8)
    expected = network(mx.nd.array(with_blanks, dtype="uint8")).asnumpy()
    for code in (69, 79, 80, 200):
        got = network(mx.nd.array(np.full((1, 123), code), dtype="uint8")).asnumpy()
        np.testing.assert_array_equal(got, expected)


def test_compiled_and_plain_give_the_same():
    codes = mx.nd.array(np.random.default_rng(0).integers(0, 69, (4, 200)), dtype="uint8")
    plain, compiled = (build(200, compiled=compiled)(codes).asnumpy() for compiled in (False, True))
    np.testing.assert_allclose(plain, compiled, atol=1e-5)


def test_too_short_documents_are_refused():
    with pytest.raises(UserError, match="too short"):
        build(122)
    with pytest.raises(UserError, match="at least 123"):
        PaperShape(69, 122, 2, 4, 4)


@pytest.mark.parametrize(
    ("initialisation", "filters", "layer", "deviation"),
    [
        ("he", 64, "2.weight", (2 / (64 * 7)) ** 0.5),
        ("xavier", 64, "2.weight", (2.24 / (64 * 7) / 3) ** 0.5),
        ("paper", 64, "2.weight", 0.05),
        ("paper", 64, "2.bias", 0.05),
        ("paper", 1024, "0.weight", 0.02),
        ("he", 64, "2.bias", 0.0),
    ],
)
def test_initialisations_have_their_spread(initialisation, filters, layer, deviation):
    shape = PaperShape(69, 123, 4, filters, 8)
    values = initial(shape, seed=1, initialisation=initialisation).values
    assert values[layer].std() == pytest.approx(deviation, rel=0.25)


def test_the_seed_decides_the_initial_values():
    one, same, other = (initial(PaperShape(69, 123, 4, 8, 16), seed=seed).values for seed in (1, 1, 2))
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["0.weight"], other["0.weight"])


def test_auto_size_follows_the_rows():
    options = ModelOptions()
    assert options.widths(99_999) == SIZES["tiny"]
    assert options.widths(100_000) == SIZES["small"]
    assert ModelOptions(size="large", filters=7).widths(1) == (7, 2048)
    with pytest.raises(UserError):
        ModelOptions(filters=0).widths(1)
    with pytest.raises(UserError):
        ModelOptions(dropout=1.0).widths(1)


def notebook_network(filters=8, units=16, outputs=7):
    """The notebook's network as it builds it."""
    net = mx.gluon.nn.HybridSequential()
    nn = mx.gluon.nn
    with net.name_scope():
        net.add(nn.Conv1D(channels=filters, kernel_size=7, activation="relu"))
        net.add(nn.MaxPool1D(pool_size=3, strides=3))
        net.add(nn.Conv1D(channels=filters, kernel_size=7, activation="relu"))
        net.add(nn.MaxPool1D(pool_size=3, strides=3))
        for _ in range(4):
            net.add(nn.Conv1D(channels=filters, kernel_size=3, activation="relu"))
        net.add(nn.MaxPool1D(pool_size=3, strides=3))
        net.add(nn.Flatten())
        for _ in range(2):
            net.add(nn.Dense(units, activation="relu"))
            net.add(nn.Dropout(0.5))
        net.add(nn.Dense(outputs))
    net.initialize(mx.init.Xavier(magnitude=2.24))
    return net


def one_hot(codes):
    matrix = np.zeros((len(codes), len(ALPHABET), codes.shape[1]), dtype=np.float32)
    for row, column in zip(*np.nonzero(codes < len(ALPHABET))):
        matrix[row, codes[row, column], column] = 1
    return mx.nd.array(matrix)


class TestNotebookFiles:
    codes = np.random.default_rng(3).integers(0, 75, (3, 150)).astype(np.uint8)

    @pytest.fixture
    def notebook(self):
        net = notebook_network()
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
        arrays = parameters.load(path)
        shape = parameters.shape_of(arrays, 69, 150)
        assert shape == PaperShape(69, 150, 7, 8, 16)
        network = initial(shape).opened(None).network
        block.set_values(network, arrays)
        expected = notebook(one_hot(self.codes)).asnumpy()
        got = network(mx.nd.array(self.codes, dtype="uint8")).asnumpy()
        np.testing.assert_allclose(got, expected, atol=1e-5)

    def test_other_lengths_and_alphabets_are_refused(self, notebook, tmp_path):
        notebook.save_parameters(str(tmp_path / "n.params"))
        arrays = parameters.load(tmp_path / "n.params")
        with pytest.raises(UserError, match="do not fit documents of 1014"):
            parameters.shape_of(arrays, 69, 1014)
        with pytest.raises(UserError, match="the encoding has 95"):
            parameters.shape_of(arrays, 95, 150)


class TestSettingValues:
    """MXNet 1.9.1 on the CPU: after an inference pass, `set_data` and `load_parameters` leave the old values."""

    def test_takes_effect_after_an_inference_pass(self):
        network, other = build(filters=32, units=32), build(filters=32, units=32)
        codes = mx.nd.array(np.random.default_rng(0).integers(0, 69, (2, 123)), dtype="uint8")
        doubled = {name: array * 2 for name, array in block.values(other).items()}
        block.set_values(other, doubled)
        expected = other(codes).asnumpy()
        network(codes).wait_to_read()
        block.set_values(network, doubled)
        np.testing.assert_array_equal(network(codes).asnumpy(), expected)

    def test_training_goes_on_after_an_inference_pass(self):
        network = build(filters=32, units=32)
        trainer = mx.gluon.Trainer(network.collect_params(), "sgd", {"learning_rate": 0.1}, kvstore=None)
        codes = mx.nd.array(np.random.default_rng(0).integers(0, 69, (2, 123)), dtype="uint8")
        network(codes).wait_to_read()
        before = block.values(network)
        with mx.autograd.record():
            loss = network(codes).sum()
        loss.backward()
        trainer.step(1)
        after = block.values(network)
        assert all(not np.array_equal(before[name], after[name]) for name in ("0.weight", "4.weight", "14.weight"))

    def test_wrong_names_shapes_and_numbers_are_refused(self):
        network = build()
        values = block.values(network)
        with pytest.raises(UserError, match="do not belong to this network"):
            block.set_values(network, {**values, "15.weight": values["0.bias"]})
        with pytest.raises(UserError, match=r"0\.bias has shape"):
            block.set_values(network, {**values, "0.bias": np.zeros(9, dtype=np.float32)})
        with pytest.raises(UserError, match="NaN"):
            block.set_values(network, {**values, "0.bias": np.full(8, np.nan, dtype=np.float32)})
