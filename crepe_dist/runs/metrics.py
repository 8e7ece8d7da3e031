"""Metrics of a run: ``metrics.jsonl`` and TensorBoard events, written by rank 0."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from crepe_dist.distributed.collectives import Collectives
from crepe_dist.files import open_regular, parse_json, sync, write_text
from crepe_dist.runs.scores import Scores
from crepe_dist.runs.state import Arrays, Progress

METRICS = "metrics.jsonl"
LONGEST_LINE = 1 << 20
# Metrics of a step, and suffixes of those of an epoch, that TensorBoard shows as well.
SCALARS = ("loss", "learning_rate", "documents_per_second", "milliseconds", "wait_fraction", "flops_per_second")
EPOCH_SCALARS = ("_loss", "_accuracy", "_macro_f1", "_calibration_error", "seconds")
Record = dict[str, Any]
DrawConfusion = Callable[[Scores, "list[str]"], "tuple[bytes, int, int]"]  # → PNG, width, height in pixels


class Metrics:
    """Metrics of the ranks other than 0, which write nothing."""

    def resume(self, progress: Progress) -> None:
        """Drop records newer than the restored state, and record the resume."""

    def steps(self, records: list[Record]) -> None:
        """Write a record of each step: step, epoch, loss, learning_rate, documents_per_second, wait_fraction."""

    def skipped(self, record: Record) -> None:
        """Record a skipped step: step, epoch, and the ranks whose loss or gradient was not finite."""

    def epoch(self, record: Record) -> None:
        """Write the record of an epoch (``checkpoint.epoch_record``)."""

    def pictures(self, step: int, values: Callable[[], Arrays], scores: dict[str, Scores], classes: list[str]) -> None:
        """Write histograms of the parameters' ``values`` and the confusion matrix of each split."""

    def sync(self) -> None:
        """Flush everything to disk; called before a save of the state, which relies on it.

        Raises:
            OSError: a file cannot be written.
        """


class RunMetrics(Metrics):
    """Metrics in a run folder. On a full disk, lines wait until ``sync``, and TensorBoard gets no more events.

    Args:
        folder: the run's folder.
        say: prints a message when TensorBoard is given up.
        tensorboard: write TensorBoard events.
        draw: draws a confusion matrix for TensorBoard; ``None``: no pictures.
    """

    def __init__(
        self, folder: Path, say: Callable[[str], None], *, tensorboard: bool, draw: DrawConfusion | None = None
    ) -> None:
        self._path = folder / METRICS
        self._tensorboard = folder / "tensorboard" if tensorboard else None
        self._say = say
        self._draw = draw
        self._purge_step: int | None = None
        self._events: Any = None
        self._unwritten: list[str] = []

    def resume(self, progress: Progress) -> None:
        before = [record for record in read(self._path) if _still_true(record, progress)]
        if not before and not self._path.is_file():
            return
        before.append({"event": "resume", "step": progress.step, "epoch": progress.epoch})
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
            if self._draw is not None:
                for split, score in scores.items():
                    events.add_picture(f"confusion/{split}", *self._draw(score, classes), step)

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
            # The disk is full: the lines wait for the next write. `sync` raises before a state relies on them.
            return

    def _write(self) -> None:
        """Write all lines or none: a truncated line would spoil the next one."""
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
        self._with_events(lambda events: events.add({f"{group}/{name}": record[name] for name in names}, step))

    def _with_events(self, do: Callable[..., None]) -> None:
        if self._tensorboard is None:
            return
        try:
            if self._events is None:
                from crepe_dist.runs.tensorboard import Events  # takes 0.4 s to import

                self._events = Events(self._tensorboard, self._purge_step)
            do(self._events)
        except OSError as error:
            self._tensorboard = self._events = None
            self._say(f"TensorBoard gets no more events until the command is restarted: {error}")


def _still_true(record: Record, progress: Progress) -> bool:
    if record["event"] == "epoch":
        return any(record["epoch"] == each["epoch"] for each in progress.epochs)
    return bool(record["step"] <= progress.step)


def read(path: Path) -> Iterator[Record]:
    """Yield the records of ``metrics.jsonl`` in order, skipping malformed lines such as one cut off by a kill.

    Raises:
        OSError, ValueError: the file exists but cannot be read.
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


def open_metrics(
    folder: Path, ranks: Collectives, say: Callable[[str], None], *, tensorboard: bool, draw: DrawConfusion | None
) -> Metrics:
    """Open the metrics of a run; only rank 0 writes them."""
    return RunMetrics(folder, say, tensorboard=tensorboard, draw=draw) if ranks.is_root else Metrics()
