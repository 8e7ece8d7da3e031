"""Row-sparse training of the embeddings of the n-gram network and of Crepe, in one process and in many."""

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
from crepe_dist.data.loader import shard_range, with_next
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
from crepe_dist.training.state_saver import capture_state, restore_state
from tests.chaos.harness import slow
from tests.conftest import needs_kernels, run
from tests.helpers.engines import TrainingStep, best, floating, initial, whole_gradients
from tests.helpers.optimizers import Reference
from tests.helpers.programs import program, supervised

DOCUMENTS = 19  # Three reduction groups of Crepe. The last group is smaller.
TABLE = NGramConfig(69, 40, 3, 3, 1 << 12, 36, 1 << 10)
WIDE = NGramConfig(
    69, 12, 700, 2, 300, 36, 75
)  # A record has many cache lines. The last word of the bitmap is not full.
CREPE = CrepeConfig(
    69, 24, 3, 3, 1 << 12, 36, 1 << 10, embedding_maxn=2, embedding_rows=300, width=20, blocks=2, stride=1, dropout=0.2
)
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


class DenseOptimizer:
    """Optimizer that gets dense fixed-point gradients from native kernels, and updates all rows by the reference."""

    def __init__(self, engine, options):
        self.scales = whole_gradients(engine)
        self.sparse_names = engine.config.sparse_parameters
        self.optimizer = Reference(options, self.scales.parameters)

    def all_reduce(self, loss, batch):
        needs_recompute = not self.scales.update_scales([self.scales.sum_bounds[:]])
        return StepResult(
            batch.step, batch.global_batch_size, loss, StepAction.CONTINUE, needs_recompute=needs_recompute
        )

    def step(self, documents, learning_rate):
        gradients = {name: total.astype(float) / documents for name, total in floating(self.scales).items()}
        self.optimizer.update(gradients, learning_rate)
        for name, values in self.optimizer.values.items():  # The kernels read the rows of embeddings as float16.
            is_sparse = name in self.sparse_names
            self.scales.parameters[name].data[:] = values.astype(np.float16) if is_sparse else values

    def synchronize(self):
        """Do nothing, because all rows are up to date."""


class Training:
    """Network that is trained on this rank's shard of each batch.

    Args:
        sparse: True to train embeddings row by row. Otherwise the reference updates all rows.
    """

    def __init__(self, shape, options=OPTIMIZERS[0], *, sparse=True, group=None):
        self.shape, self.group = shape, group or ProcessGroup()
        network = initial(shape)
        for name in shape.buffers:
            network.values[name][:] = np.arange(shape.buckets) % 5 == 0
        self.engine = network.opened(best())
        optimizer: Any = (
            self.engine.create_optimizer(self.group, options, DOCUMENTS)
            if sparse
            else DenseOptimizer(self.engine, options)
        )
        self.optimizer = optimizer
        self.step = TrainingStep(self.engine, optimizer)
        self.learning_rate = 0.002 if shape.is_matmul_bound else 0.02

    def batch(self, number):
        """Return this rank's shard of a batch with few characters, so that most rows are not used for many steps."""
        generator, reduction_group = np.random.default_rng(number), self.engine.reduction_group
        first = number % 16 * 4
        codes = generator.integers(first, first + 5, (DOCUMENTS, self.shape.feature_len)).astype(np.uint8)
        labels = generator.integers(0, self.shape.num_classes, DOCUMENTS).astype(np.int32)
        start, stop = shard_range(0, DOCUMENTS, self.group.rank, self.group.size, reduction_group)
        _, max_shard_size = shard_range(0, DOCUMENTS, 0, self.group.size, reduction_group)
        return pack_batch(codes[start:stop], labels[start:stop], max_shard_size, DOCUMENTS, start)

    def steps(self, first, last):
        """Train on batches. The rows of all batches but the first are listed one step ahead."""
        batches = (self.batch(number).for_step(number + 1, self.step.seed) for number in range(first, last))
        for number, (batch, next_batch) in enumerate(with_next(batches), first):
            learning_rate = self.learning_rate if number < 30 else self.learning_rate / 2
            assert self.step(batch, number + 1, learning_rate, next_batch).is_finite
        return self

    def save(self):
        return capture_state(self._run())

    def restore(self, saved):
        restore_state(saved, self._run())
        return self

    def _run(self) -> Any:
        return SimpleNamespace(engine=self.engine, optimizer=self.optimizer, progress=TrainerState(), group=self.group)

    def values(self):
        self.optimizer.synchronize()
        return {name: self.engine.state_dict()[name].copy() for name in self.shape.parameter_shapes()}

    def digest(self):
        return hashlib.sha256(b"".join(array.tobytes() for array in self.values().values())).hexdigest()


