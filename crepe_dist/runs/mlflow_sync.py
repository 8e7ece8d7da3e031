"""Tracking of a run by MLflow (``train --track mlflow``).

The server, the experiment and the credentials come from MLflow's own environment variables.
"""

import json
import os
from datetime import datetime
from typing import TYPE_CHECKING, Any

from crepe_dist.files.atomic_write import write_text
from crepe_dist.files.json_file import read_json
from crepe_dist.runs.metrics import epoch_scalars
from crepe_dist.runs.run_sync import Status
from crepe_dist.runs.tracker_sync import TrackerSync, iter_epochs
from crepe_dist.version import __version__

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_FILE = "mlflow.json"  # File with the id of MLflow's run, which a resumed run continues.
# MLflow repeats a request for four minutes by default. Here, the next epoch repeats it.
DEFAULTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


class MlflowSync(TrackerSync):
    """Thread that records a run in MLflow.

    Each call asks MLflow which epochs it has, and sends the others. An epoch that could not be recorded is therefore
    recorded by a later call.
    """

    name = "MLflow"
    remedy = "check the server and MLFLOW_TRACKING_URI"

    def record(self, status: Status) -> None:
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient, get_tracking_uri  # This import takes seconds.
        from mlflow.entities import Metric, Param

        self.address = get_tracking_uri()
        client = MlflowClient()
        run = self._find_run(client) or self._create_run(client)
        if run.info.status == "FINISHED":
            return
        run_id = run.info.run_id
        if not run.data.params:
            client.log_batch(run_id, params=[Param(name, str(value)) for name, value in self.parameters.items()])
        for prefix, file in self.curves.items():
            recorded = {metric.step for metric in client.get_metric_history(run_id, f"{prefix}train_loss")}
            for record in iter_epochs(file, recorded):
                time = round(1000 * datetime.fromisoformat(record["time"]).timestamp())
                scalars = epoch_scalars(record)
                metrics = [Metric(prefix + name, value, time, record["epoch"]) for name, value in scalars.items()]
                client.log_batch(run_id, metrics=metrics)
        if status == "FINISHED":
            for name, score in self.final_scores.items():
                client.log_metric(run_id, name, score, step=int(self.final_scores["result/epoch"]))
            for path in self.artifacts:
                client.log_artifact(run_id, str(path))
        if status != "RUNNING":
            client.set_terminated(run_id, status)
        elif run.info.status != "RUNNING":
            client.update_run(run_id, "RUNNING")

    def _find_run(self, client: "MlflowClient") -> Any:
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

    def _create_run(self, client: "MlflowClient") -> Any:
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
