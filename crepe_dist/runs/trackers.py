"""Writers of a run's metrics for programs that show them: TensorBoard, MLflow, and Weights & Biases.

MLflow and Weights & Biases find their servers and credentials themselves, in their environment variables and files.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

from crepe_dist import extras
from crepe_dist.files import read_json, write_json
from crepe_dist.settings.options import LoggingOptions

NAME = "crepe_dist"  # of the experiment or project, unless their own variables name another
IDS = "trackers.json"  # in the run folder: the run's identifiers, to go on with after a resume
MOST = 100  # parameters of a request to MLflow
Rows = Sequence[tuple[int, Mapping[str, float]]]  # step, and values by name


class Tracker:
    """A place to which metrics are written."""

    def add(self, rows: Rows) -> None:
        """Add scalars of steps."""

    def flush(self) -> None:
        """Write what is buffered."""

    def finish(self, result: Mapping[str, float]) -> None:
        """Mark the run as finished, with the metrics of its result."""


class TensorBoard(Tracker):
    """An event file of TensorBoard, written immediately and in this thread.

    The thread of tensorboardX's own ``SummaryWriter`` ends when the disk is full; its queue then blocks every caller.

    Args:
        purge_step: first step whose events in earlier files TensorBoard ignores.
    """

    def __init__(self, folder: Path, _: Mapping[str, Any], purge_step: int | None) -> None:
        from tensorboardX.event_file_writer import EventsWriter  # takes 0.4 s
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        self._event, self._summary = Event, Summary
        (folder / "tensorboard").mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "tensorboard" / "events"))
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def add(self, rows: Rows) -> None:
        for step, values in rows:  # one event a step: each takes as long to write as all of them
            scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
            summary = self._summary(value=scalars)
            self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        self._writer.flush()


class MLflow(Tracker):
    """A run in MLflow's tracking server, or its local files where ``MLFLOW_TRACKING_URI`` names none."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], _: int | None) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self._metric, self._client = Metric, MlflowClient()
        known = _known(folder).get("mlflow")
        if known is not None:
            try:
                self._client.update_run(known, status="RUNNING")
            except MlflowException:  # of another server
                known = None
        if known is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", NAME)
            experiment = self._client.get_experiment_by_name(name)
            number = experiment.experiment_id if experiment else self._client.create_experiment(name)
            known = self._client.create_run(number, run_name=folder.name).info.run_id
            params = [Param(key, str(value)) for key, value in settings.items()]
            for start in range(0, len(params), MOST):
                self._client.log_batch(known, params=params[start : start + MOST])
            _remember(folder, "mlflow", known)
        self._run = known

    def add(self, rows: Rows) -> None:
        now = int(1000 * time.time())
        scalars = [(name, value, step) for step, row in rows for name, value in row.items()]
        metrics = [self._metric(name, float(value), now, step) for name, value, step in scalars]
        self._client.log_batch(self._run, metrics=metrics)

    def finish(self, result: Mapping[str, float]) -> None:
        self.add([(0, {f"result/{name}": value for name, value in result.items()})])
        self._client.set_terminated(self._run)


class WeightsAndBiases(Tracker):
    """A run of Weights & Biases; without credentials it stays in the run folder, for ``wandb sync``."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], _: int | None) -> None:
        import wandb

        known = _known(folder).get("wandb") or uuid.uuid4().hex
        _remember(folder, "wandb", known)
        with_key = "WANDB_MODE" in os.environ or wandb.api.api_key
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", NAME), name=folder.name, id=known, resume="allow", dir=str(folder),
            config=dict(settings), mode=None if with_key else "offline",
            settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip

    def add(self, rows: Rows) -> None:
        for step, values in rows:
            self._run.log(dict(values), step=step)

    def finish(self, result: Mapping[str, float]) -> None:
        self._run.summary.update({f"result/{name}": value for name, value in result.items()})
        self._run.finish()


# By the name of their setting: the name in messages, and the class.
TRACKERS: dict[str, tuple[str, Callable[[Path, Mapping[str, Any], int | None], Tracker]]] = {
    "tensorboard": ("TensorBoard", TensorBoard),
    "mlflow": ("MLflow", MLflow),
    "wandb": ("Weights & Biases", WeightsAndBiases),
}


def chosen(logging: LoggingOptions) -> list[str]:
    """Return the names of the trackers to write to: TensorBoard, which is on by default, only if it is installed.

    Raises:
        MissingExtra: another one is not installed.
    """
    names = [name for name in TRACKERS if getattr(logging, name)]
    for name in names:
        if name != "tensorboard":
            extras.require(name, f"--logging.{name}")
    return [name for name in names if name != "tensorboard" or not extras.missing("reports")]


def _known(folder: Path) -> dict[str, Any]:
    path = folder / IDS
    return dict(read_json(path)) if path.is_file() else {}


def _remember(folder: Path, name: str, identifier: str) -> None:
    write_json(folder / IDS, {**_known(folder), name: identifier})
