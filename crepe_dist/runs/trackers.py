"""Trackers of a run on rank 0: TensorBoard, and with ``train --track`` MLflow or Weights & Biases."""

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from threading import Thread
from typing import Any

from crepe_dist.runs.run_dir import RunDir
from crepe_dist.settings.config import Config, flatten

TIMEOUT = 20.0  # Time limit for a call of a client, in seconds.
SUFFIXES = ("_loss", "_accuracy", "_macro_f1", "_average_precision", "_calibration_error", "seconds")  # Of metrics.


class TensorBoard:
    """TensorBoard, and base class of the services. After an error or a timeout, a tracker gets no more values."""

    def __init__(self, config: Config, run: RunDir, say: Callable[[str], None]) -> None:
        self.run, self._say, self._is_open, self.parameters = run, say, True, flatten(config.run_key())
        self.id_file = run.path / f"{type(self).__name__.lower()}.id"  # Id of the service's run, for a resumed run.
        self._call(lambda: self.open(self.id_file.read_text().strip() if self.id_file.is_file() else None))

    def _call(self, function: Callable[[], None]) -> None:
        errors: list[Exception] = [TimeoutError(f"no answer within {TIMEOUT:g} s")]

        def call() -> None:
            try:
                function()
                errors.clear()
            except Exception as error:  # Clients raise exceptions of many kinds.
                errors[0] = error

        if self._is_open:
            (thread := Thread(target=call, daemon=True, name="tracker")).start()  # A client may wait for its server.
            thread.join(TIMEOUT)
            for error in errors:
                self._is_open = False
                self._say(f"warning: {type(self).__name__} gets no more values: {type(error).__name__}: {error}"[:500])

    def log(self, run: RunDir, epoch: dict[str, Any]) -> None:
        prefix = "" if run == self.run else f"{run.path.name}/"
        self._call(lambda: self.send({prefix + k: v for k, v in epoch.items() if k.endswith(SUFFIXES)}, epoch["epoch"]))

    def close(self) -> None:
        scores = {f"result/{k}": v for k, v in (self.run.result or {}).items() if isinstance(v, (int, float))}
        self._call(lambda: self.end(scores))

    def open(self, run_id: str | None) -> None:
        self.client: Any = import_module("tensorboardX").SummaryWriter(str(self.run.path / "tensorboard"))

    def send(self, values: dict[str, float], epoch: int) -> None:
        for name, value in values.items():
            self.client.add_scalar(name, value, epoch)

    def end(self, scores: dict[str, float]) -> None:
        self.send(scores, int(scores.get("result/epoch", 0)))
        self.client.close()


class MLflow(TensorBoard):
    def open(self, run_id: str | None) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # The default takes minutes.
        mlflow = import_module("mlflow")
        self.client, self.id = mlflow, mlflow.start_run(run_id, run_name=self.run.path.resolve().name).info.run_id
        self.sent = [mlflow.log_params(self.parameters, synchronous=False, run_id=self.id)]
        self.id_file.write_text(self.id)

    def send(self, values: dict[str, float], epoch: int) -> None:
        self.sent.append(self.client.log_metrics(values, epoch, synchronous=False, run_id=self.id))

    def end(self, scores: dict[str, float]) -> None:
        self.send(scores, int(scores.get("result/epoch", 0)))
        _ = [operations.wait() for operations in self.sent]
        self.client.MlflowClient().set_terminated(self.id, "FINISHED" if scores else "KILLED")


class Wandb(TensorBoard):
    def open(self, run_id: str | None) -> None:
        mode = "online" if "WANDB_API_KEY" in os.environ else "offline"
        os.environ |= {"WANDB_SILENT": "true", "WANDB_CONSOLE": "off", "WANDB_MODE": mode, **os.environ}
        more = {"name": self.run.path.resolve().name, "dir": str(self.run.path), "config": self.parameters}
        self.client = import_module("wandb").init(id=run_id, resume="allow", **more)
        self.id_file.write_text(self.client.id)

    def send(self, values: dict[str, float], epoch: int) -> None:
        self.client.log({**values, "epoch": epoch})

    def end(self, scores: dict[str, float]) -> None:
        self.client.summary.update(scores)
        self.client.finish(exit_code=int(not scores))


def create_trackers(config: Config, run: RunDir, say: Callable[[str], None]) -> list[TensorBoard]:
    track = config.logging.track
    used = {TensorBoard: find_spec("tensorboardX") is not None, MLflow: track == "mlflow", Wandb: track == "wandb"}
    return [kind(config, run, say) for kind, is_used in used.items() if is_used]
