#!/usr/bin/env python3
"""Measure training on synthetic texts whose classes differ only in one group of three letters.

    uv run benchmarks/synthetic.py
    uv run benchmarks/synthetic.py --classes 2 --rows 2000 --length 300

Makes texts of random letters and spaces. Each class has its own three-letter group, which is placed once into each of
its texts. Trains with the defaults and prints a Markdown table: accuracy on 2,000 further texts, accuracy of the
majority-class baseline, and the reachable accuracy. The latter is below 1 because long texts contain the groups of
other classes by chance.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist import command
from crepe_dist.runs.run_record import open_run
from crepe_dist.settings.fields import whole
from crepe_dist.settings.flags import Parser

LETTERS = "abcdefghijklmnopqrstuvwxyz "
TEST_ROWS = 2000


def main() -> None:
    flags = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--classes", type=whole(2, 1000), nargs="+", default=[2, 10, 50], metavar="N")
    flags.add_argument("--rows", type=whole(100, 10**6), nargs="+", default=[2000, 20000], metavar="N")
    flags.add_argument("--length", type=whole(3, 100_000), nargs="+", default=[30, 300, 3000], metavar="N")
    flags.add_argument(
        "--with", type=str, dest="settings", default="", metavar="FLAGS", help="flags of crepe_dist.train, quoted"
    )
    given = flags.parse_args()
    print("| classes | rows | characters | accuracy | majority class | reachable | time |", flush=True)
    print("|---" * 7 + "|", flush=True)
    for classes, rows, length in itertools.product(given.classes, given.rows, given.length):
        with tempfile.TemporaryDirectory() as folder:
            print(
                f"| {classes} | {rows:,} | {length:,} | {_try(Path(folder), classes, rows, length, given.settings)} |",
                flush=True,
            )


def _try(folder: Path, classes: int, rows: int, length: int, settings: str) -> str:
    generator = np.random.default_rng([classes, rows, length])
    letters = generator.choice(26**3, classes, replace=False)
    own = np.stack([letters // 676, letters // 26 % 26, letters % 26], axis=1)
    for name, count in (("train", rows), ("test", TEST_ROWS)):
        labels, texts = _texts(generator, own, count, length)
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows(
                [label + 1, "".join(LETTERS[code] for code in text)] for label, text in zip(labels, texts.tolist())
            )
    began = time.monotonic()
    _run("prepare", folder, "--out", folder / "data")
    _run("train", "--data", folder / "data", "--run-dir", folder / "run", *shlex.split(settings))
    seconds = time.monotonic() - began
    majority = np.bincount(labels).max() / len(labels)
    metrics = open_run(folder / "run").metrics
    cells = [metrics["test_accuracy"], majority, _reachable(texts, labels, own)]
    return " | ".join([*(f"{100 * cell:.1f} %" for cell in cells), f"{seconds:.0f} s"])


def _texts(
    generator: np.random.Generator, own: npt.NDArray[Any], count: int, length: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return labels, int64 [count], and letter codes, int8 [count, length]."""
    labels = generator.integers(0, len(own), count)
    texts = generator.integers(0, len(LETTERS), (count, length)).astype(np.int8)
    places = generator.integers(0, length - 2, count)
    for offset in range(3):
        texts[np.arange(count), places + offset] = own[labels, offset]
    return labels, texts


def _reachable(texts: npt.NDArray[Any], labels: npt.NDArray[Any], own: npt.NDArray[Any]) -> float:
    """Return the expected accuracy of a guess among the classes whose group occurs in the text."""
    holds = np.stack([_holds(texts, three) for three in own], axis=1)
    return float((1 / holds.sum(axis=1))[holds[np.arange(len(labels)), labels]].sum() / len(labels))


def _holds(texts: npt.NDArray[Any], three: npt.NDArray[Any]) -> npt.NDArray[Any]:
    found = np.logical_and.reduce([texts[:, i : texts.shape[1] - 2 + i] == three[i] for i in range(3)])
    return np.asarray(found.any(axis=1))


def _run(name: str, *arguments: Any) -> None:
    subprocess.run(
        [sys.executable, "-m", f"crepe_dist.{name}", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL
    )


if __name__ == "__main__":
    command.run(main)
