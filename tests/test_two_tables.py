"""Training of a network with two tables and dense layers: the same bits however a batch is divided."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from crepe_dist.data.batch import pack
from crepe_dist.data.order import largest_share, share
from crepe_dist.distributed.world import World
from crepe_dist.native import library
from crepe_dist.networks.crepe.shape import CrepeShape
from tests import test_table
from tests.chaos.harness import slow
from tests.conftest import needs_kernels, run
from tests.distributed.test_world import script
from tests.test_table import OPTIMIZERS

DOCUMENTS = 19  # three groups of documents that stay together, the last one smaller
SHAPE = CrepeShape(69, 24, 3, longest=3, buckets=1 << 12, reach=2, rows=300, width=20, blocks=2, stride=1, dropout=0.2)


class Training(test_table.Training):
    """A network, its exchange and its steps on this rank's share of each batch."""

    documents = DOCUMENTS
    significant = "ngrams.significant"

    def __init__(self, optimizer=OPTIMIZERS[0], *, sparse=True, world=None):
        super().__init__(SHAPE, optimizer, sparse=sparse, clip_norm=0.5, world=world)

    def batch(self, number):
        generator = np.random.default_rng(number)
        # Each batch has characters of its own, so that most rows are not touched for many steps.
        first = number % 16 * 4
        codes = generator.integers(first, first + 5, (DOCUMENTS, SHAPE.feature_len)).astype(np.uint8)
        labels = generator.integers(0, SHAPE.classes, DOCUMENTS).astype(np.int32)
        place = (self.world.rank, self.world.size)
        start, stop = share(0, DOCUMENTS, *place, self.engine.group_size)
        rows = largest_share(DOCUMENTS, self.world.size, self.engine.group_size)
        return pack(codes[start:stop], labels[start:stop], rows, DOCUMENTS, start)

    def rate(self, number):
        return 0.002

    def values(self):
        return {name: array for name, array in super().values().items() if "significant" not in name}

    def digest(self):
        return hashlib.sha256(b"".join(each.tobytes() for each in self.values().values())).hexdigest()


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        scale = np.abs(array).max()
        assert scale > 0
        np.testing.assert_allclose(found[name], array, rtol=2e-3, atol=1e-3 * scale, err_msg=name)


@needs_kernels
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_they_are_what_dense_parameters_would_be(optimizer):
    first = Training(optimizer).steps(0, 10)
    saved = first.save()
    found = Training(optimizer).restore(saved).steps(10, 20)
    assert found.digest() == first.steps(10, 20).digest()
    assert_close(found.values(), Training(optimizer, sparse=False).steps(0, 20).values())


@needs_kernels
@pytest.mark.parametrize("build", library.runnable())
def test_threads_do_not_matter(build, monkeypatch):
    monkeypatch.setenv(library.SWITCH, build)
    found = set()
    for threads in (1, 2, 3, 5):
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        found.add(Training().steps(0, 10).digest())
    assert len(found) == 1


def test_builds_with_a_fused_multiply_add_agree_in_float32(monkeypatch):
    """That for AMX was not tried; its float32 is the code of AVX512."""
    builds = [name for name in library.runnable() if name in ("avx512_bf16", "avx512", "avx2")]
    if len(builds) < 2:
        pytest.skip("this processor has fewer than two of the builds")
    found = set()
    for build in builds:
        monkeypatch.setenv(library.SWITCH, build)
        found.add(Training().steps(0, 10).digest())
    assert len(found) == 1


def train_together(world: World) -> None:
    """Train with a save and a restoration in the middle, then with a gradient that is not finite."""
    saved = Training(world=world).steps(0, 6).save()
    training = Training(world=world).restore(saved).steps(6, 12)
    digest = training.digest()
    assert world.gather(digest, "digest") == [digest] * world.size
    if world.is_root:
        print("loss", large_loss(training))
    else:
        large_loss(training)
    culprit = min(world.size, 3) - 1  # a fourth rank has no documents
    if world.rank == culprit:
        weigh(training.engine, 3e38)  # gradients are infinite
    outcome = training.step.sum(training.batch(12), 13)
    assert outcome.bad_gradients == (culprit,), outcome
    if world.is_root:
        print("summed by", training.exchange.by)
        print("parameters", digest)


def weigh(engine, weight):
    """Weigh all classes."""
    weights = np.full(SHAPE.classes, weight, np.float32)
    engine._kernels.call("crepe_objective", 0.0, weights.ctypes.data, SHAPE.classes, 0, 0)


def large_loss(training):
    """Compute the loss of a batch, of a thousand nats a document."""
    weigh(training.engine, 1000)
    return training.step.sum(training.batch(12), 13).loss


RANKS = """
from crepe_dist.distributed.join import join
with join() as world:
    from crepe_dist.exchange import between_hosts, host_memory
    {layout}
    from tests.test_two_tables import train_together
    train_together(world)
"""


PLACES = "host, world.local_rank = {places}[world.rank]; between_hosts.host_name = lambda: host"
NO_MEMORY = "host_memory._create = lambda size: None"


@needs_kernels
@pytest.mark.parametrize(
    ("hosts", "by"),
    [
        ("aa", "shared memory"),
        slow("aabb", "shared memory and Horovod"),
        ("aba", "shared memory and Horovod"),
        ("abbc", "shared memory and Horovod"),
        slow("abc", "Horovod"),
        ("", "Horovod"),
    ],
)
def test_processes_and_hosts_do_not_matter(tmp_path, hosts, by):
    places = [(host, hosts[:rank].count(host)) for rank, host in enumerate(hosts)]
    layout = PLACES.format(places=places) if hosts else NO_MEMORY
    printed = run(script(len(hosts) or 3, RANKS.format(layout=layout)), tmp_path)
    assert f"summed by {by}\n" in printed
    one = Training().steps(0, 12)
    assert f"parameters {one.digest()}\n" in printed
    assert f"loss {large_loss(one)}\n" in printed
