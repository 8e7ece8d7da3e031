"""Selection of a GPU for each rank, with a simulated driver."""

import pytest

from crepe_dist.distributed import device
from crepe_dist.distributed.device import CPU, Device
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.errors import ExitCode, UserError


class FirstOfTwo(ProcessGroup):
    """Rank 0 of two ranks. The other rank reports success."""

    def __init__(self):
        super().__init__(0, 2)

    def all_gather_json(self, value, name):
        return [value, ["other", []] if name == "hosts" else {"host": "other", "error": None, "value": None}]


def refuse(*numbers):
    """Return a check that refuses the GPUs with these numbers."""

    def check(gpu):
        if gpu.device_id in numbers:
            raise UserError(f"GPU {gpu.device_id} is too old")

    return check


@pytest.mark.parametrize(("refused", "expected"), [((), Device("gpu", 0)), ((0,), Device("gpu", 1)), ((0, 1), CPU)])
def test_the_first_usable_gpu_is_selected(monkeypatch, refused, expected):
    monkeypatch.setattr(device.driver, "gpu_count", lambda: 2)
    monkeypatch.setattr(device.driver, "gpu_uuid", str)
    assert device.select_device("cpu", refuse(*refused)) == CPU
    assert device.select_device("auto", refuse(*refused)) == expected
    if expected == CPU:
        with pytest.raises(UserError, match="GPU 0 is too old"):
            device.select_device("gpu", refuse(*refused))
    else:
        assert device.select_device("gpu", refuse(*refused)) == expected


def test_without_gpu(monkeypatch):
    monkeypatch.setattr(device.driver, "gpu_count", lambda: 0)
    assert device.select_device("auto", refuse()) == CPU
    with pytest.raises(UserError, match="no GPU was found"):
        device.select_device("gpu", refuse())
    with pytest.raises(UserError) as raised:
        device.select_device("gpu", refuse(), FirstOfTwo())
    assert "[only on rank 0 (host " in raised.value.what
    assert "doctor on these hosts" in raised.value.remedy
    assert raised.value.code == ExitCode.HOST_ERROR


@pytest.mark.parametrize(
    ("visible_gpus", "numbers"),
    [
        ([("a", "ABCD"), ("b", "EFGH"), ("a", "ABCD"), ("b", "EFGH")], [0, 0, 1, 1]),
        ([("a", "A"), ("a", "B"), ("b", "C"), ("b", "D")], [0, 0, 0, 0]),
        ([("one", "AB"), ("other", "AB")], [0, 1]),
        ([("a", "BA"), ("a", "AB")], [0, 0]),
        ([("a", ""), ("a", "")], [None, None]),
    ],
    ids=[
        "two hosts with alternating ranks", "one visible GPU per process", "two containers with the same GPUs",
        "different order", "no visible GPU",
    ],
)  # fmt: skip
def test_each_rank_gets_its_own_gpu(visible_gpus, numbers):
    assert device.assign_gpus(visible_gpus) == numbers
    assigned = [gpus[number] for (_, gpus), number in zip(visible_gpus, numbers) if number is not None]
    assert len(set(assigned)) == len(assigned)


def test_ranks_with_and_without_gpus_are_refused():
    with pytest.raises(UserError, match=r"others have none: rank 1 \(host b\)"):
        device.assign_gpus([("a", "A"), ("b", "")])


def test_two_ranks_on_one_gpu_are_an_error():
    with pytest.raises(UserError) as raised:
        device.assign_gpus([("a", "AB"), ("a", "AB"), ("a", "AB")])
    assert raised.value.what == "rank 2 (host a) has no GPU of its own"
    assert raised.value.why.startswith("it sees 2 GPUs, used by rank 0 (host a) and rank 1 (host a); ")
