"""Metrics in MLflow and Weights & Biases, without a network: their local files."""

from __future__ import annotations

import json
import shutil

import pytest

from crepe_dist.runs import trackers
from crepe_dist.runs.metrics import SCALARS, Metrics
from tests.conftest import NGRAMS, QUICK, command, launch_prefix, run

STEP = dict.fromkeys(SCALARS, 1.0)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A database of MLflow without a run; to make its tables takes seconds."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch, database) -> str:
    shutil.copy(database, tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for name, value in (
        ("MLFLOW_TRACKING_URI", uri), ("MLFLOW_DISABLE_TELEMETRY", "true"), ("WANDB_MODE", "offline"),
        ("WANDB_ERROR_REPORTING", "false"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    return uri


def mlflow_runs(uri: str) -> list:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    return client.search_runs([each.experiment_id for each in client.search_experiments()])


@pytest.mark.slow
def test_a_run_of_two_processes_is_in_both(data, tmp_path, offline):
    tracking = ("--logging.mlflow", "true", "--logging.wandb", "true", "--epochs", "1")
    train = command("train", "--data", data, "--run-dir", "run", *QUICK, *NGRAMS, *tracking)
    run([*launch_prefix(2), *train], tmp_path)
    (tracked,) = mlflow_runs(offline)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["model.network"] == "ngrams"
    assert tracked.data.metrics["result/test_accuracy"] == result["test_accuracy"]
    assert {"train/loss", "epoch/test_accuracy"} <= tracked.data.metrics.keys()
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert [path.stat().st_size > 1000 for path in folder.glob("run-*.wandb")] == [True]


def test_a_resumed_run_goes_on_in_the_same_place(tmp_path, offline):
    for step in (1, 2):
        metrics = Metrics(tmp_path, print, ["mlflow"], {"training.seed": 0})
        metrics.steps([{"step": step, **STEP}])
    metrics.finish({"test_accuracy": 0.5})
    (tracked,) = mlflow_runs(offline)
    assert tracked.data.metrics["result/test_accuracy"] == 0.5
    from mlflow.tracking import MlflowClient

    history = MlflowClient(offline).get_metric_history(tracked.info.run_id, "train/loss")
    assert [metric.step for metric in history] == [1, 2]


def test_a_tracker_that_fails_is_given_up_and_the_others_go_on(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no server")

    monkeypatch.setitem(trackers.TRACKERS, "mlflow", ("MLflow", broken))
    said: list[str] = []
    metrics = Metrics(tmp_path, said.append, ["mlflow", "tensorboard"], {})
    for step in (1, 2):
        metrics.steps([{"step": step, **STEP}])
    metrics.sync()
    assert said == ["MLflow gets no more metrics until the command is restarted: no server"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert [path.stat().st_size > 300 for path in (tmp_path / "tensorboard").iterdir()] == [True]
