"""Tracking of runs by MLflow (``train --track mlflow``): losses of the server and of the process, and the records."""

import json
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from crepe_dist.errors import UserError
from crepe_dist.runs import checkpoint
from crepe_dist.runs.metrics import MetricsLogger
from crepe_dist.runs.mlflow_sync import MlflowSync
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.sealed_json import write_sealed_json
from crepe_dist.settings.config import Config
from crepe_dist.training import train_loop
from tests.conftest import QUICK, command, run, train
from tests.helpers.background import Command, end, free_port, install, serve
from tests.helpers.needs import needs

EPOCHS = 3
FLAGS = ("--track=mlflow", "--run-dir=run", f"--epochs={EPOCHS}", *QUICK)


class MlflowException(Exception):
    def __init__(self, error_code: str) -> None:
        super().__init__(error_code)
        self.error_code = error_code


class Server:
    """Stand-in for a server and its client. Like MLflow, it refuses another value of a parameter."""

    def __init__(self) -> None:
        self.is_down = False
        self.runs: dict[str, SimpleNamespace] = {}

    def _run(self, run_id: str) -> SimpleNamespace:
        if self.is_down:
            raise ConnectionError("refused by http://me:secret@server")
        if run_id not in self.runs:
            raise MlflowException("RESOURCE_DOES_NOT_EXIST")
        return self.runs[run_id]

    get_run = _run

    def get_experiment_by_name(self, name: str) -> None:
        if self.is_down:
            raise ConnectionError("refused by http://me:secret@server")

    def create_experiment(self, name: str) -> str:
        return f"experiment of {name}"

    def create_run(self, experiment_id: str, tags: dict[str, str], run_name: str) -> SimpleNamespace:
        run_id = str(len(self.runs) + 1)
        info = SimpleNamespace(run_id=run_id, status="RUNNING", lifecycle_stage="active", experiment=experiment_id)
        data = SimpleNamespace(params={}, metrics=[], files=[])
        self.runs[run_id] = SimpleNamespace(info=info, data=data)
        return self.runs[run_id]

    def log_batch(self, run_id: str, metrics: tuple = (), params: tuple = ()) -> None:
        data = self._run(run_id).data
        assert not data.params.keys() & {param.key for param in params}
        data.params |= {param.key: param.value for param in params}
        data.metrics += metrics

    def log_metric(self, run_id: str, key: str, value: float, step: int) -> None:
        self.log_batch(run_id, (SimpleNamespace(key=key, value=value, step=step),))

    def log_artifact(self, run_id: str, path: str) -> None:
        assert Path(path).is_file()
        self._run(run_id).data.files.append(Path(path).name)

    def get_metric_history(self, run_id: str, key: str) -> list[SimpleNamespace]:
        return [metric for metric in self._run(run_id).data.metrics if metric.key == key]

    def update_run(self, run_id: str, status: str) -> None:
        self._run(run_id).info.status = status

    set_terminated = update_run

    def steps(self, key: str, run_id: str = "1") -> list[int]:
        return [metric.step for metric in self.get_metric_history(run_id, key)]


@pytest.fixture
def server(monkeypatch):
    """Server that the stand-in for the library ``mlflow`` uses."""
    server = Server()
    modules = {name: ModuleType(name) for name in ("mlflow", "mlflow.entities", "mlflow.exceptions")}
    names = {
        "__spec__": ModuleSpec("mlflow", None),
        "MlflowClient": lambda: server,
        "get_tracking_uri": lambda: "http://me:secret@server",
    }
    vars(modules["mlflow"]).update(names)
    vars(modules["mlflow.entities"]).update(
        Metric=lambda key, value, timestamp, step: SimpleNamespace(
            key=key, value=value, timestamp=timestamp, step=step
        ),
        Param=lambda key, value: SimpleNamespace(key=key, value=value),
    )
    vars(modules["mlflow.exceptions"]).update(MlflowException=MlflowException)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return server


@pytest.fixture
def waits(monkeypatch):
    """Training waits for each call, so that the calls of a short run do not fall together."""
    start = MlflowSync.start
    monkeypatch.setattr(MlflowSync, "start", lambda own, saving=None: (start(own, saving), own._thread.join()))


