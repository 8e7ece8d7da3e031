"""Callback of the training loop that saves states."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from crepe_dist.distributed.process_group import SINGLE_PROCESS
from crepe_dist.distributed.signals import SignalHandler, StepAction
from crepe_dist.parallel.distributed_optimizer import StepResult
from crepe_dist.training import save_callback
from crepe_dist.training.callbacks import Callback
from crepe_dist.training.save_callback import SaveCallback


class Recorder(Callback):
    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def on_save(self) -> None:
        self.calls.append("logger save")


@pytest.fixture
def saving(monkeypatch):
    """A ``SaveCallback`` with stand-ins, and the list of the calls in their order."""
    calls: list[str] = []

    def capture(context: Any) -> str:
        calls.append("capture")
        return "state"

    monkeypatch.setattr(save_callback, "capture_state", capture)
    metrics = SimpleNamespace(sync=lambda: calls.append("metrics"))
    saver = MagicMock()
    saver.save.side_effect = lambda state: calls.append(f"write {state}")
    context: Any = SimpleNamespace(
        job=SimpleNamespace(signals=SignalHandler()),
        group=SINGLE_PROCESS,
        engine=MagicMock(),
        metrics=metrics,
        progress=SimpleNamespace(step=7),
        display=SimpleNamespace(log=calls.append),
    )
    return SaveCallback(context, saver, Recorder(calls)), saver, calls


def test_logs_and_metrics_come_before_the_state_that_relies_on_them(saving):
    callback, _, calls = saving
    callback.on_step_end(StepResult(7, 4, 1.0, StepAction.CONTINUE), 0.1)
    assert calls == []
    callback.on_step_end(StepResult(7, 4, 1.0, StepAction.SAVE), 0.1)
    assert calls == ["logger save", "capture", "metrics", "write state"]


def test_a_full_disk_postpones_the_save(saving):
    callback, saver, calls = saving
    saver.save.side_effect = OSError("no space left")
    callback.on_step_end(StepResult(7, 4, 1.0, StepAction.SAVE), 0.1)
    saver.skip.assert_called_once_with(7)
    assert calls[-1] == "the state of step 7 could not be saved: no space left"
