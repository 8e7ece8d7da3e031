#!/usr/bin/env python3
"""Measure how long ``crepe --help``, the first step of ``train``, its report, and ``predict`` of one text take.

    uv run crepe prepare sample --out data/sample
    uv run benchmarks/startup.py data/sample --rounds 5
    uv run benchmarks/startup.py --install 3.11 3.13

The first step follows the line that estimates the training time. --install builds a wheel. For each Python, it installs
the wheel two times, each time into a fresh environment. The second time, the package cache is warm.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from crepe_dist import command_runner
from crepe_dist.settings.fields import int_range
from crepe_dist.settings.flags import Parser

PYTHON = (sys.executable, "-u", "-W", "ignore")
ROOT = Path(__file__).resolve().parents[1]
LARGEST = 5  # packages to show


def main() -> None:
    flags = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("data", type=Path, metavar="DIR", nargs="?", help="prepared data")
    flags.add_argument("--rounds", type=int_range(1, 100), default=3, metavar="N", help="default: 3")
    flags.add_argument("--install", nargs="+", default=[], metavar="PYTHON", help="also install it for these Pythons")
    args = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.data is not None:
            _time(args.data, Path(folder), args.rounds)
        if args.install:
            subprocess.run(("uv", "build", "-q", "--wheel", "-o", folder, str(ROOT)), check=True)
            (wheel,) = Path(folder).glob("*.whl")
            for python in args.install:
                _install(wheel, python)


def _time(data: Path, folder: Path, rounds: int) -> None:
    """Run the commands several times, and print their median, least and greatest seconds."""
    seconds_by_name: dict[str, list[float]] = {}
    for number in range(rounds):
        run = folder / f"run-{number}"
        train = ("-m", "crepe_dist.train", "--data", str(data), "--run-dir", str(run), "--epochs", "1")
        times = {
            "crepe --help": _seconds((*PYTHON, "-m", "crepe_dist", "--help")),
            **_train((*PYTHON, *train)),
            "predict, one text": _seconds((*PYTHON, *_predict(folder))),
        }
        for name, seconds in times.items():
            seconds_by_name.setdefault(name, []).append(seconds)
    for name, measured in seconds_by_name.items():
        print(f"{name:<26}{statistics.median(measured):6.2f} s   ({min(measured):.2f} to {max(measured):.2f})")


def _predict(folder: Path) -> tuple[str, ...]:
    return ("-m", "crepe_dist", "predict", str(folder / "run-0"), "--text", "a wonderful film")


def _train(arguments: Sequence[str]) -> dict[str, float]:
    """Run a training command; return the seconds to its first step, and those of its report."""
    began = time.perf_counter()
    times = {}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            times[line.partition(" ")[0]] = time.perf_counter()
    ended = time.perf_counter()
    return {"train, to the first step": times["time"] - began, "report of a run": ended - times["test"]}


def _seconds(arguments: Sequence[str], **environment: str) -> float:
    began = time.perf_counter()
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
    return time.perf_counter() - began


def _install(wheel: Path, python: str) -> None:
    """Install a wheel twice; print the seconds of the second time, the megabytes, and the largest packages."""
    for folder in (wheel.parent / f"cold-{python}", wheel.parent / f"warm-{python}"):
        subprocess.run(("uv", "venv", "-q", "-p", python, str(folder)), check=True)
        install = ("uv", "pip", "install", "-q", "--directory", str(folder), str(wheel))  # where no pyproject.toml pins
        seconds = _seconds(install, VIRTUAL_ENV=str(folder))
    (packages,) = folder.glob("lib/python3.*/site-packages")
    sizes: Counter[str] = Counter()
    for file in packages.rglob("*"):
        if file.is_file():
            sizes[file.relative_to(packages).parts[0].removesuffix(".libs")] += file.stat().st_size
    total, count = sum(sizes.values()), len(list(packages.glob("*.dist-info")))
    print(f"Python {python}: {total / 1e6:.0f} MB, {count} packages, installed in {seconds:.1f} s from a warm cache")
    for name, size in sizes.most_common(LARGEST):
        print(f"{size / 1e6:8.1f} MB  {name}")


if __name__ == "__main__":
    command_runner.run(main)
