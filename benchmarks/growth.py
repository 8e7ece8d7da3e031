#!/usr/bin/env python3
"""Measure what more rows cost: preparation, training, memory and disk, beside fastText and scikit-learn.

    uv run benchmarks/debian_data.py paragraphs paragraphs
    uv run --group comparison --with fasttext-wheel benchmarks/growth.py paragraphs --out growth.csv
    uv run benchmarks/growth.py paragraphs --out growth.csv --systems prepare ngrams --rows 10000 100000
    uv run benchmarks/growth.py paragraphs --out growth.csv --systems --picture docs/images/growth.svg

The rows are Debian's paragraphs in random order. Beyond their number they are repeated, every time with one typing
error in each text. They have 120 characters on average. Accuracies tell nothing: copies of a row are in all splits.

prepare    `crepe prepare`
crepe      `crepe train` with one process and with two: --seconds of steps
ngrams     the same with the n-gram table alone
fasttext   train_supervised for an epoch, 2 to 6 characters: reads the file, counts words, trains
sklearn    HashingVectorizer of 1 to 5 characters within words and SGDClassifier.partial_fit: at most --seconds

Memory is the sum of the anonymous pages of all processes, and the shared pages of the one with the most; pages of
files, which the kernel can drop, do not count. Each measurement is saved to --out at once. Run the same command again
to resume; to repeat measurements, remove their lines.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import os
import random
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import curves
from commands import TRAIN, started

from crepe_dist import command, machine
from crepe_dist.distributed.launch import horovodrun
from crepe_dist.errors import UserError
from crepe_dist.files import write_text
from crepe_dist.runs import metrics
from crepe_dist.settings.fields import whole
from crepe_dist.settings.flags import Parser, check_output

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = (10_000, 100_000, 1_000_000, 10_000_000)
SYSTEMS = ("prepare", "crepe", "ngrams", "fasttext", "sklearn")
WARM_UP = 20  # steps that do not count
TITLES = {
    "prepare": "crepe prepare",
    "crepe": "Crepe, np {}",
    "ngrams": "n-gram table, np {}",
    "fasttext": "fastText, reading and an epoch",
    "sklearn": "scikit-learn, out of core",
}
LETTERS = "etaoinshrdlu"  # that typing errors insert
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Point:
    """A measurement.

    Args:
        rows: of the data.
        processes: number of processes; of fastText, of threads.
        measured: rows that took ``seconds``; of training, documents.
        processor_seconds: of the whole command.
        memory: peak in bytes.
        disk: bytes of the result.
    """

    rows: int
    system: str
    processes: int
    measured: int
    seconds: float
    processor_seconds: float
    memory: int
    disk: int = 0


def main() -> None:
    flags = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("paragraphs", type=Path, metavar="DIR", help="made by debian_data.py paragraphs")
    flags.add_argument("--out", type=Path, required=True, metavar="FILE", help="CSV of the points; kept and extended")
    flags.add_argument("--rows", type=whole(1000, 10**9), nargs="+", default=ROWS, metavar="N")
    flags.add_argument("--systems", nargs="*", choices=SYSTEMS, default=SYSTEMS, metavar="NAME", help="default: all")
    flags.add_argument("--folder", type=Path, default=Path("data/growth"), metavar="DIR", help="for the data; kept")
    flags.add_argument("--seconds", type=whole(1, 10**6), default=10, metavar="N", help="of steps; default: 10")
    flags.add_argument("--with", type=str, dest="settings", default="", metavar="FLAGS", help="of train, quoted")
    flags.add_argument("--picture", type=Path, metavar="FILE", help="draw the points as SVG")
    options = flags.parse_args()
    check_output(options.picture, "--picture")
    options.folder.mkdir(parents=True, exist_ok=True)
    points = read(options.out)
    done = {(point.rows, point.system, point.processes) for point in points}
    for rows, system in itertools.product(options.rows, options.systems):
        for processes in {"crepe": (1, 2), "ngrams": (1, 2), "sklearn": (1,)}.get(system, (machine.cores(),)):
            if (rows, system, processes) not in done:
                points.append(measure(system, rows, processes, options))
                print(points[-1], flush=True)
                _write(options.out, points)
    if options.picture is not None:
        write_text(options.picture, picture(points))


def measure(system: str, rows: int, processes: int, options: Any) -> Point:
    """Measure a system on so many rows, which are written first if they are missing."""
    table, lines, data = (options.folder / f"{rows}{suffix}" for suffix in (".csv", ".txt", ""))
    if not lines.is_file():
        write_rows(options.paragraphs, rows, table, lines)
    if system == "prepare":
        shutil.rmtree(data, ignore_errors=True)
        run = Watched([sys.executable, "-m", "crepe_dist.prepare", str(table), "--out", str(data)])
        disk = sum(path.stat().st_size for path in data.iterdir())
        return Point(rows, system, processes, rows, run.seconds, run.processor_seconds, run.memory, disk)
    if system in ("crepe", "ngrams"):
        if not data.is_dir():
            raise UserError(f"{data} is missing", remedy="measure the system prepare first")
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            return _train(system, rows, processes, data, Path(folder) / "run", options)
    worker = str(Path(__file__).with_name("growth_worker.py"))
    run = Watched([sys.executable, worker, system, str(lines), str(processes), str(options.seconds)])
    count, seconds = json.loads(run.output.splitlines()[-1])
    return Point(rows, system, processes, count, seconds, run.processor_seconds, run.memory)


def _train(system: str, rows: int, processes: int, data: Path, run_dir: Path, options: Any) -> Point:
    """Train until the steps after the warm-up have taken ``options.seconds``, or to the end."""

    def steps() -> list[metrics.Record]:
        records = [record for record in metrics.read(run_dir / metrics.METRICS) if record["event"] == "step"]
        return records[WARM_UP:]

    launch = [str(horovodrun()), "-np", str(processes)] if processes > 1 else []
    flags = ["--model", system, "--data", str(data), "--run-dir", str(run_dir), *shlex.split(options.settings)]
    run = Watched(
        [*launch, *TRAIN, *flags], lambda: sum(step["milliseconds"] for step in steps()) >= 1000 * options.seconds
    )
    seconds = [step["milliseconds"] / 1000 for step in steps()]
    documents = sum(step["documents_per_second"] * time for step, time in zip(steps(), seconds))
    return Point(rows, system, processes, round(documents), sum(seconds), run.processor_seconds, run.memory)


class Watched:
    """A command that was run to its end, or ``until`` a condition held, and what it took."""

    def __init__(self, arguments: Sequence[str], until: Callable[[], bool] = lambda: False) -> None:
        self.memory = 0
        processor: dict[int, float] = {}
        began = time.monotonic()
        with started(arguments) as (process, output):
            while (code := process.poll()) is None and not until():
                status = {pid: _status(pid) for pid in _family(process.pid)}
                processor.update({pid: max(processor.get(pid, 0), seconds) for pid, (seconds, _, _) in status.items()})
                _, anonymous, shared = zip(*status.values())
                self.memory = max(self.memory, sum(anonymous) + max(shared))
                time.sleep(0.2)
            self.seconds, self.processor_seconds = time.monotonic() - began, sum(processor.values())
            self.output, errors = (stream.read_text(errors="replace") for stream in output)
        if code:
            raise UserError(f"exit code {code}: {shlex.join(arguments)}", errors[-1000:], "run it by itself")


def _family(process: int) -> list[int]:
    pids = [process]
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(OSError):  # the process has ended
                pids += map(int, task.read_text().split())
    return pids


def _status(process: int) -> tuple[float, int, int]:
    """Return the processor seconds, anonymous and shared bytes of a process; zeros if it has ended."""
    try:
        user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        anonymous, shared = (int(lines[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem"))
    except (OSError, KeyError):  # a process that has ended has no memory
        return 0.0, 0, 0
    return (int(user) + int(system)) / TICKS, anonymous, shared


def write_rows(paragraphs: Path, rows: int, table: Path, lines: Path) -> None:
    """Write so many rows, seeded, as CSV and in fastText's format."""
    texts: list[tuple[str, str]] = []
    for name in ("train", "validation", "test"):
        with (paragraphs / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
            texts += [(row["label"], row["text"]) for row in csv.DictReader(stream)]
    generator = random.Random(0)
    generator.shuffle(texts)
    copies = itertools.chain(
        texts, ((label, mistyped(text, generator)) for _ in itertools.count() for label, text in texts)
    )
    with table.open("w", newline="", encoding="utf-8") as comma, lines.open("w", encoding="utf-8") as words:
        writer = csv.writer(comma)
        writer.writerow(("label", "text"))
        for label, text in itertools.islice(copies, rows):
            writer.writerow((label, text))
            words.write(f"__label__{label} {text}\n")


def mistyped(text: str, generator: random.Random) -> str:
    """Swap two characters, leave one out or insert one."""
    place, kind = int(generator.random() * (len(text) - 1)), generator.random()
    before, after = text[:place], text[place:]
    if kind < 1 / 3:
        return f"{before}{after[1]}{after[0]}{after[2:]}"
    return before + after[1:] if kind < 2 / 3 else before + generator.choice(LETTERS) + after


def picture(points: Sequence[Point]) -> str:
    """Draw rows per second against rows, as SVG."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for point in sorted(points, key=lambda point: (SYSTEMS.index(point.system), point.processes, point.rows)):
        rate = point.measured / point.seconds
        lines.setdefault(TITLES[point.system].format(point.processes), []).append((point.rows, rate))
    drawn = [(name, [rows for rows, _ in line], [rate for _, rate in line]) for name, line in lines.items()]
    return curves.picture(drawn, "rows", _scales, columns=2)


def _scales(axes: Axes) -> None:
    axes.set(xscale="log", yscale="log", ylabel="rows per second")
    axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:,.0f}")
    axes.xaxis.set_major_formatter(lambda rows, _: f"{rows:,.0f}")


def read(path: Path) -> list[Point]:
    """Read the points measured before."""
    if not path.is_file():
        return []
    kinds = {"system": str, "seconds": float, "processor_seconds": float}
    with path.open(newline="", encoding="utf-8") as stream:
        return [
            Point(**{name: kinds.get(name, int)(value) for name, value in row.items()})
            for row in csv.DictReader(stream)
        ]


def _write(path: Path, points: Sequence[Point]) -> None:
    with io.StringIO(newline="") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Point)])
        writer.writeheader()
        writer.writerows(map(asdict, points))
        write_text(path, stream.getvalue())


if __name__ == "__main__":
    command.run(main)
