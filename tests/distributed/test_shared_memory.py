"""Gradients of the processes of one host are summed in shared memory, and by Horovod where that cannot be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.conftest import run
from tests.distributed.test_world import script

# Four steps of a trainer on gradients that each rank makes up.
BODY = """
import numpy as np
from crepe_dist.cluster.world import join
with join() as world:
    import mxnet as mx
    from mxnet import gluon
    from crepe_dist.cluster import shared_memory
    {before}
    parameters = gluon.ParameterDict()
    shapes = dict(a=(3, 5), b=(1,), c=(40, 33))
    for name, shape in shapes.items():
        parameters.get(name, shape=shape, init="zeros")
    parameters.initialize()
    trainer = world.trainer(parameters, "sgd", dict(learning_rate=1.0))
    print("shared" if "sum" in str(trainer._allreduce_grads) else "horovod")
    generators = [np.random.default_rng(rank) for rank in range(world.size)]
    expected = dict.fromkeys(shapes, 0.0)
    for step in range(4):
        for name, parameter in parameters.items():
            made = [generator.standard_normal(parameter.shape).astype("float32") for generator in generators]
            parameter.grad()[:] = mx.nd.array(made[world.rank])
            parameter.data()._fresh_grad = True
            expected[name] = expected[name] - sum(made) / world.size
        trainer.allreduce_grads()
        trainer.update(1)
    for name, parameter in parameters.items():
        value = parameter.data().asnumpy()
        assert np.allclose(value, expected[name], atol=1e-5)
        assert len(set(world.gather(value.tobytes().hex(), name))) == 1
    print("all well on", world.rank)
    parameters.get("a").cast("float32")  # makes another gradient array
    try:
        trainer.allreduce_grads()
    except RuntimeError as error:
        print(error)
"""


def leftovers() -> list[Path]:
    return list(Path("/dev/shm").glob("crepe_dist-*"))


@pytest.mark.parametrize("processes", [2, 3])
def test_sums_are_right_and_the_same_bits_everywhere(tmp_path, processes):
    printed = run(script(processes, BODY.format(before="")), tmp_path)
    assert printed.count("all well") == printed.count("shared\n") == processes
    assert printed.count("another gradient array, which is not in shared memory") == processes
    assert not leftovers()


@pytest.mark.parametrize(
    "before",
    [
        "world.local_size = 1  # as if each were on a host of its own",
        "if world.rank == 1: shared_memory._create = lambda size: None  # no room in /dev/shm",
        "if world.rank == 0: shared_memory._open = lambda names, size: []  # another container's /dev/shm",
        "shared_memory.library.find = lambda: (None, 'not compiled')",
    ],
)
def test_where_one_process_cannot_share_all_use_horovod(tmp_path, before):
    printed = run(script(2, BODY.format(before=before)), tmp_path)
    assert printed.count("all well") == printed.count("horovod\n") == 2
    assert not leftovers()


def test_no_room_is_found_out_at_once(tmp_path, monkeypatch):
    from crepe_dist.cluster import shared_memory

    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)
    assert shared_memory._create(1 << 60) is None
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path / "missing")
    assert shared_memory._create(10) is None
    assert shared_memory._open(["missing"], 10) == []


def test_a_process_that_does_not_come_is_an_error_in_the_end():
    body = """
import ctypes
from crepe_dist.cluster import shared_memory
from crepe_dist.native import library
memory = ctypes.create_string_buffer(64)
gradients = shared_memory.SharedGradients.__new__(shared_memory.SharedGradients)
gradients._functions, gradients._barrier, gradients._memories = library.find()[0].functions, memory, [0, 0]
gradients._barrier = ctypes.addressof(memory)
shared_memory.GIVE_UP_SECONDS = 0.5
try:
    gradients._wait_for_all()
except RuntimeError as error:
    print(error)
"""
    assert "did not come" in run([sys.executable, "-c", body], Path.cwd())
