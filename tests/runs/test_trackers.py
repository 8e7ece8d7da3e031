"""Trackers of a run, with stand-ins for their clients."""

import time
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from crepe_dist.runs import trackers
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.runs.trackers import create_trackers
from crepe_dist.settings.config import parse

EPOCH = {"epoch": 2, "train_loss": 0.5, "test_accuracy": 0.75, "checkpoint": "x"}
VALUES = {"train_loss": 0.5, "test_accuracy": 0.75}


@pytest.fixture(params=["mlflow", "wandb"])
def tracked(request, tmp_path, monkeypatch):
    """Name of a service, its stand-in, the created trackers, and the printed messages."""
    client = MagicMock()
    said: list[str] = []
    client.start_run.return_value = SimpleNamespace(info=SimpleNamespace(run_id="r1"))
    client.init.return_value.id = "r1"
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    monkeypatch.setattr(trackers, "import_module", lambda name: client)
    monkeypatch.setattr(trackers.os, "environ", {})

    def create():
        (tracker,) = create_trackers(parse([f"--track={request.param}"]), RunDir(tmp_path), said.append)
        return tracker

    return request.param, client, create, said


def test_parameters_epochs_and_scores_are_logged(tracked, tmp_path, monkeypatch):
    name, client, create, said = tracked
    tracker = create()
    tracker.log(RunDir(tmp_path / "supervised"), EPOCH)
    tracker.log(RunDir(tmp_path), EPOCH)
    monkeypatch.setattr(RunDir, "result", {"epoch": 2, "test_accuracy": 0.75, "checkpoint": "x"})
    tracker.close()
    scores = {"result/epoch": 2, "result/test_accuracy": 0.75}
    former = {f"supervised/{metric}": value for metric, value in VALUES.items()}
    if name == "mlflow":
        assert client.log_params.call_args.args[0]["model.network"] == "crepe"
        assert [call.args for call in client.log_metrics.call_args_list] == [(former, 2), (VALUES, 2), (scores, 2)]
        client.MlflowClient().set_terminated.assert_called_once_with("r1", "FINISHED")
    else:
        run = client.init.return_value
        assert client.init.call_args.kwargs["config"]["model.network"] == "crepe"
        assert [call.args[0] for call in run.log.call_args_list] == [{**former, "epoch": 2}, {**VALUES, "epoch": 2}]
        run.summary.update.assert_called_once_with(scores)
        run.finish.assert_called_once_with(exit_code=0)
    assert said == []


def test_a_resumed_run_continues_the_same_run(tracked):
    _, client, create, _ = tracked
    create().close()
    create()
    opened = client.start_run.call_args_list or client.init.call_args_list
    assert [call.args[0] if call.args else call.kwargs["id"] for call in opened] == [None, "r1"]


@pytest.mark.parametrize("is_slow", [False, True])
def test_an_error_or_a_client_without_answer_is_one_warning(tracked, tmp_path, monkeypatch, is_slow):
    _, client, create, said = tracked
    monkeypatch.setattr(trackers, "TIMEOUT", 0.2)
    tracker = create()

    def fail(*arguments, **more):
        if is_slow:
            time.sleep(1)
        raise OSError("no network")

    client.log_metrics.side_effect = client.init.return_value.log.side_effect = fail
    tracker.log(RunDir(tmp_path), EPOCH)
    tracker.log(RunDir(tmp_path), EPOCH)
    tracker.close()
    (warning,) = said
    assert warning.startswith("warning: ")
    assert ("no answer" if is_slow else "no network") in warning
