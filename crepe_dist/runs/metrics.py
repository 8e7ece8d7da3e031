"""Metrics of a run: ``metrics.jsonl``, and what trackers such as TensorBoard show, written by rank 0."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from crepe_dist.distributed.collectives import Collectives
from crepe_dist.files import open_regular, parse_json, sync, write_text, writing
from crepe_dist.runs.scores import Scores
from crepe_dist.runs.state import Arrays, Progress
from crepe_dist.runs.trackers import TRACKERS, Tracker, chosen
from crepe_dist.settings.config import Config, flat

METRICS = "metrics.jsonl"
LONGEST_LINE = 1 << 20
MOST_VALUES = 1 << 20  # of a parameter's histogram: those of 67 million take a second
# Metrics of a step, and suffixes of those of an epoch, that trackers show as well.
SCALARS = ("loss", "learning_rate", "documents_per_second", "milliseconds", "wait_fraction", "flops_per_second")
EPOCH_SCALARS = ("_loss", "_accuracy", "_macro_f1", "_average_precision", "_calibration_error", "seconds")
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
        """Write histograms of the parameters' ``values``, or evenly spaced ones, and each split's confusion matrix."""

    def finish(self, result: Record) -> None:
        """Give trackers the result of the run."""

    def sync(self) -> None:
        """Flush everything to disk; called before a save of the state, which relies on it."""


class RunMetrics(Metrics):
    """Metrics in a run folder. On a full disk, lines wait until ``sync``. A tracker that fails gets no more metrics.

    Args:
        say: prints a message when a tracker is given up.
        trackers: names of the trackers to write to.
        settings: settings of the run by dotted name, for trackers.
        draw: draws a confusion matrix; ``None``: no pictures.
    """

    def __init__(
        self,
        folder: Path,
        say: Callable[[str], None],
        trackers: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        draw: DrawConfusion | None = None,
    ) -> None:
        self._folder = folder
        self._path = folder / METRICS
        self._trackers: dict[str, Tracker | None] = dict.fromkeys(trackers)
        self._settings = settings or {}
        self._say = say
        self._draw = draw
        self._purge_step: int | None = None
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
        self._scalars("train", records, SCALARS)

    def skipped(self, record: Record) -> None:
        self._append([{"event": "skipped", **record}])

    def epoch(self, record: Record) -> None:
        self._append([{"event": "epoch", **record}])
        names = [name for name in record if name.endswith(EPOCH_SCALARS)]
        self._scalars("epoch", [record], names)

    def pictures(self, step: int, values: Callable[[], Arrays], scores: dict[str, Scores], classes: list[str]) -> None:
        def draw(tracker: Tracker) -> None:
            if not tracker.draws:
                return
            for name, array in values().items():
                tracker.add_histogram(f"parameters/{name}", array.ravel()[:: 1 + (array.size - 1) // MOST_VALUES], step)
            if self._draw is not None:
                for split, score in scores.items():
                    tracker.add_picture(f"confusion/{split}", *self._draw(score, classes), step)

        self._track(draw)

    def sync(self) -> None:
        self._write()
        if self._path.is_file():
            sync(self._path)
        self._track(lambda tracker: tracker.flush())

    def finish(self, result: Record) -> None:
        self._track(lambda tracker: tracker.finish(result))

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
            with writing(self._path), self._path.open("a", encoding="utf-8") as stream:
                stream.writelines(self._unwritten)
        except OSError:
            if self._path.is_file():
                os.truncate(self._path, size)
            raise
        self._unwritten = []

    def _scalars(self, group: str, records: Sequence[Record], names: Sequence[str]) -> None:
        rows = [(record["step"], {f"{group}/{name}": record[name] for name in names}) for record in records]
        self._track(lambda tracker: tracker.add(rows))

    def _track(self, do: Callable[[Tracker], None]) -> None:
        for name in tuple(self._trackers):
            title, opening = TRACKERS[name]
            try:
                tracker = self._trackers[name] or opening(self._folder, self._settings, self._purge_step)
                self._trackers[name] = tracker
                do(tracker)
            except Exception as error:  # whatever their libraries raise, training goes on
                del self._trackers[name]
                self._say(f"{title} gets no more metrics until the command is restarted: {error}")


def _still_true(record: Record, progress: Progress) -> bool:
    if record["event"] == "epoch":
        return any(record["epoch"] == epoch["epoch"] for epoch in progress.epochs)
    return bool(record["step"] <= progress.step)


def read(path: Path) -> Iterator[Record]:
    """Yield the records of ``metrics.jsonl`` in order, skipping malformed lines such as one cut off by a kill."""
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
    folder: Path, ranks: Collectives, say: Callable[[str], None], config: Config, draw: DrawConfusion | None
) -> Metrics:
    """Open the metrics of a run; only rank 0 writes them.

    Raises:
        UserError: on every rank, if the libraries of a tracker are not installed.
    """
    trackers = ranks.agree("trackers", lambda: chosen(config.logging) if ranks.is_root else [])
    return RunMetrics(folder, say, trackers, flat(config.to_dict()), draw) if ranks.is_root else Metrics()
