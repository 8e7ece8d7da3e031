#!/usr/bin/env python3
"""Measure the networks with each build of the kernels that this processor can run, on texts of the sample.

    uv run benchmarks/builds.py
    uv run benchmarks/builds.py --builds avx2 generic --rounds 3

Prints a Markdown table: documents/s of an epoch, and of a prediction by a loaded model; medians over the rounds, in
which the builds take turns. ``auto`` chooses the precision.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path

from short_texts import KINDS, measure, prepare

from crepe_dist import command
from crepe_dist.data.dataset import open_dataset
from crepe_dist.native import library
from crepe_dist.scratch import scratch
from crepe_dist.settings.fields import whole
from crepe_dist.settings.flags import Parser


def main() -> None:
    flags = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--builds", nargs="+", choices=library.runnable(), default=library.runnable())
    flags.add_argument("--rounds", type=whole(1, 100), default=3, metavar="N", help="default: 3")
    flags.add_argument("--epochs", type=whole(1, 100), default=1, metavar="N", help="default: 1")
    flags.add_argument("--per-class", type=whole(1, 10**6), default=1500, metavar="N", help="rows; default: 1500")
    args = flags.parse_args()
    with scratch() as folder:
        _measure(args, folder)


def _measure(args: argparse.Namespace, folder: Path) -> None:
    sample = prepare("sample", folder / "sample", "--max-per-class", args.per_class)
    data = open_dataset(sample)
    rates: dict[tuple[str, str, str], list[float]] = {}
    for number in range(args.rounds):
        for build in args.builds:
            os.environ[library.SWITCH] = build
            for kind in KINDS:
                figures = measure(kind, args.epochs, sample, folder / f"{build}-{kind}-{number}", data)
                for name in ("train_rate", "predict_rate"):
                    rates.setdefault((build, kind, name), []).append(figures[name])
    columns = [(kind, name) for kind in reversed(KINDS) for name in ("train_rate", "predict_rate")]
    print("| build |" + "|".join(f" {kind}, {name.removesuffix('_rate')} " for kind, name in columns) + "|")
    print("|---" * (1 + len(columns)) + "|")
    for build in args.builds:
        medians = (statistics.median(rates[(build, *column)]) for column in columns)
        print(f"| {build} |" + "|".join(f" {median:,.0f} " for median in medians) + "|")


if __name__ == "__main__":
    command.run(main)