def assert_close(arrays, expected, tolerance):
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        scale = np.abs(array).max()
        assert scale > 0
        np.testing.assert_allclose(arrays[name], array, rtol=2e-3, atol=tolerance * scale, err_msg=name)


@pytest.mark.parametrize(("shape", "steps"), [(TABLE, 60), (WIDE, 12), (CREPE, 8)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@each_build
def test_sparse_training_equals_dense_training(optimizer, shape, steps):
    sparse, dense = (Training(shape, optimizer, sparse=is_sparse) for is_sparse in (True, False))
    # Both sides round values to float16, sometimes to neighbouring numbers. Crepe's later gradients then differ.
    tolerance = 0.1 if shape is CREPE else 1e-3
    assert_close(sparse.steps(0, steps).values(), dense.steps(0, steps).values(), tolerance)


@BOTH
@each_build
def test_bit_identical_for_any_number_of_threads(shape, monkeypatch):
    digests = set()
    for threads in (1, 2, 3, 5):
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        digests.add(Training(shape).steps(0, 10).digest())
    assert len(digests) == 1


def test_builds_with_a_fused_multiply_add_agree_in_float32(monkeypatch):
    """The AMX build is not compared; its float32 code is the code of the AVX512 build."""
    builds = [name for name in library.supported_builds() if name in ("avx512_bf16", "avx512", "avx2")]
    if len(builds) < 2:
        pytest.skip("this processor has fewer than two of the builds")
    digests = set()
    for build in builds:
        monkeypatch.setenv(library.KERNELS_ENV, build)
        digests.add(Training(CREPE).steps(0, 10).digest())
    assert len(digests) == 1


@needs_kernels
@BOTH
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("is_synchronized", [False, True])
def test_a_restored_embedding_continues_bit_identically(optimizer, is_synchronized, shape):
    whole, first, second = (Training(shape, optimizer) for _ in range(3))
    for training in (whole, first):
        training.steps(0, 20)
        if is_synchronized:
            training.optimizer.synchronize()
    saved = first.save()
    for name in shape.sparse_parameters:
        arrays = {f"{name}.last_update", f"{name}.lazy_drift"}
        assert arrays.isdisjoint(saved.optimizer) if is_synchronized else arrays <= saved.optimizer.keys()
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
        {"weight.lazy_drift": np.array(0.0)},
        {"weight.lazy_drift": np.zeros(7)},  # More updates than the state has.
        {"weight.last_update": np.full(ROWS, 6, np.int32)},  # Beyond the history.
        {"weight.last_update": np.full(ROWS, -1, np.int32)},
        {"weight.last_update": np.zeros(ROWS, np.int64)},
        {"exponents": np.zeros(3, np.int32)},
    ],
)
def test_a_damaged_state_is_refused(change):
    saved, second = Training(TABLE).steps(0, 5).save(), Training(TABLE)
    arrays = {name: array for name, array in {**saved.optimizer, **change}.items() if array is not None}
    with pytest.raises(UserError, match="another optimizer"):
        second.restore(replace(saved, optimizer=arrays))


