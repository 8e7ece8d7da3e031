"""Row-sparse training: the tables of n-grams and of Crepe, in one process and in many."""

from __future__ import annotations

import ctypes
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from crepe_dist.data.batch import pack_batch
from crepe_dist.data.loader import shard_range
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.distributed.signals import StepAction
from crepe_dist.errors import UserError
from crepe_dist.model.loss import DEFAULT_LOSS
from crepe_dist.native import library
from crepe_dist.networks.crepe.config import CrepeConfig
from crepe_dist.networks.ngrams.config import NGramConfig
from crepe_dist.parallel.distributed_optimizer import StepResult
from crepe_dist.runs import resume_state
from crepe_dist.runs.resume_state import TrainerState
from crepe_dist.settings.options import OptimizerOptions
from crepe_dist.training.state_saver import capture_state, restore
from tests.chaos.harness import slow
from tests.conftest import needs_kernels, run
from tests.helpers.engines import TrainingStep, best, floating, initial, whole_gradients
from tests.helpers.optimizers import Reference
from tests.helpers.programs import program, supervised

DOCUMENTS = 19  # three groups of documents that Crepe keeps together, the last one smaller
TABLE = NGramConfig(69, 40, 3, 3, 1 << 12, 36, 1 << 10)
WIDE = NGramConfig(69, 12, 700, 2, 300, 36, 75)  # records of many cache lines, no whole words of buckets
CREPE = CrepeConfig(69, 24, 3, 3, 1 << 12, 36, 1 << 10, reach=2, rows=300, width=20, blocks=2, stride=1, dropout=0.2)
BOTH = pytest.mark.parametrize("shape", [TABLE, CREPE], ids=["n-grams", "crepe"])
OPTIMIZERS = [
    OptimizerOptions(name="adam", weight_decay=0.0),
    OptimizerOptions(name="sgd", weight_decay=0.0, momentum=0.9),
    OptimizerOptions(name="sgd", weight_decay=0.0, momentum=0.0),
]


