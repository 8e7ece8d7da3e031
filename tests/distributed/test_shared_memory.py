"""All-reduce in shared memory within a host, and its fallback to Horovod."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from crepe_dist.distributed import host_sums, shared_memory
from crepe_dist.errors import ExitCode
from tests.conftest import needs_kernels, run
from tests.distributed.test_world import script

# Four steps of a trainer on gradients that each rank makes up.
BODY = """
import numpy as np
from crepe_dist.distributed.join import join
with join() as world:
    import mxnet as mx
    from mxnet import gluon
    from crepe_dist.distributed import host_sums, shared_memory
    {before}
    parameters = gluon.ParameterDict()
    shapes = dict(a=(3, 5), b=(1,), c=(40, 33))
    for name, shape in shapes.items():
        parameters.get(name, shape=shape, init="zeros")
    parameters.initialize()
    trainer = world.trainer(parameters, mx.optimizer.create("sgd", learning_rate=1.0))
    print("summed by", trainer.by)
    generators = [np.random.default_rng(rank) for rank in range(world.size)]
    expected = dict.fromkeys(shapes, 0.0)
    for step in range(4):
        for name, parameter in parameters.items():
            made = [generator.standard_normal(parameter.shape).astype("float32") for generator in generators]
            parameter.grad()[:] = mx.nd.array(made[world.rank])
            parameter.data()._fresh_grad = True
            expected[name] = expected[name] - sum(made) / world.size
        numbers = np.array([2**24 - 1, step, world.rank], np.float32)
        exchanged = trainer.all_reduce(numbers, mx.nd.array([0.1 * world.rank]))
        losses = np.float32([0.1 * rank for rank in range(world.size)]).tolist()
        assert exchanged.rows.tolist() == [[2**24 - 1, step, *each] for each in enumerate(losses)], exchanged
        assert exchanged.not_finite == (), exchanged
        trainer.gluon.update(1)
    for name, parameter in parameters.items():
        value = parameter.data().asnumpy()
        assert np.allclose(value, expected[name], atol=1e-5)
        assert len(set(world.gather(value.tobytes().hex(), name))) == 1
    for dtype in ("float32", "float64", "int32", "int64"):
        total = world.sum(np.array([[1, world.rank]], dtype=dtype), "t")
        assert total.dtype == dtype and total.tolist() == [[world.size, sum(range(world.size))]], total
    assert world.sum(np.ones(100_000), "large").sum() == 100_000 * world.size  # by Horovod
    last = parameters.get("c").grad()
    nothing = np.zeros(1, np.float32), mx.nd.zeros(1)
    for bad, culprit in ((np.nan, 0), (np.inf, world.size - 1)):
        last[:] = bad if world.rank == culprit else 1
        assert trainer.all_reduce(*nothing).not_finite == (culprit,)
    last[:] = 3e38
    assert trainer.all_reduce(*nothing).not_finite == tuple(range(world.size))  # the sum alone overflows
    print("all well on", world.rank)
    parameters.get("a").cast("float32")  # makes another gradient array
    try:
        trainer.gluon.allreduce_grads()
    except RuntimeError as error:
        print(error)
