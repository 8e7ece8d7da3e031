#!/usr/bin/env python3
"""Measure models on texts with feature columns and hierarchical labels.

    uv run --group comparison --with fasttext-wheel benchmarks/coded.py debian
    uv run --group comparison --with fasttext-wheel benchmarks/coded.py debtags
    uv run --extra parquet --group comparison --with fasttext-wheel benchmarks/coded.py norway --train A --test B

`debian` and `debtags` are the packages in the APT lists of this host. In `debian`, the class of a package is its
section. In `debtags`, the class is its most detailed tag. `norway` reads the two Parquet files of Norwegian enterprises
that AIML4OS publishes (github.com/AIML4OS/WP10, NorwayTestData: 440,746 and 110,182 rows, 623 industries). For fastText
without hierarchy, AIML4OS reports a weighted F1 of 0.60, a macro F1 of 0.32 and a hierarchical F1 of 0.667, perhaps on
another split.

The script prints the same table as baselines.py, first for the texts alone, and then for the texts with the feature
columns. --models selects some of the models.
"""

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
MIN_PACKAGES = 20  # minimum number of packages of a class


class Columns(NamedTuple):
    """Names of a data set's columns."""

    label: str
    texts: tuple[str, ...]
    categories: tuple[str, ...]
    numbers: tuple[str, ...]
    separator: str | None  # text between the levels of a hierarchical label


PACKAGE_CATEGORIES = ("Architecture", "Priority", "Multi-Arch", "Maintainer")
SETS = {
    "debian": Columns("Section", ("Package", "Description"), PACKAGE_CATEGORIES, ("Size",), None),
    "debtags": Columns("Tag", ("Package", "Description"), (*PACKAGE_CATEGORIES, "Section"), ("Size",), " > "),
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
    rivals = {name: measure for name, measure in MODELS.items() if measure and name in options.models}
    print(baselines.HEADER, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options.set != "norway":
            options.train = folder / "packages.csv"
            read_packages(options.set).to_csv(options.train, index=False)
        for name, prepared in commands(columns, options.train, options.test):
            data = folder / f"{options.set}, {name}"
            call([sys.executable, "-m", "crepe_dist", "prepare", *prepared, "--out", str(data)])
            baselines.compare(data, rivals, ours)


def commands(columns: Columns, train: Path, test: Path | None) -> Iterator[tuple[str, list[str]]]:
    """Yield the arguments of ``prepare``: first for the texts alone, then for the texts with the feature columns."""
    arguments = [str(train), "--validation", "0.1", "--label", columns.label, *(["--test", str(test)] if test else [])]
    arguments += [word for name in columns.texts for word in ("--text-column", name)]
    arguments += ["--levels", columns.separator] if columns.separator else []
    yield "texts", arguments
    features = [word for name in columns.categories for word in ("--category", name)]
    features += [word for name in columns.numbers for word in ("--number", name)]
    yield "with columns", [*arguments, *features]


def read_packages(name: str) -> pd.DataFrame:
    """Read the packages in the APT lists as a table with the columns of the data set ``name``.

    The domain of a maintainer's address replaces the maintainer, and the most detailed tag replaces the tags. Classes
    with fewer than ``MIN_PACKAGES`` packages are left out.
    """
    records = call(["apt-cache", "dumpavail"]).replace("\n ", " ").split("\n\n")
    fields = [dict(line.split(": ", 1) for line in record.splitlines() if ": " in line) for record in records]
    label, texts, categories, numbers, _ = SETS[name]
    packages = pd.DataFrame(fields, columns=[label, *texts, *categories, *numbers]).fillna("")
    packages["Maintainer"] = packages["Maintainer"].str.extract(r"@([^>]*)", expand=False)
    packages[label] = packages[label].map(tag) if label == "Tag" else packages[label]
    return packages[packages.groupby(label)[label].transform("size").ge(MIN_PACKAGES) & packages[label].ne("")]


def tag(tags: str) -> str:
    """Return the most detailed tag of a package, such as ``devel > lang > perl``, or an empty text.

    Only tags of ``FACETS`` count. If several tags have the most levels, return the first in alphabetical order.
    """
    all_paths = [name.replace("::", ":").split(":") for name in tags.split(", ")]
    paths = [path for path in all_paths if path[0] in FACETS]
    longest = max(sorted(paths), key=len, default=[])
    return " > ".join(longest)


if __name__ == "__main__":
    command_runner.run(main)
