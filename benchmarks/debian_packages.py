#!/usr/bin/env python3
"""Make a data set from apt's package lists: descriptions of Debian packages, labelled with their sections.

    uv run benchmarks/debian_packages.py debian.csv
    python -m crepe_dist.prepare debian.csv --out data/debian --validation 0.1 --dedupe near

Uses the packages in the largest sections (--sections), each with the first line of its description.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from crepe_dist import command
from crepe_dist.errors import UserError
from crepe_dist.settings import arguments
from crepe_dist.settings.limits import whole


def main() -> None:
    flags = arguments.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("out", type=Path, metavar="FILE", help="CSV with the columns label and text")
    flags.add_argument("--sections", type=whole(2, 1000), default=20, metavar="N", help="default: 20")
    given = flags.parse_args()
    if shutil.which("apt-cache") is None:
        raise UserError("apt-cache was not found", remedy="run this on Debian or Ubuntu")
    listed = subprocess.run(["apt-cache", "dumpavail"], check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
    packages = pd.DataFrame(_described(listed), columns=["label", "text"])
    if packages.empty:
        raise UserError("apt has no package lists", remedy="apt-get update")
    largest(packages, given.sections).to_csv(given.out, index=False)


def _described(listed: str) -> Iterator[tuple[str, str]]:
    for record in records(listed.split("\n")):
        text = record.get("Description") or record.get("Description-en") or ""
        if text and "Section" in record:
            yield record["Section"], text.partition("\n")[0]


def records(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """Parse the records of an index of apt: fields by name, whose further lines keep their indentation."""
    record: dict[str, str] = {}
    name = ""
    for line in itertools.chain(lines, [""]):
        line = line.rstrip("\n")
        if not line:
            if record:
                yield record
            record, name = {}, ""
        elif line[0] not in " \t":
            name, _, value = line.partition(":")
            record[name] = value.strip()
        elif name:
            record[name] += f"\n{line}"


def largest(rows: pd.DataFrame, classes: int) -> pd.DataFrame:
    """Keep the rows of the classes with the most rows."""
    return rows[rows["label"].isin(rows["label"].value_counts().index[:classes])].copy()


if __name__ == "__main__":
    command.run(main)