"""


def leftovers() -> set[Path]:
    """Files that stay. Those of another run live for a moment, until all of its processes have opened them."""
    found, due = set(Path("/dev/shm").glob("crepe_dist-*")), time.monotonic() + 10
    while found and time.monotonic() < due:
        time.sleep(0.1)
        found &= set(Path("/dev/shm").glob("crepe_dist-*"))
    return found


@needs_kernels  # they add the gradients
@pytest.mark.parametrize("processes", [2, 3])
def test_sums_are_right_and_the_same_bits_everywhere(tmp_path, processes):
    printed = run(script(processes, BODY.format(before="")), tmp_path)
    assert printed.count("all well") == printed.count("summed by shared memory\n") == processes
    assert printed.count("another gradient array, which is not in shared memory") == processes
    assert not leftovers()


LAYOUT = "host, world.local_rank = {places}[world.rank]; host_sums.host_name = lambda: host"


@needs_kernels
@pytest.mark.parametrize(
    "hosts",
    [
        pytest.param(["a", "a", "b", "b"], id="two hosts"),
        pytest.param(["a", "b", "a"], id="of different size, ranks in turns"),
        pytest.param(["a", "b", "b", "c"], id="three hosts"),
    ],
)
def test_sums_over_hosts_are_right_and_the_same_bits_everywhere(tmp_path, hosts):
    places = [(host, hosts[:rank].count(host)) for rank, host in enumerate(hosts)]
    printed = run(script(len(hosts), BODY.format(before=LAYOUT.format(places=places))), tmp_path)
    assert printed.count("all well") == printed.count("summed by shared memory and Horovod\n") == len(hosts)
    assert printed.count("another gradient array, which is not in shared memory") == len(hosts)
    assert not leftovers()


def test_ranks_are_grouped_by_host():
    assert host_sums.hosts_of([("a", 1), ("b", 0), ("a", 0)]) == [[2, 0], [1]]
    assert host_sums.hosts_of([("a", 0), ("a", 0)]) is None  # two containers that say the same name
    assert host_sums.hosts_of([("a", 1), ("b", 0)]) is None


@pytest.mark.parametrize(
    "before",
    [
        "world.local_rank = 0; host_sums.host_name = lambda: str(world.rank)  # each on a host of its own",
        "if world.rank == 1: shared_memory._create = lambda size: None  # no room in /dev/shm",
        "if world.rank == 0: shared_memory._open = lambda names, size: []  # another container's /dev/shm",
        "shared_memory.library.find = lambda: (None, 'not compiled')",
    ],
)
def test_where_one_process_cannot_share_all_use_horovod(tmp_path, before):
    printed = run(script(2, BODY.format(before=before)), tmp_path)
    assert printed.count("all well") == printed.count("summed by Horovod\n") == 2
    assert not leftovers()


def test_no_room_is_found_out_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)
    assert shared_memory._create(1 << 60) is None
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path / "missing")
    assert shared_memory._create(10) is None
    assert shared_memory._open(["missing"], 10) == []


# Rank {dead} is killed while the others wait in the sum. No process ends before all that are left have said why.
KILLED = """
import os, time
from pathlib import Path
from crepe_dist import command
from crepe_dist.distributed.join import join
def main():
    with join() as world:
        import mxnet as mx
        from mxnet import gluon
        from crepe_dist.distributed import host_sums, shared_memory
        {before}
        parameters = gluon.ParameterDict()
        parameters.get("a", shape=(3,), init="zeros")
        parameters.initialize()
        trainer = world.trainer(parameters, mx.optimizer.create("sgd"))
        trainer.gluon.allreduce_grads()
        if world.rank == {dead}:
            os.kill(os.getpid(), 9)
        trainer.gluon.allreduce_grads()
if (child := os.fork()) == 0:
    command.run(main)
_, status = os.waitpid(child, 0)
Path("ended " + os.environ["HOROVOD_RANK"]).touch()
due = time.monotonic() + 60
while time.monotonic() < due and len(list(Path().glob("ended *"))) < int(os.environ["HOROVOD_SIZE"]):
    time.sleep(0.05)
print("rank", os.environ["HOROVOD_RANK"], "ended with", os.waitstatus_to_exitcode(status))
"""


@needs_kernels
@pytest.mark.parametrize(("hosts", "dead"), [("aa", 1), ("aabb", 1), ("aabb", 2)])
def test_a_process_that_ends_is_noticed_even_if_the_launcher_does_not(tmp_path, hosts, dead):
    places = [(host, hosts[:rank].count(host)) for rank, host in enumerate(hosts)]
    printed = run(
        script(len(hosts), KILLED.format(before=LAYOUT.format(places=places), dead=dead)), tmp_path, seconds=90
    )
    for rank in range(len(hosts)):
        assert f"rank {rank} ended with {-9 if rank == dead else ExitCode.PEER_GONE}\n" in printed, printed
        assert (f"[rank {rank}] stopped because another process ended" in printed) == (rank != dead), printed


def test_what_an_ended_process_left_is_removed_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)
    left, young, other = (tmp_path / name for name in ("crepe_dist-1-left", "crepe_dist-2-young", "something"))
    for path in (left, young, other):
        path.touch()
    mine = shared_memory._create(100)
    assert mine is not None
    for path in (left, other, mine):
        os.utime(path, (0, 0))
    shared_memory.remove_stale()
    assert sorted(tmp_path.iterdir()) == sorted([young, other, mine])
