"""Row-sparse training of two parameters of different widths, in one process and in many."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import mxnet as mx
import numpy as np
import pytest

from crepe_dist.data.batch import pack
from crepe_dist.data.order import share
from crepe_dist.distributed.table import SparseParameter
from crepe_dist.distributed.world import World
from crepe_dist.model.ngrams import NGramShape
from crepe_dist.model.precision import Plan
from crepe_dist.mxnet_internals import structural_parameters
from crepe_dist.native import library
from crepe_dist.networks import block
from crepe_dist.networks.engine import Engine, no_mark, open_engine
from crepe_dist.runs.state import Progress, Snapshot
from crepe_dist.settings.model_options import ModelOptions
from crepe_dist.training.resume import RunState
from crepe_dist.training.step import TrainingStep
from tests.conftest import needs_kernels, run
from tests.distributed.test_world import script
from tests.test_table import OPTIMIZERS, PLACES

CLASSES, DOCUMENTS, LENGTH = 3, 7, 24
SHAPES = {
    "narrow": NGramShape(69, LENGTH, CLASSES, 3, 1 << 12, edges=False),
    "wide": NGramShape(69, LENGTH, 128, 2, 300, edges=False),
}
BOTH = tuple(SHAPES)


class Pair(mx.gluon.Block):  # type: ignore[misc]
    """Two n-gram networks that read the same documents."""

    def __init__(self):
        super().__init__()
        for name, shape in SHAPES.items():
            network = block.build(shape, ModelOptions(), mx.cpu(), seed=0)
            network.significant.set_data(mx.nd.array(np.arange(shape.buckets) % 5 == 0))
            network.weight.row_moments = name == "narrow"
            setattr(self, name, network)
        sizes = {f"{name}.{array}": size for name in SHAPES for array, size in SHAPES[name].parameter_shapes().items()}
        self.shape = SimpleNamespace(parameter_shapes=lambda: sizes)

    def trained(self):
        return {name: each for name, each in structural_parameters(self).items() if "significant" not in name}


class PairEngine(Engine):
    """The networks' engines, of which those in ``sparse`` train row by row."""

    def __init__(self, network: Pair, sparse: Sequence[str]) -> None:
        plan = Plan("float32", library.find()[0], "")
        super().__init__(network, plan, mx.cpu())
        self.engines = {name: open_engine(getattr(network, name), plan, mx.cpu()) for name in SHAPES}
        self._sparse = sparse

    def train_row_by_row(self, documents: int) -> Sequence[SparseParameter]:
        order = sorted(self.network.trained())
        return [
            replace(each, index=order.index(f"{name}.weight"))
            for name in self._sparse
            for each in self.engines[name].train_row_by_row(documents)
        ]

    def refresh(self):
        for engine in self.engines.values():
            engine.refresh()

    def gradients(self, batch, seed, step, scale, mark=no_mark):
        return sum(engine.gradients(batch, seed, step, scale, mark) for engine in self.engines.values())


