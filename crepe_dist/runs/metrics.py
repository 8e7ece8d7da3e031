"""Metrics of a run: ``metrics.jsonl``, and what trackers such as TensorBoard show, written by rank 0."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from crepe_dist.distributed.world import World
from crepe_dist.files import open_regular, parse_json, sync, write_text, writing
from crepe_dist.runs.scores import AnyScores, Scores
from crepe_dist.runs.state import Arrays, Progress
from crepe_dist.runs.trackers import TRACKERS, Tracker, chosen
from crepe_dist.settings.config import Config, flat

METRICS = "metrics.jsonl"
LONGEST_LINE = 1 << 20
MOST_VALUES = 1 << 20  # of a parameter's histogram: those of 67 million take a second
DRAWING_SHARE = 0.1  # of the time since the last pictures, which drawing may take
FIRST_SECONDS = 3.0  # of the first pictures, with the imports that they need
# Metrics of a step, and suffixes of those of an epoch, that trackers show as well.
SCALARS = ("loss", "learning_rate", "documents_per_second", "milliseconds", "wait_fraction", "flops_per_second")
EPOCH_SCALARS = ("_loss", "_accuracy", "_macro_f1", "_average_precision", "_calibration_error", "seconds")
Record = dict[str, Any]
DrawConfusion = Callable[[Scores, "list[str]"], "tuple[bytes, int, int]"]  # → PNG, width, height in pixels


class Metrics:
    """Metrics in a run folder. On a full disk, lines wait until ``sync``. A tracker that fails gets no more metrics.

    Args:
        say: prints a message when a tracker is given up.
        trackers: names of the trackers to write to.
        settings: settings of the run by dotted name, for trackers.
        draw: draws a confusion matrix; ``None``: no pictures.
        is_root: false on the other ranks, which have no trackers and write nothing.
    """

    def __init__(
        self,
        folder: Path,
        say: Callable[[str], None],
        trackers: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        draw: DrawConfusion | None = None,
        *,
        is_root: bool = True,
    ) -> None:
        self._folder = folder
        self._is_root = is_root
        self._path = folder / METRICS
        self._trackers: dict[str, Tracker | None] = dict.fromkeys(trackers)
        self._settings = settings or {}
        self._say = say
        self._draw = draw
        self._purge_step: int | None = None
        self._unwritten: list[str] = []
        self._drawn, self._drawing_seconds = time.monotonic(), FIRST_SECONDS

    def resume(self, progress: Progress) -> None:
        """Drop records newer than the restored state, and record the resume."""
        if not self._is_root:
            return
        before = [record for record in read(self._path) if _still_true(record, progress)]
        if not before and not self._path.is_file():
            return
        before.append({"event": "resume", "step": progress.step, "epoch": progress.epoch})
        self._unwritten = []
        write_text(self._path, "".join(json.dumps(record) + "\n" for record in before))
        self._purge_step = progress.step + 1

    def steps(self, records: list[Record]) -> None:
        """Write a record of each step: step, epoch, loss, learning_rate, documents_per_second, wait_fraction."""
        self._append([{"event": "step", **record} for record in records])
        self._scalars("train", records, SCALARS)

    def skipped(self, record: Record) -> None:
        """Record a skipped step: step, epoch, and the ranks whose loss or gradient was not finite."""
        self._append([{"event": "skipped", **record}])

    def epoch(self, record: Record) -> None:
        """Write the record of an epoch (``checkpoint.epoch_record``)."""
        self._append([{"event": "epoch", **record}])
        names = [name for name in record if name.endswith(EPOCH_SCALARS)]
        self._scalars("epoch", [record], names)

    def pictures(
        self,
        step: int,
        values: Callable[[], Arrays],
        scores: Mapping[str, AnyScores],
        classes: list[str],
        *,
        is_last: bool,
    ) -> None:
        """Draw histograms of the parameters' ``values``, or evenly spaced ones, and each split's confusion matrix.

        Before the last epoch, draw only if it takes little of the time since the last pictures.
        """
        now = time.monotonic()
        if not is_last and self._drawing_seconds > DRAWING_SHARE * (now - self._drawn):
            return

        def draw(tracker: Tracker) -> None:
            if not tracker.draws:
                return
            for name, array in values().items():
                tracker.add_histogram(f"parameters/{name}", array.ravel()[:: 1 + (array.size - 1) // MOST_VALUES], step)
            if self._draw is not None:
                for split, score in scores.items():
                    if isinstance(score, Scores):
                        tracker.add_picture(f"confusion/{split}", *self._draw(score, classes), step)

        self._track(draw)
        self._drawn = time.monotonic()
        self._drawing_seconds = self._drawn - now

    def sync(self) -> None:
        """Flush everything to disk; called before a save of the state, which relies on it."""
        if not self._is_root:
            return
        self._write()
        if self._path.is_file():
            sync(self._path)
        self._track(lambda tracker: tracker.flush())

    def finish(self, result: Record) -> None:
        """Give trackers the result of the run."""
        self._track(lambda tracker: tracker.finish(result))

    def _append(self, records: list[Record]) -> None:
        if not self._is_root:
            return
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
    folder: Path, ranks: World, say: Callable[[str], None], config: Config, draw: DrawConfusion | None
) -> Metrics:
    """Open the metrics of a run; only rank 0 writes them.

    Raises:
        UserError: on every rank, if the libraries of a tracker are not installed.
    """
    trackers = ranks.agree("trackers", lambda: chosen(config.logging) if ranks.is_root else [])
    return Metrics(folder, say, trackers, flat(config.to_dict()), draw, is_root=ranks.is_root)
