"""What a run writes down while it trains: ``metrics.jsonl`` and TensorBoard events; nothing on other ranks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from crepe_dist.files import open_regular, parse_json, sync, write_text
from crepe_dist.training.scores import Scores
from crepe_dist.training.state import Arrays, Progress

METRICS = "metrics.jsonl"
LONGEST_LINE = 1 << 20
# Of a step and of an epoch, those that TensorBoard shows too.
SCALARS = ("loss", "learning_rate", "documents_per_second", "milliseconds", "wait_fraction", "flops_per_second")
EPOCH_SCALARS = ("_loss", "_accuracy", "_macro_f1", "_calibration_error", "seconds")
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

    def pictures(self, step: int, values: Callable[[], Arrays], scores: dict[str, Scores], classes: list[str]) -> None:
        """How the ``values`` of the parameters are distributed, and the confusion matrix of each part."""

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
        before = [record for record in read(self._path) if _still_true(record, progress)]
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
            self._scalars(record["step"], "train", record, SCALARS)

    def skipped(self, record: Record) -> None:
        self._append([{"event": "skipped", **record}])

    def epoch(self, record: Record) -> None:
        self._append([{"event": "epoch", **record}])
        names = [name for name in record if name.endswith(EPOCH_SCALARS)]
        self._scalars(record["step"], "epoch", record, tuple(names))

    def pictures(self, step: int, values: Callable[[], Arrays], scores: dict[str, Scores], classes: list[str]) -> None:
        def draw(events: Any) -> None:
            for name, array in values().items():
                events.add_histogram(f"parameters/{name}", array, step)
            for part, score in scores.items():
                events.add_confusion(f"confusion/{part}", score, classes, step)

        self._with_events(draw)

    def sync(self) -> None:
        self._write()
        if self._path.is_file():
            sync(self._path)
        self._with_events(lambda events: events.flush())

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


def read(path: Path) -> Iterator[Record]:
    """The records in ``metrics.jsonl``, in the order in which they were written; what is none is passed over, such as a
    line that was cut off by a kill.

    Raises:
        OSError, ValueError: the file is there and cannot be read.
    """
    if not path.is_file():
        return
    with open_regular(path, follow=False) as stream:
        while line := stream.readline(LONGEST_LINE):
            try:
                record = parse_json(line)
            except ValueError:
                continue
            if isinstance(record, dict) and "event" in record:
                yield record