class Training:
    """The pair, its trainer and its steps on this rank's share of each batch."""

    def __init__(self, optimizer, sparse=BOTH, world=None):
        self.world = world or World()
        self.network = Pair()
        self.engine = PairEngine(self.network, sparse)
        made = self.engine.engines["narrow"].optimizer(*optimizer)
        tables = self.engine.train_row_by_row(DOCUMENTS)
        self.trainer = self.world.trainer(self.network.trained(), made, tables)
        self.step = TrainingStep(self.engine, self.trainer, self.world.size, seed=0, clip_norm=0.5)
        self._state = RunState(self.engine, self.trainer, self.step.scale, Progress())

    def batch(self, number):
        generator = np.random.default_rng(number)
        # Each batch has characters of its own, so that most rows are not touched for many steps.
        codes = generator.integers(number % 23 * 3, number % 23 * 3 + 4, (DOCUMENTS, LENGTH)).astype(np.uint8)
        labels = generator.integers(0, CLASSES, DOCUMENTS).astype(np.int32)
        first, last = share(0, DOCUMENTS, self.world.rank, self.world.size)
        return pack(codes[first:last], labels[first:last], -(-DOCUMENTS // self.world.size), DOCUMENTS, first)

    def steps(self, first, last):
        for number in range(first, last):
            assert self.step(self.batch(number), number + 1, 0.02 if number < 30 else 0.01).finite
        return self

    def save(self) -> Snapshot:
        return self._state.snapshot()

    def restore(self, snapshot):
        self._state.restore(snapshot)
        return self

    def values(self):
        self.step.settle()
        return {name: array for name, array in block.values(self.network).items() if "significant" not in name}


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        scale = np.abs(array).max()
        assert scale > 0
        np.testing.assert_allclose(found[name], array, rtol=2e-3, atol=1e-3 * scale, err_msg=name)


@needs_kernels
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_they_are_what_two_dense_parameters_would_be(optimizer):
    first = Training(optimizer).steps(0, 20)
    saved = first.save()
    if optimizer[0] == "adam":
        assert {name for name in saved.optimizer if "drift" in name} == {"1.drift", "3.drift"}
    found = Training(optimizer).restore(saved).steps(20, 40).values()
    for name, whole in first.steps(20, 40).values().items():
        assert found[name].tobytes() == whole.tobytes(), name
    assert_close(found, Training(optimizer, sparse=()).steps(0, 40).values())


@needs_kernels
@pytest.mark.parametrize("sparse", [("narrow",), ("wide",), ()])
def test_a_saved_state_fits_fewer_tables(sparse):
    first = Training(OPTIMIZERS[0]).steps(0, 20)
    found = Training(OPTIMIZERS[0], sparse).restore(first.save()).steps(20, 40)
    assert_close(found.values(), first.steps(20, 40).values())


def train_together(world: World, name: str) -> None:
    """Train with a save and a restoration in the middle, then with a gradient of which only a table overflows."""
    saved = Training(OPTIMIZERS[0], world=world).steps(0, 6).save()
    training = Training(OPTIMIZERS[0], world=world).restore(saved).steps(6, 12)
    values = training.values()
    digest = hashlib.sha256(b"".join(each.tobytes() for each in values.values())).hexdigest()
    assert len(set(world.gather(digest, "hash"))) == 1
    for place, table in enumerate(BOTH):
        culprit = world.size - 1 - place
        if world.rank == culprit:
            overflow(training.engine.engines[table])
        outcome = training.step.all_reduce(training.batch(12), 13, training.step.gradients(training.batch(12), 13))
        bias = getattr(training.network, table).bias
        assert np.isfinite(bias.grad().asnumpy()).all()
        assert outcome.bad_gradients == tuple(range(culprit, world.size)), outcome
    if world.is_root:
        np.savez(f"{name}.npz", **values)
        print("summed by", training.trainer.by)


def overflow(engine: Any) -> None:
    """Weigh the classes so much that the gradient of the biases is just finite."""
    classes = engine.network.shape.classes
    weights = np.full(classes, 4e37, np.float32)
    engine._kernels.call("crepe_objective", 0.0, weights.ctypes.data, classes, 0, 0)


RANKS = """
from crepe_dist.distributed.join import join
with join() as world:
    from crepe_dist.distributed import host_sums, shared_memory
    {layout}
    from tests.test_two_tables import train_together
    train_together(world, "many")
"""


@needs_kernels
@pytest.mark.parametrize(
    ("hosts", "by"),
    [
        ("aa", "shared memory"),
        ("aba", "shared memory and Horovod"),
        pytest.param("ab", "Horovod", marks=pytest.mark.slow),
    ],
)
def test_many_ranks_compute_what_one_does(tmp_path, hosts, by):
    places = [(host, hosts[:rank].count(host)) for rank, host in enumerate(hosts)]
    printed = run(script(len(hosts), RANKS.format(layout=PLACES.format(places=places))), tmp_path)
    assert f"summed by {by}\n" in printed
    with np.load(tmp_path / "many.npz") as found:
        assert_close(found, Training(OPTIMIZERS[0], sparse=()).steps(0, 12).values())
