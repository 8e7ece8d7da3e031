"""Metrics of a run: the writer and the reader of ``metrics.jsonl``."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from crepe_dist.files.atomic_write import fsync, name_path_in_errors, write_text
from crepe_dist.files.json_file import parse_json
from crepe_dist.files.safe_read import open_regular
from crepe_dist.runs.resume_state import TrainerState

METRICS = "metrics.jsonl"
MAX_LINE_LENGTH = 1 << 20  # Maximum number of bytes that are read at a time.
MAX_POINTS = 150  # A history contains at most twice this many points.
MAX_RESUME_STEPS = 200  # A history also records the step numbers of at most this many resumes.
Record = dict[str, Any]


def loss_of(epoch: Mapping[str, Any], split: str) -> tuple[float, float]:
    """Return an epoch's loss on a split, computed from calibrated probabilities, and the standard error of this loss.

    Args:
        epoch: Record of the epoch (``checkpoint.epoch_record``).

    Returns:
        The loss in nats, or infinity if it is unknown or not finite; and the standard error, or 0 if it is unknown.
    """
    loss = float(epoch.get(f"{split}_loss", math.inf))
    return loss if math.isfinite(loss) else math.inf, float(epoch.get(f"{split}_loss_error", 0.0))


class MetricsLogger:
    """Writer of ``metrics.jsonl`` in the directory of a run.

    If the disk is full, lines for ``metrics.jsonl`` are buffered in memory until they can be written.

    Args:
        is_root: Whether this is rank 0. The other ranks write nothing.
    """

    def __init__(self, folder: Path, *, is_root: bool = True) -> None:
        self._is_root = is_root
        self._path = folder / METRICS
        self._unwritten: list[str] = []

    def truncate_to(self, progress: TrainerState) -> None:
        """Remove the records that are newer than the restored state, and record the resume."""
        if not self._is_root or not self._path.is_file():
            return
        epochs = {record["epoch"] for record in progress.epochs}

        def is_before(record: Record) -> bool:
            return record["epoch"] in epochs if record["event"] == "epoch" else record["step"] <= progress.step

        records = [record for record in iter_records(self._path) if is_before(record)]
        records.append({"event": "resume", "time": wall_clock(), "step": progress.step, "epoch": progress.epoch})
        write_text(self._path, "".join(json.dumps(record) + "\n" for record in records))

    def log(self, event: str, records: Sequence[Record]) -> None:
        """Write records of an event.

        Args:
            event: ``step`` or ``epoch``.
            records: Records. Those of steps have the keys step, epoch, loss, learning_rate, documents_per_second,
                milliseconds (per step) and wait_fraction. Those of epochs are the results of
                ``checkpoint.epoch_record``.
        """
        if not self._is_root:
            return
        stamped = [{"event": event, "time": wall_clock(), **record} for record in records]
        self._unwritten += [json.dumps(record) + "\n" for record in stamped]
        # On a full disk, the lines wait for the next call. ``sync`` raises the error before a state relies on them.
        with suppress(OSError):
            self._write()

    def sync(self) -> None:
        """Flush all metrics to disk. Call this method before each save, because a resumed run relies on the metrics."""
        if not self._is_root:
            return
        self._write()
        if self._path.is_file():
            fsync(self._path)

    def _write(self) -> None:
        """Write either all lines or none. Otherwise, the next line would be appended to a truncated line."""
        if not self._unwritten:
            return
        size = self._path.stat().st_size if self._path.is_file() else 0
        try:
            with name_path_in_errors(self._path), self._path.open("a", encoding="utf-8") as stream:
                stream.writelines(self._unwritten)
        except OSError:
            if self._path.is_file():
                os.truncate(self._path, size)
            raise
        self._unwritten = []


def wall_clock() -> str:
    """Return the date and time in UTC with milliseconds, in the format of ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def iter_records(path: Path) -> Iterator[Record]:
    """Yield the records of ``metrics.jsonl`` in order. Skip malformed lines, such as a truncated last line."""
    if not path.is_file():
        return
    with open_regular(path, follow=False) as stream:
        while line := stream.readline(MAX_LINE_LENGTH):
            try:
                record = parse_json(line)
            except ValueError:
                continue
            if isinstance(record, dict) and "event" in record:
                yield record


@dataclass
class DownsampledPoint:
    """Consecutive steps, summarised in one point of a curve.

    Attributes:
        step: Number of the last step.
        low: Lowest loss of a step.
        high: Highest loss of a step.
        mean: Mean loss of the steps.
        count: Number of steps.
    """

    step: int
    low: float
    high: float
    mean: float
    count: int = 1

    def merge(self, later: "DownsampledPoint") -> None:
        """Add the steps of a later point to this point."""
        total = self.count + later.count
        self.mean += (later.mean - self.mean) * later.count / total
        self.step, self.count = later.step, total
        self.low, self.high = min(self.low, later.low), max(self.high, later.high)


@dataclass
class History:
    """Steps, epochs and resumes of a run. The steps are reduced to a bounded number of points.

    Attributes:
        points: Losses of the steps, at most twice ``MAX_POINTS`` points.
        steps_per_point: Number of steps per point.
        epochs: Records of the epochs.
        resume_steps: Steps where the run was resumed, at most ``MAX_RESUME_STEPS``.
        num_resumes: Number of times that the run was resumed.
    """

    points: list[DownsampledPoint] = field(default_factory=list)
    steps_per_point: int = 1
    epochs: list[Record] = field(default_factory=list)
    resume_steps: list[int] = field(default_factory=list)
    num_resumes: int = 0

    @classmethod
    def from_run_dir(cls, run_dir: Path) -> "History":
        """Read the history of the run in a folder."""
        history = cls()
        for record in iter_records(run_dir / METRICS):
            history.add(record)
        return history

    @property
    def seconds(self) -> float:
        """Training time of all epochs in seconds, without evaluation."""
        return float(sum(epoch["seconds"] for epoch in self.epochs))

    def add(self, record: Record) -> None:
        """Add a record."""
        event, step = record["event"], record["step"]
        if event == "step":
            self._add(DownsampledPoint(step, record["loss"], record["loss"], record["loss"]))
        elif event == "epoch":
            self.epochs.append(record)
        elif event == "resume":
            self.num_resumes += 1
            if len(self.resume_steps) < MAX_RESUME_STEPS:
                self.resume_steps.append(step)

    def _add(self, point: DownsampledPoint) -> None:
        last = self.points[-1] if self.points else None
        if last and (last.step - 1) // self.steps_per_point == (point.step - 1) // self.steps_per_point:
            last.merge(point)
            return
        self.points.append(point)
        if len(self.points) > 2 * MAX_POINTS:
            self.steps_per_point *= 2
            points, self.points = self.points, []
            for narrow_point in points:
                self._add(narrow_point)
