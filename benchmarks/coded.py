#!/usr/bin/env python3
"""Measure models on texts with feature columns and hierarchical labels.

    uv run --group comparison --with fasttext-wheel benchmarks/coded.py debian
    uv run --group comparison --with fasttext-wheel benchmarks/coded.py debtags
    uv run --extra parquet --group comparison --with fasttext-wheel benchmarks/coded.py norway --train A --test B

`debian` and `debtags` are the packages in the APT lists of this host. The class is the section in `debian`, and the
most detailed tag in `debtags`. `norway` reads the two Parquet files of Norwegian enterprises that AIML4OS publishes
(github.com/AIML4OS/WP10, NorwayTestData: 440,746 and 110,182 rows, 623 industries). AIML4OS published these figures of
flat fastText, perhaps on another split: weighted F1 0.60, macro F1 0.32, hierarchical F1 0.667.

The script prints the table of baselines.py, without and with the feature columns. --models selects some of its models.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import baselines
import pandas as pd
from commands import call

from crepe_dist import command_runner
from crepe_dist.settings.flags import Parser

FACETS = frozenset(
    ("admin", "devel", "field", "game", "hardware", "mail", "network", "science", "sound", "use", "web", "works-with")
)
LEAST = 20  # packages of a class


class Columns(NamedTuple):
    """Names of the columns of a set."""

    label: str
    texts: tuple[str, ...]
    categories: tuple[str, ...]
    numbers: tuple[str, ...]
    separator: str | None  # of levels


BESIDE = ("Architecture", "Priority", "Multi-Arch", "Maintainer")
SETS = {
    "debian": Columns("Section", ("Package", "Description"), BESIDE, ("Size",), None),
    "debtags": Columns("Tag", ("Package", "Description"), (*BESIDE, "Section"), ("Size",), " > "),
    "norway": Columns(
        "nace_21_code",
        ("company_name", "company_activity", "company_purpose"),
        ("orgform", "sector_code", "language"),
        ("number_of_employees",),
        ".",
    ),
}
MODELS = {**dict.fromkeys(baselines.OURS), "svm": baselines.svm, "fasttext": baselines.fasttext}


def main() -> None:
    flags = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("set", choices=tuple(SETS))
    flags.add_argument("--train", type=Path, metavar="FILE", help="training rows of norway")
    flags.add_argument("--test", type=Path, metavar="FILE", help="test rows of norway")
    flags.add_argument("--models", nargs="+", choices=tuple(MODELS), default=tuple(MODELS))
    options = flags.parse_args()
    columns = SETS[options.set]
    ours = [name for name in baselines.OURS if name in options.models]
    rivals = {name: rival for name, rival in MODELS.items() if rival and name in options.models}
    print(baselines.HEADER, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options.set != "norway":
            options.train = folder / "packages.csv"
            rows(options.set).to_csv(options.train, index=False)
        for name, prepared in commands(columns, options.train, options.test):
            data = folder / f"{options.set}, {name}"
            call([sys.executable, "-m", "crepe_dist", "prepare", *prepared, "--out", str(data)])
            baselines.compare(data, rivals, ours)


def commands(columns: Columns, train: Path, test: Path | None) -> Iterator[tuple[str, list[str]]]:
    """Yield the arguments of ``prepare`` without and with the columns beside the text."""
    given = [str(train), "--validation", "0.1", "--label", columns.label, *(["--test", str(test)] if test else [])]
    given += [each for name in columns.texts for each in ("--text-column", name)]
    given += ["--levels", columns.separator] if columns.separator else []
    yield "texts", given
    beside = [each for name in columns.categories for each in ("--category", name)]
    yield "with columns", [*given, *beside, *(each for name in columns.numbers for each in ("--number", name))]


def rows(of: str) -> pd.DataFrame:
    """Read the packages; maintainers are reduced to their domains, and tags to the one that counts."""
    records = call(["apt-cache", "dumpavail"]).replace("\n ", " ").split("\n\n")
    fields = [dict(line.split(": ", 1) for line in record.splitlines() if ": " in line) for record in records]
    label, texts, categories, numbers, _ = SETS[of]
    packages = pd.DataFrame(fields, columns=[label, *texts, *categories, *numbers]).fillna("")
    packages["Maintainer"] = packages["Maintainer"].str.extract(r"@([^>]*)", expand=False)
    packages[label] = packages[label].map(tag) if label == "Tag" else packages[label]
    return packages[packages.groupby(label)[label].transform("size").ge(LEAST) & packages[label].ne("")]


def tag(tags: str) -> str:
    """Return the first of the most detailed tags of a package, such as ``devel > lang > perl``; empty without one."""
    every = [each.replace("::", ":").split(":") for each in tags.split(", ")]
    paths = [path for path in every if path[0] in FACETS]
    longest = max(sorted(paths), key=len, default=[])
    return " > ".join(longest)


if __name__ == "__main__":
    command_runner.run(main)
