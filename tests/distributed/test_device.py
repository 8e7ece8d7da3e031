"""Choice of a GPU for each rank, with a stand-in for the driver."""

from __future__ import annotations

import subprocess
import sys

import pytest

from crepe_dist.distributed import device
from crepe_dist.distributed.device import CPU, Device
from crepe_dist.distributed.world import World
from crepe_dist.errors import UserError
from tests.conftest import launch_prefix
from tests.helpers import cuda_driver

IN_A_WORLD = """
import os
from crepe_dist.distributed.join import join
from crepe_dist.distributed import device
from crepe_dist.errors import UserError
with join() as world:
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return cuda_driver.driver(tmp_path_factory.mktemp("driver"))


class BesideAnother(World):
    """Rank 0 of two; the other one reports success."""

    size = 2

    def gather(self, value, name):
        return [value, {"host": "other", "error": None, "same": None}]


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(device.driver, "count", lambda: 2)
    monkeypatch.setattr(device.driver, "uuid_of", str)


def refuse(*numbers):
    """Return a check that refuses some GPUs."""

    def check(gpu):
        if gpu.device_id in numbers:
            raise UserError(f"GPU {gpu.device_id} is too old")

    return check


@pytest.mark.parametrize(("refused", "chosen"), [((), Device("gpu", 0)), ((0,), Device("gpu", 1)), ((0, 1), CPU)])
def test_the_first_gpu_that_something_can_use(two_gpus, refused, chosen):
    assert device.pick("cpu", refuse(*refused)) == CPU
    assert device.pick("auto", refuse(*refused)) == chosen
    if chosen == CPU:
        with pytest.raises(UserError, match="GPU 0 is too old"):
            device.pick("gpu", refuse(*refused))
    else:
        assert device.pick("gpu", refuse(*refused)) == chosen


def test_without_gpu(monkeypatch):
    monkeypatch.setattr(device.driver, "count", lambda: 0)
    assert device.pick("auto", refuse()) == CPU
    with pytest.raises(UserError, match="no GPU was found"):
        device.pick("gpu", refuse())
    with pytest.raises(UserError) as raised:
        device.pick("gpu", refuse(), BesideAnother())
    assert "[only on rank 0 (host " in raised.value.what
    assert "doctor on these hosts" in raised.value.remedy


@pytest.mark.parametrize(
    ("seen", "numbers"),
    [
        ([("a", "ABCD"), ("b", "EFGH"), ("a", "ABCD"), ("b", "EFGH")], [0, 0, 1, 1]),
        ([("a", "A"), ("a", "B"), ("b", "C"), ("b", "D")], [0, 0, 0, 0]),
        ([("one", "AB"), ("other", "AB")], [0, 1]),
        ([("a", "BA"), ("a", "AB")], [0, 0]),
        ([("a", ""), ("a", "")], [None, None]),
    ],
    ids=[
        "two hosts, ranks in turns", "one visible a process", "containers of two names with the same GPUs",
        "another order", "none visible",
    ],
)  # fmt: skip
def test_each_rank_gets_a_gpu_of_its_own(seen, numbers):
    assert device.assign(seen) == numbers
    taken = [gpus[number] for (_, gpus), number in zip(seen, numbers) if number is not None]
    assert len(set(taken)) == len(taken)


def test_ranks_with_and_without_gpus_are_refused():
    with pytest.raises(UserError, match=r"others have none: rank 1 \(host b\)"):
        device.assign([("a", "A"), ("b", "")])


def test_two_ranks_on_one_gpu_are_an_error():
    with pytest.raises(UserError) as raised:
        device.assign([("a", "AB"), ("a", "AB"), ("a", "AB")])
    assert raised.value.what == "rank 2 (host a) has no GPU of its own"
    assert raised.value.why.startswith("it sees 2 GPUs, used by rank 0 (host a) and rank 1 (host a); ")


def test_two_processes(driver):
    """Two processes under horovodrun, with what launchers, containers and drivers let them see."""
    body = f"""{IN_A_WORLD}
    rank = str(world.rank)
    for case, told in {{
        "all visible": {{}},
        "the same visible": {{"CUDA_VISIBLE_DEVICES": "1"}},
        "one on each machine": {{"DRIVER_GPUS": "1", "DRIVER_MACHINE": rank}},
        "one visible to each": {{"CUDA_VISIBLE_DEVICES": rank}},
    }}.items():
        os.environ.update(told)
        try:
            chosen = device.pick("auto", lambda gpu: None, world)
        except UserError as error:
            assert error.on_all_ranks
            chosen = error.what.split(" (")[0]
        for name in told:
            del os.environ[name]
        os.environ["DRIVER_GPUS"] = "2"
        both = world.gather(str(chosen), "chosen")
        if world.is_root:
            print(case, both, sep=": ")
"""
    done = subprocess.run(
        [*launch_prefix(2), sys.executable, "-c", body],
        env=cuda_driver.environment(driver, DRIVER_GPUS=2),
        stdout=-1,
        text=True,
        timeout=200,
        check=True,
    )
    shown = [line.partition(">:")[2] or line for line in done.stdout.splitlines()]
    assert shown == [
        "all visible: ['gpu(0)', 'gpu(1)']",
        "the same visible: ['rank 1', 'rank 1']",
        "one on each machine: ['gpu(0)', 'gpu(0)']",
        "one visible to each: ['gpu(0)', 'gpu(0)']",
    ]
