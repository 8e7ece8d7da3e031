"""A trial of a search: a training in its own process, watched until it ends or must be ended."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from crepe_dist.files import read_json
from crepe_dist.runs.metrics import METRICS, read
from crepe_dist.supervising.training_process import LOG, end, failure, killed_by, training
from crepe_dist.wording import counted, percent

POLL = 0.2  # seconds
RUN = "run"
PAGE = 4096  # bytes
End = Literal["done", "pruned", "out of time", "out of memory", "failed", "killed"]
ESTIMATE = re.compile(r"^time +((?:at most )?about [\d.]+ \w+)", re.MULTILINE)  # a line of training


@dataclass(frozen=True)
class Attempt:
    """Outcome of a trial.

    Attributes:
        validation, loss, test: accuracy and loss of the reported epoch on the validation split, and its accuracy on
            the test split. If it ran out of time, those of the best epoch so far; ``None`` if there is none.
        epoch: that epoch, from 0.
        problem: message of a training that failed.
    """

    end: End
    validation: float | None = None
    loss: float | None = None
    test: float | None = None
    epoch: int | None = None
    seconds: float = 0.0
    problem: str = ""


def attempt(
    settings: Mapping[str, Any],
    folder: Path,
    processes: int,
    deadline: float,
    memory: int,
    prune: Callable[[int, float], bool],
    show: Callable[[str], None] = lambda text: None,
) -> Attempt:
    """Train, or resume what was interrupted in the same folder.

    Args:
        settings: settings by their dotted names.
        folder: folder of the trial; the run is in ``run``.
        deadline: time by ``time.monotonic`` at which it must end.
        memory: largest resident memory of all its processes, in bytes.
        prune: called with the number and the validation accuracy of each epoch; True ends the trial.
        show: called again and again with how far it is.
    """
    folder.mkdir(exist_ok=True)
    started, known = time.monotonic(), 0
    with training({**settings, "run_dir": str(folder / RUN)}, folder, processes) as process:
        reason: End | None = None
        while process.poll() is None and reason is None:
            time.sleep(POLL)
            epochs = _epochs(folder / RUN)
            if any(prune(record["epoch"], record["validation_accuracy"]) for record in epochs[known:]):
                reason = "pruned"
            elif time.monotonic() > deadline:
                reason = "out of time"
            elif _memory(process) > memory:
                reason = "out of memory"
            known = len(epochs)
            show(_so_far(folder, epochs))
        if reason is not None:
            end(process)
        code = process.wait()
    seconds = time.monotonic() - started
    if code == 0:  # perhaps just before it was to be ended
        result = read_json(folder / RUN / "result.json")
        reported = next(record for record in _epochs(folder / RUN) if record["epoch"] == result["epoch"])
        return Attempt("done", *_scores(reported), result["epoch"], seconds)
    if reason == "out of time" and (epochs := _epochs(folder / RUN)):
        best = max(epochs, key=lambda record: (record["validation_accuracy"], record["epoch"]))
        return Attempt(reason, *_scores(best), best["epoch"], seconds)
    if reason is None:
        error = failure(folder, code)
        reason = "killed" if killed_by(code) else "failed"
        return Attempt(reason, seconds=seconds, problem="\n".join((error.what, error.why, error.remedy)))
    return Attempt(reason, seconds=seconds)


def _scores(epoch: dict[str, Any]) -> tuple[float, float, float]:
    loss = epoch.get("validation_fitted_loss", epoch["validation_loss"])  # none with several labels
    return epoch["validation_accuracy"], loss, epoch["test_accuracy"]


def _so_far(folder: Path, epochs: list[dict[str, Any]]) -> str:
    """Describe the progress of a training: its estimated duration, and the accuracy of its last epoch."""
    log = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    estimate = match[1] if (match := ESTIMATE.search(log)) else "starting"
    if not epochs:
        return estimate
    done = f"{counted(len(epochs), 'epoch')}, validation {percent(epochs[-1]['validation_accuracy'])}"
    return f"{estimate}; {done}"


def _epochs(run: Path) -> list[dict[str, Any]]:
    """Return the records of the epochs so far, each of which has scores on the validation split."""
    records = {record["epoch"]: record for record in read(run / METRICS) if record["event"] == "epoch"}
    return [records[epoch] for epoch in sorted(records)]


def _memory(process: subprocess.Popen[bytes]) -> int:
    """Return the resident memory of a process and its descendants, in bytes."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    family, grown = {process.pid}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in family} - family
        family, grown = family | more, bool(more)
    total = 0
    for pid in family:
        with suppress(OSError, ValueError, IndexError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    return total
