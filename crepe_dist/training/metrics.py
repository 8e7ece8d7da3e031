"""What a run writes down while it trains: ``metrics.jsonl`` and TensorBoard events; nothing on other ranks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from crepe_dist.files import sync, write_text
from crepe_dist.training.state import Progress

METRICS = "metrics.jsonl"
Record = dict[str, Any]


class Metrics:
    """Writes nothing: the ranks beside rank 0."""

    def resume(self, progress: Progress, known: Sequence[Record] = (), event: str = "resume") -> None:
        """Forgets what was written after the state that is gone on from, and notes that.

        Args:
            known: records of steps up to that state, which may not have been written.
        """

    def steps(self, records: list[Record]) -> None:
        """A record a step: step, epoch, loss, learning_rate, documents_per_second, wait_fraction."""

    def skipped(self, record: Record) -> None:
        """A step that was left out: step, epoch, and the ranks where its loss or gradient was not finite."""

    def epoch(self, record: Record) -> None:
        """epoch, train_loss, test_loss, test_accuracy (a fraction), seconds, and the validation scores if any."""

    def sync(self) -> None:
        """Puts what was written on the disk; before a state is saved that relies on it.

        Raises:
            OSError: it cannot be written.
        """


class RunMetrics(Metrics):
    """Writes into a run folder. Without room for them, lines wait until ``sync``; TensorBoard is done without.

    Args:
        say: told of that.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], *, tensorboard: bool) -> None:
        self._path = folder / METRICS
        self._tensorboard = folder / "tensorboard" if tensorboard else None
        self._say = say
        self._purge_step: int | None = None
        self._events: Any = None
        self._unwritten: list[str] = []

    def resume(self, progress: Progress, known: Sequence[Record] = (), event: str = "resume") -> None:
        before = [record for record in self._records() if _still_true(record, progress)]
        if not before and not known and not self._path.is_file():
            return
        there = {record["step"] for record in before if record["event"] == "step"}
        before += [{"event": "step", **record} for record in known if record["step"] not in there]
        before.append({"event": event, "step": progress.step, "epoch": progress.epoch})
        self._unwritten = []
        write_text(self._path, "".join(json.dumps(record) + "\n" for record in before))
        self._purge_step = progress.step + 1

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

    def sync(self) -> None:
        self._write()
        if self._path.is_file():
            sync(self._path)
        self._with_events(lambda events: events.flush())

    def _records(self) -> list[Record]:
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue  # cut off by a kill
        return found

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
        for name in names:
            self._with_events(lambda events, name=name: events.add(f"{group}/{name}", record[name], step))

    def _with_events(self, do: Callable[..., None]) -> None:
        if self._tensorboard is None:
            return
        try:
            if self._events is None:
                from crepe_dist.training.tensorboard import Events

                self._events = Events(self._tensorboard, self._purge_step)
            do(self._events)
        except OSError as error:
            self._tensorboard = self._events = None
            self._say(f"TensorBoard gets no more events until the command is started again: {error}")


def _still_true(record: Record, progress: Progress) -> bool:
    if record["event"] == "epoch":
        return any(record["epoch"] == each["epoch"] for each in progress.epochs)
    return bool(record["step"] <= progress.step)
