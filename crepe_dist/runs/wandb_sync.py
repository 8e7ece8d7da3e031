"""Tracking of a run by Weights & Biases (``train --track wandb``).

The server, the project and the credentials come from the environment variables and the files of its own client.
"""

import json
import os
import secrets
from typing import Any

from crepe_dist.files.atomic_write import write_text
from crepe_dist.files.json_file import read_json
from crepe_dist.runs.metrics import epoch_scalars
from crepe_dist.runs.run_sync import Status
from crepe_dist.runs.tracker_sync import TrackerSync, iter_epochs

RUN_FILE = "wandb.json"  # File with the id of the run and the last recorded epoch of each curve.


class WandbSync(TrackerSync):
    """Thread that records a run in Weights & Biases, or in a folder if there are no credentials.

    A process cannot ask an offline run what it contains, so the run folder keeps the number of recorded epochs.
    """

    name = "Weights & Biases"
    remedy = "check WANDB_MODE, WANDB_BASE_URL and WANDB_API_KEY"
    _recorder: Any = None  # Open run of the library ``wandb``.

    def record(self, status: Status) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")  # The lines of the library would break the progress display.
        import wandb  # This import takes a second.

        path = self._run.path / RUN_FILE
        run_id = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
        new: dict[str, Any] = {"run_id": run_id, "epochs": {}, "is_finished": False}
        saved = read_json(path) if path.is_file() else new
        if saved["is_finished"]:
            return
        if self._recorder is None:
            self._recorder = self._open(wandb, saved["run_id"])
        for prefix, file in self.curves.items():
            for record in iter_epochs(file, set(range(saved["epochs"].get(prefix, 0) + 1))):
                scalars = {**epoch_scalars(record), "epoch": record["epoch"]}
                self._recorder.log({prefix + name: value for name, value in scalars.items()})
                saved["epochs"][prefix] = record["epoch"]
        if status == "FINISHED":
            self._recorder.summary.update(self.final_scores)
            for artifact in self.artifacts:
                self._recorder.save(str(artifact), base_path=str(self._run.path), policy="now")
            saved["is_finished"] = True
        if status != "RUNNING":
            self._recorder.finish(exit_code=int(status != "FINISHED"))
            self._recorder = None
        write_text(path, json.dumps(saved) + "\n")

    def _open(self, wandb: Any, run_id: str) -> Any:
        # Without a mode and a key, the library would ask for a key in the terminal, and training would wait.
        mode = os.environ.get("WANDB_MODE") or ("online" if "WANDB_API_KEY" in os.environ else "offline")
        settings = wandb.Settings(console="off", disable_git=True, init_timeout=20, x_disable_stats=True)
        recorder = wandb.init(
            id=run_id,
            resume="allow",
            mode=mode,
            name=self._run.name or self._run.path.resolve().name,
            dir=str(self._run.path),
            config=self.parameters,
            settings=settings,
        )
        for prefix in self.curves:
            recorder.define_metric(f"{prefix}*", step_metric=f"{prefix}epoch")
        where = os.path.dirname(recorder.dir) if mode == "offline" else recorder.url
        self._say(f"Weights & Biases records the run as {run_id}: {where}")
        return recorder
