"""Base class of the trackers of experiments (``train --track``): the recorded values, and the warning for a failure."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crepe_dist.errors import UserError
from crepe_dist.preparing.remote import redact_url
from crepe_dist.runs.checkpoint import CONFIG, RESULT, SUPERVISED
from crepe_dist.runs.metrics import METRICS, iter_records
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.runs.run_sync import RunSync, Status
from crepe_dist.settings.config import Config, flatten

ARTIFACTS = (CONFIG, RESULT, "report.html", "model_card.md")
GROUPS = ("logging.", "safety.", "state.")  # Settings that do not change the result, and are no parameters.
MAX_REASON_CHARS = 500  # Messages of a server can contain whole pages of HTML.


class TrackerSync(RunSync):
    """Thread that records parameters, the metrics of each epoch, and the result of a run with a tracker.

    A tracker that cannot be used is only a warning, because the run folder has all values.
    """

    name: str  # In messages.
    remedy: str  # What to check if the tracker cannot be used.
    address = ""  # Of the server, as far as it is known.

    def __init__(self, config: Config, run: RunDir, say: Callable[[str], None]) -> None:
        super().__init__(run, say)
        self._config = config

    def __str__(self) -> str:
        return self.name

    @abstractmethod
    def record(self, status: Status) -> None:
        """Record what the tracker does not have. Any exception may be raised."""

    def sync(self, status: Status) -> None:
        """Record what the tracker does not have.

        Raises:
            UserError: The tracker cannot be used.
        """
        try:
            self.record(status)
        except Exception as error:  # The libraries of trackers raise exceptions of many kinds.
            why = f"{type(error).__name__}: {error}"[:MAX_REASON_CHARS]
            where = f" at {self.address}" if self.address else ""
            raise UserError(
                redact_url(f"{self.name}{where} cannot record the run"), redact_url(why), self.remedy
            ) from error

    def finish(self, status: Status = "FINISHED") -> Iterator[None]:
        """Record the end of the run. If this fails, print a warning. Yield about every second."""
        try:
            yield from super().finish(status)
        except UserError as error:
            error.remedy += "; then run the same command again, which only records the run"
            self._say(error.format_lines("warning"))

    @property
    def parameters(self) -> dict[str, Any]:
        """Settings that can change the result, by their names in ``config.yaml``."""
        settings = flatten(asdict(self._config))
        return {name: value for name, value in settings.items() if not name.startswith(GROUPS)}

    @property
    def curves(self) -> dict[str, Path]:
        """Files with the records of the epochs, by the prefix of their metrics."""
        files = {"supervised/": self._run.supervised.path / METRICS, "": self._run.path / METRICS}
        result = self._run.result or {"provenance": {}}
        if result["provenance"].get("unlabelled", {}).get("reported") == SUPERVISED:
            del files[""]  # It has the supervised model's metrics again.
        return files

    @property
    def final_scores(self) -> dict[str, float]:
        """Epoch and test scores of the reported model, which the run must have."""
        result = self._run.result
        assert result is not None
        return {f"result/{name}": result[name] for name in ("epoch", "test_accuracy", "test_loss")}

    @property
    def artifacts(self) -> list[Path]:
        """Files of the run folder to record at the end."""
        return [path for path in (self._run.path / name for name in ARTIFACTS) if path.is_file()]


def iter_epochs(file: Path, recorded: set[int]) -> Iterator[dict[str, Any]]:
    """Yield the records of the epochs that are not in ``recorded``."""
    for record in iter_records(file):
        if record["event"] == "epoch" and record["epoch"] not in recorded:
            yield record