def test_a_run_that_fails_and_is_resumed_is_one_run(server, waits, data, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "reviews")
    result = train_loop.write_result
    monkeypatch.setattr(train_loop, "write_result", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train("--data", data, *FLAGS, cwd=tmp_path)
    (record,) = server.runs.values()
    assert (record.info.status, record.info.experiment) == ("FAILED", "experiment of reviews")
    assert not record.data.files
    monkeypatch.setattr(train_loop, "write_result", result)
    train("--data", data, *FLAGS, "--logging.rank-times-steps=7", cwd=tmp_path)
    train("--data", data, *FLAGS, cwd=tmp_path)  # The finished run is complete, so nothing is recorded two times.
    assert list(server.runs.values()) == [record]
    assert record.info.status == "FINISHED"
    assert server.steps("train_loss") == server.steps("test_accuracy") == [*range(1, EPOCHS + 1)]
    assert record.data.files == ["config.yaml", "result.json"]
    assert record.data.params["training.epochs"] == str(EPOCHS)
    assert not any(name.startswith(("logging.", "state.", "safety.")) for name in record.data.params)
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    final = {metric.key: metric.value for metric in record.data.metrics if metric.key.startswith("result/")}
    assert final == {f"result/{name}": saved[name] for name in ("epoch", "test_accuracy", "test_loss")}


def test_epochs_without_a_server_are_recorded_later(server, waits, data, tmp_path, monkeypatch):
    server.is_down, at = True, train_loop.end_epoch

    def end_epoch(context, *rest) -> None:
        server.is_down = context.progress.epoch < EPOCHS
        at(context, *rest)

    monkeypatch.setattr(train_loop, "end_epoch", end_epoch)
    printed = train("--data", data, *FLAGS, cwd=tmp_path)
    assert printed.count("warning: MLflow at http://server cannot record the run") == EPOCHS
    assert printed.count("training continues, and tries again after the next epoch") == EPOCHS
    assert "secret" not in printed
    assert server.steps("train_loss") == [*range(1, EPOCHS + 1)]


def test_a_run_without_a_server_ends_with_a_warning(server, data, tmp_path):
    server.is_down = True
    printed = train("--data", data, *FLAGS, cwd=tmp_path)
    assert "run the same command again, which only records the run" in printed
    assert (tmp_path / "run" / "result.json").is_file()
    server.is_down = False
    assert "is finished" in train("--data", data, *FLAGS, cwd=tmp_path)
    assert server.runs["1"].info.status == "FINISHED"
    assert server.steps("train_loss") == [*range(1, EPOCHS + 1)]


def test_a_deleted_run_is_replaced(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "7")
    sync = MlflowSync(Config(), RunDir(tmp_path), print)
    sync.sync("KILLED")
    assert server.runs["1"].info.status == "KILLED"
    sync.sync("RUNNING")
    assert server.runs["1"].info.status == "RUNNING"
    server.runs["1"].info.lifecycle_stage = "deleted"
    sync.sync("RUNNING")
    del server.runs["2"]
    server.runs["1"].info.lifecycle_stage = "gone"
    sync.sync("RUNNING")
    assert [record.info.experiment for record in server.runs.values()] == ["7", "7"]


def test_the_run_of_the_environment_is_used(server, tmp_path, monkeypatch):
    server.create_run("0", {}, "from mlflow run")
    monkeypatch.setenv("MLFLOW_RUN_ID", "1")
    MlflowSync(Config(), RunDir(tmp_path), print).sync("RUNNING")
    assert server.runs.keys() == {"1"}
    assert server.runs["1"].data.params["model.network"] == "crepe"


def test_the_supervised_model_has_its_own_metrics(server, tmp_path):
    (tmp_path / "supervised").mkdir()
    for folder, loss in ((tmp_path, 0.5), (tmp_path / "supervised", 0.7)):
        logger = MetricsLogger(folder, print)
        logger.log("epoch", [{"epoch": 1, "step": 9, "train_loss": loss, "seconds": 1.0, "checkpoint": "name"}])
    MlflowSync(Config(), RunDir(tmp_path), print).sync("RUNNING")
    metrics = {metric.key: metric.value for metric in server.runs["1"].data.metrics}
    assert metrics == {"train_loss": 0.5, "seconds": 1.0, "supervised/train_loss": 0.7, "supervised/seconds": 1.0}


def test_metrics_of_a_reported_supervised_model_are_not_those_of_the_student(server, tmp_path):
    MetricsLogger(tmp_path, print).log("epoch", [{"epoch": 1, "step": 9, "train_loss": 0.5, "seconds": 1.0}])
    scores = {"epoch": 1, "test_accuracy": 0.9, "test_loss": 0.3}
    result = {"checkpoint": "name", **scores, "provenance": {"unlabelled": {"reported": checkpoint.SUPERVISED}}}
    write_sealed_json(tmp_path / "result.json", checkpoint.RESULT_FORMAT, result)
    MlflowSync(Config(), RunDir(tmp_path), print).sync("FINISHED")
    metrics = {metric.key: metric.value for metric in server.runs["1"].data.metrics}
    assert metrics == {f"result/{name}": value for name, value in scores.items()}


def test_a_missing_library_is_an_error_before_training(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match="--track mlflow needs mlflow-skinny"):
        train("--data", data, *FLAGS, cwd=tmp_path)
    assert not (tmp_path / "run").exists()


READ = """
import json, mlflow
client = mlflow.MlflowClient()
runs = client.search_runs([client.get_experiment_by_name("reviews").experiment_id])
print(json.dumps([{
    "status": run.info.status, "params": run.data.params, "metrics": run.data.metrics,
    "files": [file.path for file in client.list_artifacts(run.info.run_id)],
    "steps": [metric.step for metric in client.get_metric_history(run.info.run_id, "train_loss")],
} for run in runs]))
"""


@pytest.mark.slow
@needs("uv")
class TestRealServer:
    """A server of MLflow on this machine, and the client ``mlflow-skinny`` of the extra."""

    @pytest.fixture(scope="class")
    def libraries(self, tmp_path_factory):
        """``PYTHONPATH`` of the server and of the client, of the same version."""
        theirs, ours = tmp_path_factory.mktemp("server"), tmp_path_factory.mktemp("client")
        path = install(theirs, "mlflow")
        (found,) = theirs.glob("mlflow_skinny-*.dist-info")
        return path, install(ours, f"mlflow-skinny=={found.name.split('-')[1].removesuffix('.dist')}")

    @pytest.mark.parametrize("processes", [1, 2])
    def test_losses(self, processes, libraries, data, tmp_path):
        port = free_port()
        common = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_EXPERIMENT_NAME": "reviews"}
        common |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        client = {**common, "PYTHONPATH": libraries[1], "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
        words = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
        words += ["--backend-store-uri=sqlite:///runs.db", "--artifacts-destination=files"]
        start = ["supervise", "-np", processes] if processes > 1 else ["train"]
        flags = ("--data", data, "--track=mlflow", "--run-dir=run", "--epochs=120", *QUICK, "--logging.report=true")

        def open_server():
            return serve(words, port, {**common, "PYTHONPATH": libraries[0]}, tmp_path)

        def train() -> Command:
            return Command(command(*start, *flags), tmp_path, client)

        def recorded() -> dict:
            (record,) = json.loads(run(["env", *map("=".join, client.items()), sys.executable, "-c", READ], tmp_path))
            return record

        server = open_server()
        try:
            training = train()
            training.wait_for("MLflow records the run")
            training.process.terminate()
            training.process.wait(600)
            assert recorded()["status"] == "KILLED"
            training = train()
            training.wait_for("resuming from step")
        finally:
            end(server)
        training.wait_for("warning: MLflow at")
        server = open_server()
        try:
            training.finish()
            train().finish()  # The server may have come too late for the first command.
            record = recorded()
        finally:
            end(server)
        assert record["status"] == "FINISHED"
        assert record["steps"] == [*range(1, 121)]
        assert set(record["files"]) == {"config.yaml", "result.json", "report.html", "model_card.md"}
        assert record["params"]["training.epochs"] == "120"
        saved = json.loads((tmp_path / "run" / "result.json").read_text())
        assert record["metrics"]["result/test_accuracy"] == saved["test_accuracy"]