@needs_kernels
def test_weight_decay_acts_only_on_the_rows_of_the_step():
    training = Training(TABLE, OptimizerOptions(name="sgd", momentum=0.0, weight_decay=0.5))
    values = training.steps(0, 1).values()["weight"]
    change = training.steps(1, 2).values()["weight"] - values
    has_changed = np.abs(change).sum(axis=1) > 0
    assert 0 < has_changed.sum() < len(has_changed) / 2


def train_together(group, shape):
    """Train, save and restore the state, train on, and compute a step with a non-finite gradient on one rank."""
    if saved := Training(shape, group=group).steps(0, 6).save():
        resume_state.save(Path("state"), saved)
    group.all_gather_json(0, "saved")
    found: Any = resume_state.load_newest(Path("state"))
    training = Training(shape, group=group).restore(found.state).steps(6, 12)
    digest = training.digest()
    assert group.all_gather_json(digest, "digest") == [digest] * group.size
    loss = large_loss(training)
    culprit = min(group.size, 3) - 1  # With Crepe, a fourth rank has no documents.
    if group.rank == culprit:
        set_class_weight(training.engine, 3e38)  # The gradients are infinite.
    result = training.step.sum(training.batch(12), 13)
    assert result.nonfinite_grad_ranks == (culprit,), result
    if group.is_root:
        print("summed by", training.optimizer.reduce_backend)
        print("parameters", digest)
        print("loss", loss)


def set_class_weight(engine, weight):
    """Give all classes the same weight."""
    weights = np.full(engine.config.num_classes, weight, np.float32)
    constants = ctypes.byref(DEFAULT_LOSS.constants)
    engine._kernels.call("crepe_set_loss", constants, weights.ctypes.data, len(weights))


def large_loss(training):
    """Return the loss of a batch, about a thousand nats per document."""
    set_class_weight(training.engine, 1000)
    return training.step.sum(training.batch(12), 13).loss


@needs_kernels
@pytest.mark.parametrize(
    ("shape", "hosts", "backend"),
    [
        ("TABLE", [[0, 1]], "shared memory"),
        ("CREPE", [[0, 2], [1]], "shared memory and Horovod"),
        slow("TABLE", [[0], [1, 2], [3]], "shared memory and Horovod"),
        ("CREPE", [], "Horovod"),
    ],
)
def test_the_result_does_not_depend_on_processes_and_hosts(tmp_path, shape, hosts, backend):
    start, processes = program if "Horovod" in backend else supervised, sum(map(len, hosts)) or 3
    printed = run(start("parallel/sharded_worker.py", shape, json.dumps(hosts), processes=processes), tmp_path)
    one = Training(globals()[shape]).steps(0, 12)
    for line in (f"summed by {backend}", f"parameters {one.digest()}", f"loss {large_loss(one)}"):
        assert f"{line}\n" in printed


@each_build
def test_a_synchronized_embedding_has_float16_numbers():
    """The numbers are rounded as by NumPy, and only once."""
    training, generator = Training(TABLE), np.random.default_rng(0)
    sizes = np.exp2(generator.integers(-40, 15, VALUES))
    values = (generator.standard_normal(VALUES) * sizes).astype(np.float32)
    values[:2, :3] = [[2**-24, 2**-25, -(2**-14)], [65504, -65505, 0]]
    training.engine.parameters["weight"].data[:] = values
    training.optimizer = training.engine.create_optimizer(ProcessGroup(), OPTIMIZERS[0], DOCUMENTS)
    step = TrainingStep(training.engine, training.optimizer)
    step(training.batch(0), 1, 0.0)
    rounded = training.values()["weight"]
    np.testing.assert_array_equal(rounded, values.astype(np.float16).astype(np.float32))
    step(training.batch(1), 2, 0.0)
    np.testing.assert_array_equal(training.values()["weight"], rounded)
