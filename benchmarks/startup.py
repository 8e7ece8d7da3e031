#!/usr/bin/env python3
"""Time how long ``train`` takes to its first step and for its report, and how long ``predict`` takes for one text.

    uv run crepe prepare sample --out data/sample
    uv run benchmarks/startup.py data/sample --rounds 5

The first step follows the line that estimates the training time. With --imports, it also prints what takes the longest
to import.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from crepe_dist import command
from crepe_dist.settings import arguments
from crepe_dist.settings.limits import whole

PYTHON = (sys.executable, "-u", "-W", "ignore")
SLOWEST = 15  # imports to show


def main() -> None:
    flags = arguments.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("data", type=Path, metavar="DIR", help="prepared data")
    flags.add_argument("--rounds", type=whole(1, 100), default=3, metavar="N", help="default: 3")
    flags.add_argument("--imports", action="store_true", help="also profile the imports of predict")
    args = flags.parse_args()
    seconds_by_name: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        predict = ["-m", "crepe_dist.predict", folder + "/run-0", "--text", "a wonderful film"]
        for number in range(args.rounds):
            train = [
                *PYTHON,
                "-m",
                "crepe_dist.train",
                "--data",
                str(args.data),
                "--run-dir",
                f"{folder}/run-{number}",
            ]
            for name, seconds in _train([*train, "--epochs", "1"]).items():
                seconds_by_name.setdefault(name, []).append(seconds)
            began = time.perf_counter()
            subprocess.run([*PYTHON, *predict], check=True, stdout=subprocess.DEVNULL)
            seconds_by_name.setdefault("predict, one text", []).append(time.perf_counter() - began)
        for name, times in seconds_by_name.items():
            print(f"{name:<24}{statistics.median(times):6.2f} s   ({min(times):.2f} to {max(times):.2f})")
        if args.imports:
            profiled = [*PYTHON, "-X", "importtime", *predict]
            lines = subprocess.run(profiled, check=True, capture_output=True, text=True).stderr.splitlines()
            rows = [line.split("|") for line in lines if line.startswith("import time:") and "[us]" not in line]
            for own, _, name in sorted(rows, key=lambda row: -int(row[0].split(":")[1]))[:SLOWEST]:
                print(f"{int(own.split(':')[1]) / 1000:8.0f} ms  {name.strip()}")


def _train(arguments: list[str]) -> dict[str, float]:
    """Run a training command; return the seconds to its first step, and those of its report."""
    began = time.perf_counter()
    times = {}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            times[line.partition(" ")[0]] = time.perf_counter()
    ended = time.perf_counter()
    return {"train, to the first step": times["time"] - began, "report of a run": ended - times["test"]}


if __name__ == "__main__":
    command.run(main)
