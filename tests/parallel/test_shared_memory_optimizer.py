"""All-reduce in shared memory within a host, and its fallback to Horovod."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from crepe_dist.errors import ExitCode
from crepe_dist.parallel import host_shared_memory, inter_host
from tests.conftest import needs_kernels, run
from tests.distributed.test_process_group import script, supervised

# Four sums of whole numbers that each rank makes up.
BODY = """
import numpy as np
from crepe_dist.distributed.init_process_group import join
with join() as world:
    from crepe_dist.exchange import host_memory
    from crepe_dist.optim.fixed_point import FIRST, Parameter, Quanta
    from crepe_dist.optim.optimizers import Optimizer
    from crepe_dist.parallel.shared_memory_optimizer import SharedMemoryExchange
    from crepe_dist.settings.options import OptimizerOptions
    {before}
    shapes = dict(a=(3, 5), b=(1,), c=(40, 33))
    parameters = {{name: Parameter(np.zeros(shape, np.float32)) for name, shape in shapes.items()}}
    quanta = Quanta(parameters)
    quanta.restore(np.full(3, FIRST, np.int32))
    exchange = SharedMemoryExchange(world, Optimizer(OptimizerOptions(name="sgd")), quanta)
    print("summed by", exchange.by)
    def compute(loss):
        exchange.ready()
        quanta.begin(1)
        for name, parameter in parameters.items():
            parameter.gradient[...] = made[name][world.rank]
        return loss
    generators = [np.random.default_rng(rank) for rank in range(world.size)]
    for step in range(4):
        quanta.bounds[:] = 0, 1, 2**16
        made = {{name: [g.integers(-(2**27), 2**27, shape) for g in generators] for name, shape in shapes.items()}}
        rows, not_finite, _ = exchange._all_reduce(compute(0.1 * world.rank), (2**40 - 1, step, world.rank))
        assert rows == [[0.1 * rank, 2**40 - 1, step, rank] for rank in range(world.size)], rows
        assert not_finite == ()
        for name, parameter in parameters.items():
            assert (parameter.gradient == sum(made[name])).all(), name
    for culprit in (0, world.size - 1):
        quanta.bounds[0] = np.nan if world.rank == culprit else 1
        assert exchange._all_reduce(compute(0.0), ())[1] == (culprit,)
    print("all well on", world.rank)
"""


def leftovers() -> set[Path]:
    """Files that stay. Those of another run live for a moment, until all of its processes have opened them."""
    found, due = set(Path("/dev/shm").glob("crepe_dist-*")), time.monotonic() + 10
    while found and time.monotonic() < due:
        time.sleep(0.1)
        found &= set(Path("/dev/shm").glob("crepe_dist-*"))
    return found


@needs_kernels  # they add the gradients
def test_sums_are_right_and_the_same_bits_everywhere(tmp_path):
    printed = run(supervised(3, BODY.format(before="")), tmp_path)
    assert printed.count("all well") == printed.count("summed by shared memory\n") == 3
    assert not leftovers()


@needs_kernels
@pytest.mark.parametrize("largest", [2**15 - 1, 2**15, 2**31 - 1])
def test_whole_numbers_of_any_size_travel(largest):
    numbers = np.random.default_rng(0).integers(-largest - 1, largest, 1001).astype(np.int32)
    message = inter_host.shortened(numbers)
    assert (inter_host.widened(message, 1001) == numbers).all()
    assert len(message) == 501 + np.count_nonzero(abs(numbers.astype(np.int64)) >= 2**15)
    for wrong in (message[:-1], np.append(message, np.int32(0))):
        with pytest.raises(RuntimeError):
            inter_host.widened(wrong, 1001)


def test_where_one_process_cannot_share_all_use_horovod(tmp_path):
    before = "if world.rank == 0: host_memory._open = lambda names, size: ([], [])  # another container's /dev/shm"
    printed = run(script(2, BODY.format(before=before)), tmp_path)
    assert printed.count("all well") == printed.count("summed by Horovod\n") == 2
    assert not leftovers()


@pytest.mark.parametrize(("file", "opened"), [(None, 2), ("missing", 2), ("own", 0)])
def test_memory_that_cannot_be_shared_is_given_back(tmp_path, monkeypatch, file, opened):
    def gather(value, name):
        answer = opened if name == "shared memory opened" else value if file == "own" else file
        return [value, answer]

    monkeypatch.setattr(host_shared_memory, "FOLDER", tmp_path)
    ranks: Any = SimpleNamespace(rank=0, gather=gather)
    before = os.listdir("/proc/self/fd")  # an open file keeps its memory, even if it is removed
    assert host_shared_memory.share_memory(ranks, [0, 1], 1 << 20) is None
    assert os.listdir("/proc/self/fd") == before
    assert not list(tmp_path.iterdir())


def test_processes_with_gpus_are_watched_without_kernels_for_cpus(monkeypatch):
    monkeypatch.setenv("CREPE_DIST_KERNELS", "none")
    host_shared_memory.private_memory(1 << 12).check()


# Rank {dead} is killed while the others wait in the sum. No process ends before all that are left have said why.
KILLED = """
import os, time
from pathlib import Path
from crepe_dist import command
from crepe_dist.distributed.init_process_group import join
def main():
    with join() as world:
        import numpy as np
        from crepe_dist.optim.fixed_point import Parameter, Quanta
        from crepe_dist.optim.optimizers import Optimizer
        from crepe_dist.parallel.shared_memory_optimizer import SharedMemoryExchange
        from crepe_dist.settings.options import OptimizerOptions
        {before}
        quanta = Quanta(dict(a=Parameter(np.zeros(3, np.float32))))
        exchange = SharedMemoryExchange(world, Optimizer(OptimizerOptions(name="sgd")), quanta)
        exchange._all_reduce(0.0, ())
        if world.rank == {dead}:
            os.kill(os.getpid(), 9)
        exchange._all_reduce(0.0, ())
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
def test_a_process_that_ends_is_noticed_even_if_the_launcher_does_not(tmp_path):
    dead = 2
    printed = run(script(4, KILLED.format(before="world.hosts = [[0, 1], [2, 3]]", dead=dead)), tmp_path)
    for rank in range(4):
        assert f"rank {rank} ended with {-9 if rank == dead else ExitCode.PEER_GONE}\n" in printed, printed
        assert (f"[rank {rank}] stopped because another process ended" in printed) == (rank != dead), printed


def test_what_an_ended_process_left_is_removed_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(host_shared_memory, "FOLDER", tmp_path)
    left, young, other = (tmp_path / name for name in ("crepe_dist-1-left", "crepe_dist-2-young", "something"))
    for path in (left, young, other):
        path.touch()
    created = host_shared_memory._create(100)
    assert created is not None
    mine, _ = created
    for path in (left, other, mine):
        os.utime(path, (0, 0))
    host_shared_memory.remove_stale()
    assert sorted(tmp_path.iterdir()) == sorted([young, other, mine])
