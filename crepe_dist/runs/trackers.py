"""Trackers of a run on rank 0: TensorBoard, and with ``train --track`` MLflow or Weights & Biases.

The clients buffer values and send them in threads of their own. Weights & Biases works offline without a key.
"""

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from crepe_dist.runs.run_dir import RunDir
from crepe_dist.settings.config import Config, flatten

SUFFIXES = ("_loss", "_accuracy", "_macro_f1", "_average_precision", "_calibration_error", "seconds")  # Of metrics.
# By default, the clients wait minutes for a server that does not answer. Variables of the user override these.
MLFLOW_VARIABLES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
WANDB_VARIABLES = {"WANDB_SILENT": "true", "WANDB_CONSOLE": "off", "WANDB_INIT_TIMEOUT": "20"}


class TensorBoard:
    """TensorBoard, and base class of the services. An error is one warning, and the tracker gets no more values."""

    def __init__(self, config: Config, run: RunDir, say: Callable[[str], None]) -> None:
        self.run, self._say, self._is_open = run, say, True
        self.parameters = flatten(config.run_key())
        self.id_file = run.path / f"{type(self).__name__.lower()}.id"  # Id of the service's run, for a resumed run.
        self._call(lambda: self.open(self.id_file.read_text().strip() if self.id_file.is_file() else None))

    def _call(self, function: Callable[[], None]) -> None:
        if not self._is_open:
            return
        try:
            function()
        except Exception as error:  # Clients raise exceptions of many kinds.
            self._is_open = False
            self._say(f"warning: {type(self).__name__} gets no more values: {type(error).__name__}: {error}"[:500])

    def log(self, run: RunDir, epoch: dict[str, Any]) -> None:
        """Send the metrics of an epoch. The names of a supervised run's metrics start with its folder's name."""
        prefix = "" if run == self.run else f"{run.path.name}/"
        values = {prefix + name: value for name, value in epoch.items() if name.endswith(SUFFIXES)}
        self._call(lambda: self.send(values, epoch["epoch"]))

    def close(self) -> None:
        """Send the final scores, if the run is finished, and wait until the client has written everything."""
        if result := self.run.result:
            scores = {f"result/{name}": value for name, value in result.items() if name.endswith(SUFFIXES)}
            self._call(lambda: self.send(scores, result["epoch"]))
        self._call(lambda: self.end(bool(result)))

    def open(self, run_id: str | None) -> None:
        self.client: Any = import_module("tensorboardX").SummaryWriter(str(self.run.path / "tensorboard"))

    def send(self, values: dict[str, float], epoch: int) -> None:
        for name, value in values.items():
            self.client.add_scalar(name, value, epoch)

    def end(self, is_finished: bool) -> None:
        self.client.close()


class MLflow(TensorBoard):
    def open(self, run_id: str | None) -> None:
        os.environ |= {**MLFLOW_VARIABLES, **os.environ}
        self.client = import_module("mlflow")
        self.id = self.client.start_run(run_id, run_name=self.run.path.resolve().name).info.run_id
        self.sent = [self.client.log_params(self.parameters, synchronous=False, run_id=self.id)]
        self.id_file.write_text(self.id)

    def send(self, values: dict[str, float], epoch: int) -> None:
        self.sent.append(self.client.log_metrics(values, epoch, synchronous=False, run_id=self.id))

    def end(self, is_finished: bool) -> None:
        for operations in self.sent:
            operations.wait()
        self.client.MlflowClient().set_terminated(self.id, "FINISHED" if is_finished else "KILLED")


class Wandb(TensorBoard):
    def open(self, run_id: str | None) -> None:
        mode = "online" if "WANDB_API_KEY" in os.environ else "offline"
        os.environ |= {**WANDB_VARIABLES, "WANDB_MODE": mode, **os.environ}
        more = {"name": self.run.path.resolve().name, "dir": str(self.run.path), "config": self.parameters}
        self.client = import_module("wandb").init(id=run_id, resume="allow", **more)
        self.id_file.write_text(self.client.id)

    def send(self, values: dict[str, float], epoch: int) -> None:
        self.client.log({**values, "epoch": epoch})

    def end(self, is_finished: bool) -> None:
        self.client.finish(exit_code=int(not is_finished))


def create_trackers(config: Config, run: RunDir, say: Callable[[str], None]) -> list[TensorBoard]:
    """Start the service that ``train --track`` names, and TensorBoard, if it is installed and the run has a report."""
    track = config.logging.track
    has_board = config.logging.report and find_spec("tensorboardX") is not None
    used = {TensorBoard: has_board, MLflow: track == "mlflow", Wandb: track == "wandb"}
    return [kind(config, run, say) for kind, is_used in used.items() if is_used]
