"""What a run writes down while it trains: ``metrics.jsonl`` and TensorBoard events; nothing on other ranks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from crepe_dist.files import sync, write_text
from crepe_dist.training.state import Progress

METRICS = "metrics.jsonl"
Record = dict[str, Any]


class Metrics:
    """Writes nothing: the ranks beside rank 0."""

    def resume(self, progress: Progress) -> None:
        """Forgets what was written after the state that is resumed from, and notes the resume."""

    def steps(self, records: list[Record]) -> None:
        """A record a step: step, epoch, loss, learning_rate, documents_per_second, wait_fraction."""

    def skipped(self, record: Record) -> None:
        """A step that was left out: step, epoch, and the ranks where its loss or gradient was not finite."""

    def epoch(self, record: Record) -> None:
        """epoch, train_loss, test_loss, test_accuracy (a fraction), seconds, and the validation scores if any."""

    def sync(self) -> None:
        """Puts what was written on the disk; before a state is saved that relies on it."""

    def close(self) -> None:
        """Nothing follows."""


class RunMetrics(Metrics):
    """Writes into a run folder."""

    def __init__(self, folder: Path, *, tensorboard: bool) -> None:
        self._path = folder / METRICS
        self._tensorboard = folder / "tensorboard" if tensorboard else None
        self._writer: Any = None
        self._unwritten: list[str] = []

    def resume(self, progress: Progress) -> None:
        self._unwritten = []
        kept = [line for line in self._lines() if _still_true(line, progress)]
        kept.append(json.dumps({"event": "resume", "step": progress.step, "epoch": progress.epoch}))
        write_text(self._path, "".join(f"{line}\n" for line in kept))
        if self._tensorboard:
            self._writer = self._open(purge_step=progress.step + 1)

    def steps(self, records: list[Record]) -> None:
        self._append([{"event": "step", **record} for record in records])
        for record in records:
            self._scalars(record["step"], "train", record, ("loss", "learning_rate", "documents_per_second"))

    def skipped(self, record: Record) -> None:
        self._append([{"event": "skipped", **record}])

    def epoch(self, record: Record) -> None:
        self._append([{"event": "epoch", **record}])
        names = [name for name in record if name.endswith(("_loss", "_accuracy"))]
        self._scalars(record["step"], "epoch", record, tuple(names))
        if self._writer:
            self._writer.flush()

    def sync(self) -> None:
        self._write()
        if self._path.is_file():
            sync(self._path)

    def close(self) -> None:
        self.sync()
        if self._writer:
            self._writer.close()

    def _lines(self) -> list[str]:
        return self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []

    def _append(self, records: list[Record]) -> None:
        self._unwritten += [json.dumps(record) + "\n" for record in records]
        try:
            self._write()
        except OSError:
            # No room for now. The lines wait for the next time; `sync` tells of it, before a state relies on them.
            return

    def _write(self) -> None:
        """All lines or none: one that was cut would spoil the next."""
        if not self._unwritten:
            return
        size = self._path.stat().st_size if self._path.is_file() else 0
        try:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.writelines(self._unwritten)
        except OSError:
            if self._path.is_file():
                os.truncate(self._path, size)
            raise
        self._unwritten = []

    def _scalars(self, step: int, group: str, record: Record, names: tuple[str, ...]) -> None:
        if not self._tensorboard:
            return
        if self._writer is None:
            self._writer = self._open(purge_step=None)
        for name in names:
            self._writer.add_scalar(f"{group}/{name}", record[name], step)

    def _open(self, purge_step: int | None) -> Any:
        from tensorboardX import SummaryWriter

        return SummaryWriter(str(self._tensorboard), purge_step=purge_step)


def _still_true(line: str, progress: Progress) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False  # cut off by a kill
    if record["event"] == "epoch":
        return any(record["epoch"] == each["epoch"] for each in progress.epochs)
    return bool(record["step"] <= progress.step)
