"""Callbacks of the training loop: their order, and the agreement on saves and stops."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from crepe_dist.distributed.process_group import SINGLE_PROCESS
from crepe_dist.distributed.signals import SignalHandler, StepAction, StopRequested
from crepe_dist.parallel.distributed_optimizer import StepResult
from crepe_dist.training import save_callback
from crepe_dist.training.callbacks import Callback, CallbackList
from crepe_dist.training.save_callback import SaveCallback

BATCH: Any = SimpleNamespace(step=1)


class Recorder(Callback):
    def __init__(self, calls: list[str], name: str, requested: StepAction = StepAction.CONTINUE) -> None:
        self.calls, self.name, self.requested = calls, name, requested

    def on_step_begin(self, batch: Any) -> StepAction:
        self.calls.append(f"{self.name} step")
        return self.requested

    def on_save(self) -> None:
        self.calls.append(f"{self.name} save")


def test_callbacks_are_called_in_order_and_the_strongest_request_counts():
    calls: list[str] = []
    callbacks = CallbackList()
    callbacks.callbacks = [
        Recorder(calls, "a"),
        Recorder(calls, "b", StepAction.STOP),
        Recorder(calls, "c", StepAction.SAVE),
    ]
    assert callbacks.on_step_begin(BATCH) is StepAction.STOP
    assert calls == ["a step", "b step", "c step"]


@pytest.fixture
def saving(monkeypatch):
    """A ``SaveCallback`` with stand-ins, and the list of the calls in their order."""
    calls: list[str] = []

    def capture(context: Any) -> str:
        calls.append("capture")
        return "state"

    monkeypatch.setattr(save_callback, "capture_state", capture)
    metrics = SimpleNamespace(sync=lambda: calls.append("metrics"))
    saver = MagicMock(last_saved_step=7, **{"should_save.return_value": False})
    saver.save.side_effect = lambda state: calls.append(f"write {state}")
    context: Any = SimpleNamespace(
        job=SimpleNamespace(signals=SignalHandler()),
        group=SINGLE_PROCESS,
        engine=MagicMock(),
        metrics=metrics,
        progress=SimpleNamespace(step=7, finished=False),
        config=SimpleNamespace(fresh=True),
        display=SimpleNamespace(log=calls.append),
    )
    return SaveCallback(context, saver, Recorder(calls, "logger")), saver, context, calls


def test_logs_and_metrics_come_before_the_state_that_relies_on_them(saving):
    callback, _, _, calls = saving
    callback.on_step_end(StepResult(7, 4, 1.0, StepAction.CONTINUE), 0.1)
    assert calls == []
    callback.on_step_end(StepResult(7, 4, 1.0, StepAction.SAVE), 0.1)
    assert calls == ["logger save", "capture", "metrics", "write state"]


def test_a_stop_ends_the_run_after_the_state_is_on_disk(saving):
    callback, saver, context, calls = saving
    context.job.signals.requested_action = StepAction.STOP
    assert callback.on_step_begin(BATCH) is StepAction.STOP
    with pytest.raises(StopRequested):
        callback.on_step_end(StepResult(7, 4, 1.0, StepAction.STOP), 0.1)
    assert calls[-1].endswith("saved after step 7; the same command without --fresh resumes from there")
    saver.wait.assert_called_once()
    saver.close.assert_called_once()


def test_a_full_disk_postpones_the_save(saving):
    callback, saver, _, calls = saving
    saver.save.side_effect = OSError("no space left")
    callback.on_step_end(StepResult(7, 4, 1.0, StepAction.SAVE), 0.1)
    saver.skip.assert_called_once_with(7)
    assert calls[-1] == "the state of step 7 could not be saved: no space left"
