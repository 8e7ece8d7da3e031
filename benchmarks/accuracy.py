#!/usr/bin/env python3
"""Measure the accuracy of settings on data sets, as mean and standard deviation over seeds, and the training time.

    uv run benchmarks/accuracy.py data/sample
    uv run benchmarks/accuracy.py data/imdb data/ag --seeds 3 --with "" --with "--config configs/paper_small.yaml"
    uv run benchmarks/accuracy.py data/sample --with "" --with "--width 32" --with "--epochs 10"

The script trains on each data set with each set of flags (--with; default: no flags) and each seed. The runs are in a
temporary folder or in --out. The script prints a Markdown table. The time is the time of the whole command. The
accuracy is the accuracy of the reported epoch: the epoch that the validation split selects, or the last epoch if there
is no validation split.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from crepe_dist import command_runner
from crepe_dist.errors import UserError
from crepe_dist.runs.record import RunRecord, open_run
from crepe_dist.settings.fields import int_range
from crepe_dist.settings.flags import Parser


def main() -> None:
    flags = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("data", type=Path, nargs="+", metavar="DIR", help="prepared data")
    flags.add_argument(
        "--with", type=str, dest="settings", action="append", metavar="FLAGS", help="flags of crepe_dist.train, quoted"
    )
    flags.add_argument("--seeds", type=int_range(1, 1000), default=1, metavar="N", help="default: 1")
    flags.add_argument("--processes", type=int_range(1, 1024), default=1, metavar="N", help="default: 1")
    flags.add_argument("--out", type=Path, metavar="DIR", help="keep the runs in DIR, and reuse those found there")
    options = flags.parse_args()
    print("| data | settings | test accuracy | time |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for data in options.data:
            for settings in options.settings or [""]:
                out = options.out or Path(folder)
                results = [train(out, data, settings, seed, options.processes) for seed in range(options.seeds)]
                print(f"| {data.name} | {settings or 'the defaults'} | {_summary(results)} |", flush=True)


def train(out: Path, data: Path, settings: str, seed: int, processes: int) -> tuple[RunRecord, float]:
    """Train a run unless it exists; return its record and the seconds it took."""
    name = "_".join([data.name, *shlex.split(settings), str(seed)]).replace("/", "-")
    run, timed = out / name, out / f"{name}.json"
    if not timed.is_file():
        horovodrun = [str(Path(sys.executable).with_name("horovodrun")), "-np", str(processes)] if processes > 1 else []
        arguments = ["--data", str(data), "--run-dir", str(run), "--seed", str(seed), *shlex.split(settings)]
        began = time.monotonic()
        done = subprocess.run(
            [*horovodrun, sys.executable, "-m", "crepe_dist.train", *arguments], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise UserError(
                f"training with {settings or 'the defaults'} on {data} failed",
                done.stderr[-1000:],
                "run the command by itself",
            )
        timed.write_text(json.dumps({"seconds": time.monotonic() - began}) + "\n", encoding="utf-8")
    seconds = json.loads(timed.read_text(encoding="utf-8"))["seconds"]
    return open_run(run), seconds


def _summary(results: list[tuple[RunRecord, float]]) -> str:
    accuracies = [record.metrics["test_accuracy"] for record, _ in results]
    seconds = [duration for _, duration in results]
    spread = f" ± {100 * statistics.stdev(accuracies):.2f}" if len(results) > 1 else ""
    return f"{100 * statistics.mean(accuracies):.2f}{spread} % | {statistics.mean(seconds):.0f} s"


if __name__ == "__main__":
    command_runner.run(main)