@pytest.fixture(params=library.supported_builds())
def _build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute with each build of the kernels that this processor can run."""
    monkeypatch.setenv(library.KERNELS_ENV, request.param)


each_build = pytest.mark.usefixtures("_build")


class DenseExchange:
    """The whole numbers of our kernels, without tables, and the updates of the reference, of all rows."""

    def __init__(self, engine, options):
        self.quanta = whole_gradients(engine)
        self.optimizer = Reference(options, self.quanta.parameters)
        self.clip_norm = options.clip_norm

    def all_reduce(self, loss, batch):
        overflowed = not self.quanta.update_scales([self.quanta.sum_bounds[:]])
        return StepResult(batch.step, batch.global_batch_size, loss, StepAction.CONTINUE, needs_recompute=overflowed)

    def step(self, documents, learning_rate):
        gradients = {name: each.astype(float) / documents for name, each in floating(self.quanta).items()}
        norm = sum((each**2).sum() for each in gradients.values()) ** 0.5
        factor = min(1, self.clip_norm / norm) if self.clip_norm else 1
        self.optimizer.update({name: factor * each for name, each in gradients.items()}, learning_rate)
        for name, values in self.optimizer.values.items():
            self.quanta.parameters[name].data[:] = values

    def synchronize(self):
        """Nothing: all rows are up to date."""


class Training:
    """A network, its exchange and its steps on this rank's share of each batch.

    Args:
        sparse: train tables row by row; else the reference updates all rows.
    """

    def __init__(self, shape, optimizer=OPTIMIZERS[0], *, sparse=True, clip_norm=0.5, world=None):
        self.shape, self.world = shape, world or ProcessGroup()
        optimizer = replace(optimizer, clip_norm=clip_norm)
        network = initial(shape)
        for name in shape.buffers:
            network.values[name][:] = np.arange(shape.buckets) % 5 == 0
        self.engine = network.opened(best())
        self.exchange = (
            self.engine.create_optimizer(self.world, optimizer, DOCUMENTS)
            if sparse
            else DenseExchange(self.engine, optimizer)
        )
        exchange: Any = self.exchange
        self.step = TrainingStep(self.engine, exchange)
        self.rate = 0.002 if shape.is_matmul_bound else 0.02

    def batch(self, number):
        """Make a batch with characters of its own, so that most rows are not touched for many steps."""
        generator, size, group = np.random.default_rng(number), self.world.size, self.engine.reduction_group
        first = number % 16 * 4
        codes = generator.integers(first, first + 5, (DOCUMENTS, self.shape.feature_len)).astype(np.uint8)
        labels = generator.integers(0, self.shape.num_classes, DOCUMENTS).astype(np.int32)
        start, stop = shard_range(0, DOCUMENTS, self.world.rank, size, group)
        _, most = shard_range(0, DOCUMENTS, 0, size, group)
        return pack_batch(codes[start:stop], labels[start:stop], most, DOCUMENTS, start)

    def steps(self, first, last):
        for number in range(first, last):
            assert self.step(self.batch(number), number + 1, self.rate if number < 30 else self.rate / 2).is_finite
        return self

    def save(self):
        return capture_state(self._run())

    def restore(self, saved):
        restore(saved, self._run())
        return self

    def _run(self) -> Any:
        return SimpleNamespace(engine=self.engine, optimizer=self.exchange, progress=TrainerState(), group=self.world)

    def values(self):
        self.exchange.synchronize()
        return {name: self.engine.state_dict()[name].copy() for name in self.shape.parameter_shapes()}

    def digest(self):
        return hashlib.sha256(b"".join(each.tobytes() for each in self.values().values())).hexdigest()


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        scale = np.abs(array).max()
        assert scale > 0
        np.testing.assert_allclose(found[name], array, rtol=2e-3, atol=1e-3 * scale, err_msg=name)


@pytest.mark.parametrize(("shape", "steps", "clip_norm"), [(TABLE, 60, 0.5), (WIDE, 12, None), (CREPE, 20, 0.5)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@each_build
def test_it_computes_what_the_dense_optimizer_does(optimizer, shape, steps, clip_norm):
    sparse, dense = (Training(shape, optimizer, sparse=each, clip_norm=clip_norm) for each in (True, False))
    assert_close(sparse.steps(0, steps).values(), dense.steps(0, steps).values())


@BOTH
@each_build
def test_the_same_bits_for_any_number_of_threads(shape, monkeypatch):
    found = set()
    for threads in (1, 2, 3, 5):
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        found.add(Training(shape).steps(0, 10).digest())
    assert len(found) == 1


def test_builds_with_a_fused_multiply_add_agree_in_float32(monkeypatch):
    """That for AMX was not tried; its float32 is the code of AVX512."""
    builds = [name for name in library.supported_builds() if name in ("avx512_bf16", "avx512", "avx2")]
    if len(builds) < 2:
        pytest.skip("this processor has fewer than two of the builds")
    found = set()
    for build in builds:
        monkeypatch.setenv(library.KERNELS_ENV, build)
        found.add(Training(CREPE).steps(0, 10).digest())
    assert len(found) == 1


@needs_kernels
@BOTH
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("flushed", [False, True])
def test_a_restored_table_goes_on_with_the_same_bits(optimizer, flushed, shape):
    whole, first, second = (Training(shape, optimizer) for _ in range(3))
    for training in (whole, first):
        training.steps(0, 20)
        if flushed:
            training.exchange.synchronize()
    saved = first.save()
    for name in shape.sparse_parameters:
        assert flushed == all(f"{name}.{array}" not in saved.optimizer for array in ("updated", "drift"))
    second.restore(saved)
    assert second.steps(20, 40).digest() == whole.steps(20, 40).digest()


ROWS, VALUES = (TABLE.buckets,), (TABLE.buckets, TABLE.num_classes)


@needs_kernels
@pytest.mark.parametrize(
    "change",
    [
        {"updates": None},
        {"weight.0": np.zeros(3, np.float32)},
        {"weight.1": np.zeros((TABLE.buckets, 1))},
        {"weight.drift": np.array(0.0)},
        {"weight.drift": np.zeros(7)},  # more updates than there were
        {"weight.updated": np.full(ROWS, 6, np.int32)},  # beyond the history
        {"weight.updated": np.full(ROWS, -1, np.int32)},
        {"weight.updated": np.zeros(ROWS, np.int64)},
        {"quanta": np.zeros(3, np.int32)},
    ],
)
def test_a_damaged_state_is_refused(change):
    saved, second = Training(TABLE).steps(0, 5).save(), Training(TABLE)
    arrays = {name: array for name, array in {**saved.optimizer, **change}.items() if array is not None}
    with pytest.raises(UserError, match="another optimizer"):
        second.restore(replace(saved, optimizer=arrays))


@needs_kernels
def test_weight_decay_acts_on_the_rows_of_the_step():
    training = Training(TABLE, OptimizerOptions(name="sgd", momentum=0.0, weight_decay=0.5))
    before = training.steps(0, 1).values()["weight"]
    change = training.steps(1, 2).values()["weight"] - before
    touched = np.abs(change).sum(axis=1) > 0
    assert 0 < touched.sum() < len(touched) / 2


def train_together(world, shape):
    """Train with a save and a restoration in the middle, then with a gradient that is not finite."""
    if saved := Training(shape, world=world).steps(0, 6).save():
        resume_state.save(Path("state"), saved)
    world.all_gather_object(0, "saved")
    found: Any = resume_state.load_newest(Path("state"))
    training = Training(shape, world=world).restore(found.snapshot).steps(6, 12)
    digest = training.digest()
    assert world.all_gather_object(digest, "digest") == [digest] * world.size
    loss = large_loss(training)
    culprit = min(world.size, 3) - 1  # Crepe gives a fourth rank no documents
    if world.rank == culprit:
        weigh(training.engine, 3e38)  # gradients are infinite
    outcome = training.step.sum(training.batch(12), 13)
    assert outcome.nonfinite_grad_ranks == (culprit,), outcome
    if world.is_root:
        print("summed by", training.exchange.reduce_backend)
        print("parameters", digest)
        print("loss", loss)


def weigh(engine, weight):
    """Weigh all classes."""
    weights = np.full(engine.shape.num_classes, weight, np.float32)
    constants = ctypes.byref(DEFAULT_LOSS.constants)
    engine._kernels.call("crepe_set_loss", constants, weights.ctypes.data, len(weights))


def large_loss(training):
    """Compute the loss of a batch, of a thousand nats a document."""
    weigh(training.engine, 1000)
    return training.step.sum(training.batch(12), 13).loss


@needs_kernels
@pytest.mark.parametrize(
    ("shape", "hosts", "by"),
    [
        ("TABLE", [[0, 1]], "shared memory"),
        ("CREPE", [[0, 2], [1]], "shared memory and Horovod"),
        slow("TABLE", [[0], [1, 2], [3]], "shared memory and Horovod"),
        ("CREPE", [], "Horovod"),
    ],
)
def test_processes_and_hosts_do_not_matter(tmp_path, shape, hosts, by):
    start, processes = program if "Horovod" in by else supervised, sum(map(len, hosts)) or 3
    printed = run(start("parallel/sharded_worker.py", shape, json.dumps(hosts), processes=processes), tmp_path)
    one = Training(globals()[shape]).steps(0, 12)
    for line in (f"summed by {by}", f"parameters {one.digest()}", f"loss {large_loss(one)}"):
        assert f"{line}\n" in printed


@each_build
def test_a_flushed_table_has_numbers_of_half_precision():
    """Rounded as NumPy does, and no more than once."""
    training, generator = Training(TABLE), np.random.default_rng(0)
    sizes = np.exp2(generator.integers(-40, 15, VALUES))
    values = (generator.standard_normal(VALUES) * sizes).astype(np.float32)
    values[:2, :3] = [[2**-24, 2**-25, -(2**-14)], [65504, -65505, 0]]
    training.engine.parameters["weight"].value[:] = values
    training.exchange = training.engine.create_optimizer(ProcessGroup(), OPTIMIZERS[0], DOCUMENTS)
    step = TrainingStep(training.engine, training.exchange)
    step(training.batch(0), 1, 0.0)
    found = training.values()["weight"]
    np.testing.assert_array_equal(found, values.astype(np.float16).astype(np.float32))
    step(training.batch(1), 2, 0.0)
    np.testing.assert_array_equal(training.values()["weight"], found)
