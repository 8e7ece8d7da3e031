"""Course of a run, read from its ``metrics.jsonl`` and reduced to a bounded number of points."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from crepe_dist.files import finite, integer
from crepe_dist.runs.metrics import METRICS, Record, read
from crepe_dist.settings.fields import MANY

MOST_POINTS = 150
MOST_EVENTS = 200
MEASURED = ("loss", "learning_rate", "documents_per_second", "wait_fraction")
SCORES = ("train_loss", "test_loss", "test_accuracy", "seconds")


@dataclass
class Point:
    """Consecutive steps: the last one, the smallest and the largest loss, the means of ``MEASURED``, their number."""

    step: int
    low: float
    high: float
    means: dict[str, float]
    count: int = 1

    def join(self, after: Point) -> None:
        total = self.count + after.count
        for name, mean in self.means.items():
            self.means[name] = mean + (after.means[name] - mean) * after.count / total
        self.step, self.count = after.step, total
        self.low, self.high = min(self.low, after.low), max(self.high, after.high)


@dataclass
class History:
    """Steps, epochs and events of a run.

    Attributes:
        points: at most twice ``MOST_POINTS`` points, of ``width`` steps each.
        width: number of steps per point.
        resumes: the first ``MOST_EVENTS`` steps after which the run was resumed.
        skipped: the first ``MOST_EVENTS`` skipped steps.
        counts: number of events "resume" and "skipped".
    """

    points: list[Point] = field(default_factory=list)
    width: int = 1
    epochs: list[Record] = field(default_factory=list)
    resumes: list[int] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: {"resume": 0, "skipped": 0})

    @property
    def seconds(self) -> float:
        """Training time of all epochs, without evaluation."""
        return float(sum(epoch["seconds"] for epoch in self.epochs))

    def add(self, record: Record) -> None:
        """Add a record; ignore a malformed one."""
        with suppress(KeyError, TypeError, ValueError):
            event, step = record["event"], integer(record["step"])
            if event == "step":
                means = {name: finite(record[name]) for name in MEASURED}
                self._add(Point(step, means["loss"], means["loss"], means))
            elif event == "epoch":
                integer(record["epoch"], most=MANY)
                for name in {*SCORES, *(name for name in record if name.endswith(("_loss", "_accuracy")))}:
                    finite(record[name])
                self.epochs.append(record)
            elif event in self.counts:
                self.counts[event] += 1
                steps = self.skipped if event == "skipped" else self.resumes
                if len(steps) < MOST_EVENTS:
                    steps.append(step)

    def _add(self, point: Point) -> None:
        if self.points and (self.points[-1].step - 1) // self.width == (point.step - 1) // self.width:
            self.points[-1].join(point)
            return
        self.points.append(point)
        if len(self.points) > 2 * MOST_POINTS:
            self.width *= 2
            before, self.points = self.points, []
            for point in before:
                self._add(point)


def of(run_dir: Path) -> History:
    """Read the history of the run in a folder."""
    history = History()
    for record in read(run_dir / METRICS):
        history.add(record)
    return history
