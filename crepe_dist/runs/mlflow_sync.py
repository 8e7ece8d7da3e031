"""Tracking of a run by MLflow (``train --track mlflow``).

The server, the experiment and the credentials come from MLflow's own environment variables.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from crepe_dist.errors import UserError
from crepe_dist.files.atomic_write import write_text
from crepe_dist.files.json_file import read_json
from crepe_dist.preparing.remote import redact_url
from crepe_dist.runs.checkpoint import CONFIG, RESULT, SUPERVISED
from crepe_dist.runs.metrics import METRICS, epoch_scalars, iter_records
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.runs.run_sync import RunSync, Status
from crepe_dist.settings.config import Config, flatten
from crepe_dist.version import __version__

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_FILE = "mlflow.json"  # File with the id of MLflow's run, which a resumed run continues.
ARTIFACTS = (CONFIG, RESULT, "report.html", "model_card.md")
GROUPS = ("logging.", "safety.", "state.")  # Settings that do not change the result, and are no parameters.
MAX_REASON_CHARS = 500  # MLflow's messages can contain whole pages of HTML.
# MLflow repeats a request for four minutes by default. Here, the next epoch repeats it.
DEFAULTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


class MlflowSync(RunSync):
    """Thread that records parameters, the metrics of each epoch, and the result of a run in MLflow.

    Each call asks MLflow which epochs it has, and sends the others. An epoch that could not be recorded is therefore
    recorded by a later call.
    """

    def __init__(self, config: Config, run: RunDir, say: Callable[[str], None]) -> None:
        super().__init__(run, say)
        self._config = config

    def __str__(self) -> str:
        return "MLflow"

    def finish(self, status: Status = "FINISHED") -> Iterator[None]:
        """Record the end of the run. If this fails, print a warning. Yield about every second."""
        try:
            yield from super().finish(status)
        except UserError as error:
            error.remedy += "; then run the same command again, which only records the run"
            self._say(error.format_lines("warning"))

    def sync(self, status: Status) -> None:
        """Record what MLflow does not have.

        Raises:
            UserError: MLflow cannot record the run.
        """
        uri = "an unknown address"
        try:
            for name, value in DEFAULTS.items():
                os.environ.setdefault(name, value)
            from mlflow import MlflowClient, get_tracking_uri  # This import takes seconds.

            uri = get_tracking_uri()
            self._record(MlflowClient(), status)
        except Exception as error:  # MLflow's libraries raise exceptions of many kinds.
            shown = redact_url(uri)
            why = f"{type(error).__name__}: {error}".replace(uri, shown)[:MAX_REASON_CHARS]
            remedy = "check the server and MLFLOW_TRACKING_URI"
            raise UserError(f"MLflow at {shown} cannot record the run", why, remedy) from error

    def _record(self, client: MlflowClient, status: Status) -> None:
        from mlflow.entities import Metric, Param

        run = self._find_run(client) or self._create_run(client)
        if run.info.status == "FINISHED":
            return
        run_id = run.info.run_id
        if not run.data.params:
            settings = flatten(asdict(self._config))
            values = {name: value for name, value in settings.items() if not name.startswith(GROUPS)}
            client.log_batch(run_id, params=[Param(name, str(value)) for name, value in values.items()])
        folders = {"supervised/": self._run.supervised, "": self._run}
        result = self._run.result or {"provenance": {}}
        if result["provenance"].get("unlabelled", {}).get("reported") == SUPERVISED:
            del folders[""]  # It has the supervised model's metrics again.
        for prefix, folder in folders.items():
            recorded = {metric.step for metric in client.get_metric_history(run_id, f"{prefix}train_loss")}
            for record in iter_records(folder.path / METRICS):
                if record["event"] == "epoch" and record["epoch"] not in recorded:
                    time = round(1000 * datetime.fromisoformat(record["time"]).timestamp())
                    scalars = epoch_scalars(record)
                    metrics = [Metric(prefix + name, value, time, record["epoch"]) for name, value in scalars.items()]
                    client.log_batch(run_id, metrics=metrics)
        if status == "FINISHED":
            for name in ("epoch", "test_accuracy", "test_loss"):
                client.log_metric(run_id, f"result/{name}", result[name], step=result["epoch"])
            for path in (self._run.path / name for name in ARTIFACTS):
                if path.is_file():
                    client.log_artifact(run_id, str(path))
        if status != "RUNNING":
            client.set_terminated(run_id, status)
        elif run.info.status != "RUNNING":
            client.update_run(run_id, "RUNNING")

    def _find_run(self, client: MlflowClient) -> Any:
        """Return MLflow's run of an earlier call; ``None`` if there is none, or if it was deleted."""
        from mlflow.exceptions import MlflowException

        path = self._run.path / RUN_FILE
        run_id = read_json(path)["run_id"] if path.is_file() else os.environ.get("MLFLOW_RUN_ID")
        if run_id is None:
            return None
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _create_run(self, client: MlflowClient) -> Any:
        experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID")
        if experiment_id is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
            experiment = client.get_experiment_by_name(name)
            experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
        path = os.path.abspath(self._run.path)
        tags = {"mlflow.source.name": f"crepe_dist {__version__}", "crepe_dist.run_folder": path}
        run = client.create_run(experiment_id, tags=tags, run_name=self._run.name or os.path.basename(path))
        write_text(self._run.path / RUN_FILE, json.dumps({"run_id": run.info.run_id}) + "\n")
        self._say(f"MLflow records the run in experiment {experiment_id} as run {run.info.run_id}")
        return run
