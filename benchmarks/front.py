#!/usr/bin/env python3
"""Measure accuracy against operations: Crepe by blocks and width, and its n-gram table alone.

    uv run benchmarks/front.py data/trec data/sample --out front.csv --picture front.svg
    uv run benchmarks/front.py --out front.csv --picture front.svg          # only draw

The data needs a validation split. Each point is saved to --out at once; run the same command again to resume. The
accuracies are those of the reported epoch. The operations are those of the forward pass for a document of full length.
The picture shows means over the seeds and over the data sets that have all points.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import tempfile
from pathlib import Path

import accuracy
import curves
import points as saved
from points import Point

from crepe_dist import command
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.files import write_text
from crepe_dist.model.parameters import shape_class
from crepe_dist.settings.config import parse
from crepe_dist.settings.fields import whole
from crepe_dist.settings.flags import Parser, check_output

LINES = {
    "the n-gram table alone": ["--model ngrams"],
    "1 block, width 32, 64, 128": [f"--blocks 1 --width {width}" for width in (32, 64, 128)],
    "2 blocks, width 64, 128": [f"--blocks 2 --width {width}" for width in (64, 128)],
}
SETTINGS = [settings for line in LINES.values() for settings in line]
KEY = ("data", "settings", "seed")
METRICS = ("validation_accuracy", "validation_loss", "test_accuracy")


def main() -> None:
    flags = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("data", type=Path, nargs="*", metavar="DIR", help="prepared data; none: only draw")
    flags.add_argument("--out", type=Path, required=True, metavar="FILE", help="CSV of the points; kept and extended")
    flags.add_argument("--seeds", type=whole(1, 1000), default=1, metavar="N", help="default: 1")
    flags.add_argument("--picture", type=Path, metavar="FILE", help="draw the front as SVG")
    options = flags.parse_args()
    check_output(options.picture, "--picture")
    points = saved.read(options.out)
    known = {tuple(point[name] for name in KEY) for point in points}
    for seed in range(options.seeds):
        for data in options.data:
            for settings in SETTINGS:
                if (data.name, settings, str(seed)) not in known:
                    points.append(measure(data, settings, seed))
                    saved.append(options.out, points[-1])
    if options.picture is not None:
        write_text(options.picture, picture(points))


def measure(data: Path, settings: str, seed: int) -> Point:
    """Train with these flags, and return the point."""
    with tempfile.TemporaryDirectory() as scratch:
        record, seconds = accuracy.train(Path(scratch), data, settings, seed, processes=1)
        metrics = record.metrics
    if "validation_accuracy" not in metrics:
        raise UserError(f"{data} has no validation split", remedy="prepare it again with --validation 0.1")
    dataset, model = open_dataset(data), parse(shlex.split(settings)).model
    encoding, rows = dataset.encoding, len(dataset.splits["train"])
    shape = shape_class({"kind": model.network}).for_data(
        model, encoding.codes, encoding.feature_len, len(dataset.classes), rows
    )
    print(f"{data.name}  {settings}  seed {seed}  {metrics['test_accuracy']:.2%}", flush=True)
    sizes = {"operations": str(shape.forward_operations()), "parameters": str(shape.parameters)}
    figures = {name: f"{metrics[name]:.5f}" for name in METRICS}
    return dict(zip(KEY, (data.name, settings, str(seed)))) | sizes | figures | {"seconds": f"{seconds:.1f}"}


def picture(points: list[Point]) -> str:
    """Draw test accuracy against operations, a line for each of ``LINES``."""
    by_run: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        by_run.setdefault((point["data"], point["settings"]), []).append(point)
    names = dict.fromkeys(point["data"] for point in points)
    complete = [name for name in names if all((name, settings) in by_run for settings in SETTINGS)]
    if not complete:
        raise UserError("no data set has all points", remedy="name one, and the missing points are measured")

    def mean(settings: str, column: str) -> float:
        runs = [by_run[name, settings] for name in complete]
        return statistics.mean(statistics.mean(float(point[column]) for point in seeds) for seeds in runs)

    lines: list[curves.Curve] = []
    for title, line in LINES.items():
        operations = [mean(settings, "operations") / 1e6 for settings in line]
        lines.append((title, operations, [mean(settings, "test_accuracy") for settings in line]))
    label = f"million operations for a document, mean over {len(complete)} data sets"
    return curves.picture(lines, label, curves.logarithmic)


if __name__ == "__main__":
    command.run(main)
