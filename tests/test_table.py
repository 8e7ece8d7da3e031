"""Row-sparse training: the table of the n-gram network; for many processes and threads see ``test_two_tables``."""

from __future__ import annotations

from dataclasses import replace

import mxnet as mx
import numpy as np
import pytest

from crepe_dist.distributed.world import World
from crepe_dist.errors import UserError
from crepe_dist.exchange.gluon_optimizers import make_optimizer
from crepe_dist.exchange.rule import Rule
from crepe_dist.exchange.single import SingleExchange
from crepe_dist.native import library
from crepe_dist.networks.ngrams.shape import NGramShape
from crepe_dist.runs.state import Progress
from crepe_dist.settings.training_options import OptimizerOptions
from crepe_dist.training.resume import restore, snapshot
from crepe_dist.training.step import TrainingStep
from tests.batches import SHAPE, some_batch
from tests.conftest import needs_kernels
from tests.engines import best, floating, initial, whole_gradients

WIDE = NGramShape(69, 12, 700, 2, 300)  # records of many cache lines, no whole words of buckets
OPTIMIZERS = [
    OptimizerOptions(name="adam", weight_decay=0.0),
    OptimizerOptions(name="sgd", weight_decay=0.0, momentum=0.9),
    OptimizerOptions(name="sgd", weight_decay=0.0, momentum=0.0),
    OptimizerOptions(name="nag", weight_decay=0.0, momentum=0.9),
]


@pytest.fixture(params=library.runnable())
def _build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute with each build of the kernels that this processor can run."""
    monkeypatch.setenv(library.SWITCH, request.param)


each_build = pytest.mark.usefixtures("_build")


class DenseExchange(SingleExchange):
    """The whole numbers of our kernels, without tables, and the updates of MXNet's optimizers."""

    def __init__(self, engine, options):
        self.quanta, gluon, rule = whole_gradients(engine), mx.gluon.ParameterDict(), Rule(options)
        for name, parameter in self.quanta.parameters.items():
            gluon.get(name, shape=parameter.shape, lr_mult=parameter.rate).row_moments = parameter.row_moments
        gluon.initialize()
        self.gluon = gluon
        names = {name: name for name in gluon}
        super().__init__(mx.gluon.Trainer(gluon, make_optimizer(rule), kvstore=None), rule, names)

    def sum(self, compute, numbers, documents):
        self.quanta.begin(documents)
        loss = compute()
        while not self.quanta.fit([self.quanta.bounds[:]]):
            loss = compute()
        for name, gradient in floating(self.quanta).items():
            self.gluon[name].grad()[:] = gradient
            self.gluon[name].data()._fresh_grad = True
        return super().sum(lambda: mx.nd.array([loss]), numbers, documents)

    def update(self, *arguments):
        self.take()
        super().update(*arguments)
        self.give()

    def restore(self, arrays):
        self.take()
        super().restore(arrays)
        self.give()

    def take(self):
        for name, parameter in self.quanta.parameters.items():
            self.gluon[name].set_data(mx.nd.array(parameter.value))

    def give(self):
        for name, parameter in self.quanta.parameters.items():
            parameter.value[:] = self.gluon[name].data().asnumpy()


class Training:
    """A network, its exchange and its steps, in a single process; updated by MXNet's optimizers if it is not sparse."""

    documents = 7
    significant = "significant"

    def __init__(self, shape, optimizer, *, sparse=True, clip_norm=None, world=None):
        self.shape = shape
        self.world = world or World()
        network = initial(shape)
        network.values[self.significant][:] = np.arange(shape.buckets) % 5 == 0
        self.engine = network.opened(best())
        self.exchange = (
            self.engine.open_exchange(self.world, optimizer, self.documents)
            if sparse
            else DenseExchange(self.engine, optimizer)
        )
        self.step = TrainingStep(self.engine, self.exchange, 0, clip_norm)

    def batch(self, number):
        return some_batch(self.shape, number)

    def rate(self, number):
        return 0.02 if number < 30 else 0.01

    def steps(self, first, last):
        for number in range(first, last):
            assert self.step(self.batch(number), number + 1, self.rate(number)).finite
        return self

    def save(self):
        return snapshot(self.step, Progress())

    def restore(self, saved):
        restore(saved, self.step, Progress())
        return self

    def values(self):
        self.exchange.flush()
        return {name: array.copy() for name, array in self.engine.values().items()}


@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@each_build
def test_it_computes_what_the_dense_optimizer_does(optimizer, clip_norm):
    found = []
    for sparse in (True, False):
        training = Training(SHAPE, optimizer, sparse=sparse, clip_norm=clip_norm)
        training.steps(0, 60)
        found.append(training.values())
    for name, expected in found[1].items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found[0][name], expected, rtol=2e-3, atol=1e-3 * scale, err_msg=name)
    assert np.abs(found[1]["weight"]).max() > 0.001


@each_build
def test_many_classes():
    found = []
    for sparse in (True, False):
        training = Training(WIDE, OPTIMIZERS[0], sparse=sparse)
        training.steps(0, 12)
        found.append(training.values()["weight"])
    got, expected = found
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-3 * np.abs(expected).max())


@needs_kernels
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("flushed", [False, True])
def test_a_restored_table_goes_on_with_the_same_bits(optimizer, flushed):
    whole, first, second = (Training(SHAPE, optimizer) for _ in range(3))
    for training in (whole, first):
        training.steps(0, 20)
        if flushed:
            training.exchange.flush()
    saved = first.save()
    assert flushed == all(name not in saved.optimizer for name in ("weight.updated", "weight.drift"))
    second.restore(saved)
    for training in (whole, second):
        training.steps(20, 40)
    for name, expected in whole.values().items():
        assert second.values()[name].tobytes() == expected.tobytes(), name


