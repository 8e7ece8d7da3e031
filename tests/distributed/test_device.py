"""Choice of a GPU for each rank, with a stand-in for the driver."""

from __future__ import annotations

import re
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


class TestOneProcess:
    @pytest.fixture(autouse=True)
    def two_gpus(self, monkeypatch):
        monkeypatch.setattr(device.driver, "count", lambda: 2)
        monkeypatch.setattr(device.driver, "uuid_of", str)

    @staticmethod
    def refuse(*numbers):
        """Return a check that refuses some GPUs."""

        def check(gpu):
            if gpu.device_id in numbers:
                raise UserError(f"GPU {gpu.device_id} is too old")

        return check

    def test_first_gpu(self):
        assert device.pick("auto", self.refuse()) == device.pick("gpu", self.refuse()) == Device("gpu", 0)
        assert device.pick("cpu", self.refuse()) == CPU
        with pytest.raises(UserError, match="does not exist"):
            device.pick("tpu", self.refuse())

    def test_gpus_that_nothing_can_use_are_left_out(self):
        assert device.pick("auto", self.refuse(0)) == device.pick("gpu", self.refuse(0)) == Device("gpu", 1)
        assert device.pick("auto", self.refuse(0, 1)) == CPU
        with pytest.raises(UserError, match="GPU 0 is too old"):
            device.pick("gpu", self.refuse(0, 1))

    @pytest.mark.parametrize(
        ("there", "why"), [(True, "the NVIDIA driver shows none"), (False, "no NVIDIA driver was found: it is gone")]
    )
    def test_without_gpu(self, there, why, monkeypatch):
        monkeypatch.setattr(device.driver, "count", lambda: 0)
        missing = None if there else UserError("no NVIDIA driver was found", "it is gone", "install it")
        monkeypatch.setattr(device.driver, "missing", lambda: missing)
        assert device.pick("auto", self.refuse()) == CPU
        with pytest.raises(UserError, match="no GPU was found") as raised:
            device.pick("gpu", self.refuse())
        assert why in raised.value.why

    def test_if_only_some_ranks_have_none_the_remedy_is_about_machines(self, monkeypatch):
        monkeypatch.setattr(device.driver, "count", lambda: 0)
        with pytest.raises(UserError) as raised:
            device.pick("gpu", self.refuse(), BesideAnother())
        assert "[only on rank 0 (host " in raised.value.what
        assert re.match("run .*doctor on these hosts", raised.value.remedy)
        assert "files" not in raised.value.remedy


@pytest.mark.parametrize(
    ("seen", "numbers"),
    [
        ([("a", "AB"), ("a", "AB")], [0, 1]),
        ([("a", "ABCD"), ("b", "EFGH"), ("a", "ABCD"), ("b", "EFGH")], [0, 0, 1, 1]),
        ([("a", "A"), ("a", "B"), ("b", "C"), ("b", "D")], [0, 0, 0, 0]),
        ([("pod", "A"), ("pod", "B")], [0, 0]),
        ([("one", "AB"), ("other", "AB")], [0, 1]),
        ([("same", "AB"), ("same", "CD"), ("same", "AB"), ("same", "CD")], [0, 0, 1, 1]),
        ([("a", "BA"), ("a", "AB")], [0, 0]),
        ([("a", ""), ("a", "A")], [None, 0]),
        ([("a", "")], [None]),
    ],
    ids=[
        "all visible", "two hosts, ranks in turns", "one visible a process", "containers of one name",
        "containers of two names with the same GPUs", "containers of one name, two GPUs each", "another order",
        "none visible", "one process without",
    ],
)  # fmt: skip
def test_each_rank_gets_a_gpu_of_its_own(seen, numbers):
    assert device.assign(seen) == numbers
    taken = [gpus[number] for (_, gpus), number in zip(seen, numbers) if number is not None]
    assert len(set(taken)) == len(taken)


@pytest.mark.parametrize(
    ("seen", "what", "why"),
    [
        ([("a", "A"), ("a", "A")], "rank 1 (host a)", "it sees 1 GPU, used by rank 0 (host a); "),
        ([("one", "A"), ("other", "A")], "rank 1 (host other)", "it sees 1 GPU, used by rank 0 (host one); "),
        (
            [("a", "AB"), ("a", "AB"), ("a", "AB")],
            "rank 2 (host a)",
            "it sees 2 GPUs, used by rank 0 (host a) and rank 1 (host a); ",
        ),
    ],
)
def test_two_ranks_on_one_gpu_are_an_error(seen, what, why):
    with pytest.raises(UserError) as raised:
        device.assign(seen)
    assert raised.value.what == f"{what} has no GPU of its own"
    assert raised.value.why.startswith(why)
    assert "--gpus-per-task=1" in raised.value.remedy


def test_two_processes(driver):
    """Two processes under horovodrun, with what launchers, containers and drivers let them see."""
    body = f"""{IN_A_WORLD}
    rank = str(world.rank)
    for case, told in {{
        "all visible": {{}},
        "one visible": {{"CUDA_VISIBLE_DEVICES": rank}},
        "another order": {{"CUDA_VISIBLE_DEVICES": "1,0" if world.rank else "0,1"}},
        "the same visible": {{"CUDA_VISIBLE_DEVICES": "1"}},
        "one on each machine": {{"DRIVER_GPUS": "1", "DRIVER_MACHINE": rank}},
        "only one has a GPU": {{"DRIVER_GPUS": rank}},
        "MIG": {{"DRIVER_MIG": "1", "CUDA_VISIBLE_DEVICES": rank}},
        "MIG, old driver": {{"DRIVER_MIG": "1", "DRIVER_OLD": "1", "CUDA_VISIBLE_DEVICES": rank}},
        "old driver": {{"DRIVER_OLD": "1", "CUDA_VISIBLE_DEVICES": rank}},
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
        "one visible: ['gpu(0)', 'gpu(0)']",
        "another order: ['gpu(0)', 'gpu(0)']",
        "the same visible: ['rank 1', 'rank 1']",
        "one on each machine: ['gpu(0)', 'gpu(0)']",
        "only one has a GPU: ['cpu(0)', 'gpu(0)']",
        "MIG: ['gpu(0)', 'gpu(0)']",
        "MIG, old driver: ['rank 1', 'rank 1']",
        "old driver: ['gpu(0)', 'gpu(0)']",
    ]


def test_train_names_two_ranks_on_one_gpu(driver, data, tmp_path):
    body = f"""
import sys
from crepe_dist import command, train
from crepe_dist.training import engine_setup
engine_setup.plan = lambda *_: None
sys.argv = ["train", "--data", {str(data)!r}]
command.run(train.main)
"""
    done = subprocess.run(
        [*launch_prefix(2), sys.executable, "-c", body],
        cwd=tmp_path,
        env=cuda_driver.environment(driver),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode != 0
    assert done.stdout.count("has no GPU of its own") == 1
    assert "it sees 1 GPU, used by rank 0 (host " in done.stdout
