"""Times of the ranks: the parts of a step, and the sentence about a slow rank."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from crepe_dist.distributed.process_group import Stopwatch
from crepe_dist.distributed.signals import StepAction
from crepe_dist.parallel.distributed_optimizer import StepResult
from crepe_dist.runs.metrics import RANK_TIMES
from crepe_dist.training import rank_timer
from crepe_dist.training.rank_timer import MIN_STEPS, RankTimer
from tests import conftest
from tests.chaos import harness
from tests.conftest import needs_kernels, records

BATCH: Any = SimpleNamespace(step=1)


@pytest.fixture
def sleep(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Replace the clock. Return a function that advances it by some seconds."""
    seconds = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: seconds[0])
    return lambda duration: seconds.__setitem__(0, seconds[0] + duration)


def result(step: int) -> StepResult:
    return StepResult(step, 4, 1.0, StepAction.CONTINUE)


class Fake:
    """Context of a rank. The other ranks have the times ``others``."""

    def __init__(self, *others: list[float], interval: int = 100) -> None:
        self.recorded: list[Any] = []
        self.said: list[str] = []
        self.gathered: list[list[float]] = []
        self.waiting = Stopwatch()
        self.others = others
        self.context: Any = SimpleNamespace(
            loading=Stopwatch(),
            config=SimpleNamespace(logging=SimpleNamespace(rank_times_steps=interval)),
            group=SimpleNamespace(
                waiting=self.waiting,
                host_names=["a", *(f"b{number}" for number, _ in enumerate(others))],
                all_gather_json=self.gather,
            ),
            progress=SimpleNamespace(step=7, epoch=1),
            metrics=SimpleNamespace(log=lambda event, records: self.recorded.extend(records)),
            display=SimpleNamespace(log=self.said.append),
        )

    def gather(self, own: list[float], name: str) -> list[list[float]]:
        self.gathered.append(own)
        return [own, *self.others]


def test_the_parts_of_a_step_are_told_apart(sleep):
    fake = Fake()
    timer = RankTimer(fake.context)
    timer.on_epoch_begin()
    for step in range(1, 4):
        with fake.context.loading:
            sleep(0.03)
        sleep(0.5)  # Before a step, another callback waits for a save. This is not counted.
        timer.on_step_begin(BATCH)
        sleep(0.2 if step == 1 else 0.01)  # The first step is not counted.
        with fake.waiting:
            sleep(0.06)
        if step == 2:
            timer.on_save()
            sleep(0.3)  # A save is not counted.
        timer.on_step_end(result(step), 0.1)
    timer.on_train_epoch_end()
    (record,) = fake.recorded
    compute, data, exchange = (record[name][0] for name in RANK_TIMES)
    assert (compute, data, exchange) == pytest.approx((10, 30, 60))
    assert (record["steps"], record["hosts"]) == (2, ["a"])
    assert record["memory_bytes"][0] > 1 << 20
    timer.on_train_epoch_end()
    assert len(fake.recorded) == 1, "no step was added"


@pytest.mark.parametrize(
    ("own", "others", "slow"),
    [
        (2, [[0.0, 0.0, 5.0, 1], [9.0, 0.0, 0.0, 1]], "rank 2 on b1 is slow: its steps take 9.0 ms"),
        (
            2,
            [[0.0, 8.0, 5.0, 1]],
            "rank 1 on b0 is slow: its steps take 8.0 ms without the exchange (0.0 ms compute, 8.0",
        ),
        (20, [[1.0, 0.0, 90.0, 1]], "rank 0 on a is slow"),
        (6, [[4.0, 0.0, 0.0, 1]], ""),
        (20, [[15.0, 0.0, 0.0, 1]], ""),
        (2, [[2.0, 0.0, 90.0, 1]], ""),
        (20, [], ""),
    ],
)
def test_the_slowest_rank_is_named_once_an_epoch(own, others, slow, sleep, monkeypatch):
    monkeypatch.setattr(rank_timer, "MIN_SECONDS", 0.0)
    fake = Fake(*others, interval=MIN_STEPS)
    timer = RankTimer(fake.context)
    timer.on_epoch_begin()
    for step in range(1, 3 * MIN_STEPS + 1):
        timer.on_step_begin(BATCH)
        sleep(own / 1000)
        timer.on_step_end(result(step), 0.1)
    assert len(fake.recorded) == len(fake.gathered) == 3  # No collective in the other steps.
    assert len(fake.said) == bool(slow)
    assert not slow or fake.said[0].startswith(slow)


def test_fast_steps_have_few_collectives(sleep):
    fake = Fake(interval=1)
    timer = RankTimer(fake.context)
    timer.on_epoch_begin()
    for step in range(1, 101):
        fake.context.progress.step = step
        timer.on_step_begin(BATCH)
        sleep(0.001)
        timer.on_step_end(result(step), 0.1)
    assert len(fake.gathered) == 1
    timer.on_train_epoch_end()
    assert [record["steps"] for record in fake.recorded] == [1, 98]


@needs_kernels
@pytest.mark.parametrize("launcher", ["alone", "supervise", "horovodrun"])
def test_every_rank_is_recorded(launcher, data, tmp_path):
    flags = ("--logging.rank-times-steps=4",)
    processes = 1 if launcher == "alone" else 2
    if launcher == "supervise":
        command = harness.supervise(tmp_path / "run", data, processes, *flags)
    else:
        command = harness.command(tmp_path / "run", data, processes, *flags)
    conftest.run(command, tmp_path)
    steps = [record["step"] for record in records(tmp_path / "run", "ranks")]
    assert {4, 13, 26, 39} <= set(steps) <= {13, 26, *range(4, 40, 4), 39}  # Three epochs of 13 steps.
    for record in records(tmp_path / "run", "ranks"):
        assert all(len(record[name]) == processes for name in (*RANK_TIMES, "hosts", "memory_bytes"))
        assert min(record["compute_ms"]) > 0
        assert (min(record["exchange_ms"]) > 0) == (processes > 1)
    for event in ("step", "epoch", "ranks"):
        assert all(record["time"].endswith("+00:00") for record in records(tmp_path / "run", event))