ROWS, VALUES = (SHAPE.buckets,), (SHAPE.buckets, SHAPE.classes)


@needs_kernels
@pytest.mark.parametrize(
    "change",
    [
        {"updates": None},
        {"updates": np.array([-1])},
        {"more": np.zeros(3)},
        {"bias.2": np.zeros(SHAPE.classes, np.float32)},
        {"bias.1": None},
        {"bias.0": np.full(SHAPE.classes, np.inf, np.float32)},
        {"bias.drift": np.zeros(1), "bias.updated": np.zeros(SHAPE.classes, np.int32)},  # of a bias
        {"weight.1": None},
        {"weight.0": None, "weight.1": None},  # drift without a moment
        {"weight.0": np.zeros(3, np.float32)},
        {"weight.0": np.full(VALUES, np.nan, np.float32)},
        {"weight.1": np.full((SHAPE.buckets, 1), -1, np.float32)},
        {"weight.1": np.zeros((SHAPE.buckets, 1))},
        {"weight.1": np.zeros(VALUES, np.float32)},
        {"weight.drift": None},
        {"weight.drift": np.array(0.0)},
        {"weight.drift": np.zeros(0)},
        {"weight.drift": np.zeros(6, np.float32)},
        {"weight.drift": np.zeros((1, 3))},
        {"weight.drift": np.zeros(7)},  # more updates than there were
        {"weight.updated": np.full(ROWS, 6, np.int32)},  # beyond the history
        {"weight.updated": np.full(ROWS, -1, np.int32)},
        {"weight.updated": np.zeros(ROWS, np.int64)},
        {"weight.updated": np.zeros(5, np.int32)},
        {"quanta": np.array([0, 111], np.int32)},
        {"quanta": np.zeros(3, np.int32)},
    ],
)
@pytest.mark.parametrize("sparse", [True, False])
def test_a_damaged_state_is_refused_by_any_exchange(sparse, change):
    first, second = Training(SHAPE, OPTIMIZERS[0]), Training(SHAPE, OPTIMIZERS[0], sparse=sparse)
    first.steps(0, 5)
    saved = first.save()
    arrays = {name: array for name, array in {**saved.optimizer, **change}.items() if array is not None}
    with pytest.raises(UserError, match="another optimizer"):
        second.restore(replace(saved, optimizer=arrays))


@needs_kernels
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_engine_that_trains_all_rows_goes_on(optimizer):
    """A run may resume where there are no kernels: on a GPU, or without a compiler. And back."""
    first, dense, again = (
        Training(SHAPE, optimizer),
        Training(SHAPE, optimizer, sparse=False),
        Training(SHAPE, optimizer),
    )
    first.steps(0, 20)
    saved = first.save()
    assert "weight.drift" in saved.optimizer
    dense.restore(saved)
    flushed = first.values()
    for name, got in dense.values().items():
        np.testing.assert_allclose(got, flushed[name], rtol=6e-4, atol=1e-6, err_msg=name)  # half a unit of float16
    first.steps(20, 30)
    dense.steps(20, 30)
    again.restore(dense.save())
    first.steps(30, 40)
    again.steps(30, 40)
    expected = first.values()["weight"]
    np.testing.assert_allclose(again.values()["weight"], expected, rtol=0.02, atol=0.005 * np.abs(expected).max())


@needs_kernels
def test_weight_decay_acts_on_the_rows_of_the_step():
    training = Training(SHAPE, OptimizerOptions(name="sgd", momentum=0.0, weight_decay=0.5))
    training.steps(0, 1)
    before = training.values()["weight"]
    training.steps(1, 2)
    change = training.values()["weight"] - before
    touched = np.abs(change).sum(axis=1) > 0
    assert 0 < touched.sum() < len(touched) / 2


@needs_kernels
def test_numbers_that_are_not_finite_are_noticed():
    training = Training(SHAPE, OPTIMIZERS[0])
    training.engine.values()["bias"][:] = np.nan, 0, 0
    outcome = training.step(some_batch(SHAPE, 0), 1, 0.1)
    assert outcome.bad_gradients == (0,)
    training.engine.values()["bias"][:] = 0
    assert training.step(some_batch(SHAPE, 0), 1, 0.1).finite
    assert np.isfinite(training.values()["weight"]).all()


@each_build
def test_a_flushed_table_has_numbers_of_half_precision():
    """Rounded as NumPy does, and no more than once."""
    shape = replace(SHAPE, buckets=4096)
    training, generator = Training(shape, OPTIMIZERS[0]), np.random.default_rng(0)
    sizes = np.exp2(generator.integers(-40, 15, (shape.buckets, shape.classes)))
    values = (generator.standard_normal(sizes.shape) * sizes).astype(np.float32)
    values[:2, :3] = [[2**-24, 2**-25, -(2**-14)], [65504, -65505, 0]]
    training.engine.parameters["weight"].value[:] = values
    training.exchange = training.engine.open_exchange(World(), OPTIMIZERS[0], 7)
    training.step = TrainingStep(training.engine, training.exchange, 0, None)
    training.step(some_batch(shape, 0), 1, 0.0)
    found = training.values()["weight"]
    np.testing.assert_array_equal(found, values.astype(np.float16).astype(np.float32))
    training.step(some_batch(shape, 1), 2, 0.0)
    np.testing.assert_array_equal(training.values()["weight"], found)
