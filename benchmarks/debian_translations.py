#!/usr/bin/env python3
"""Make a data set in many languages from apt's translated descriptions of packages, labelled with their sections.

    uv run benchmarks/debian_translations.py translations
    uv run benchmarks/debian_translations.py paragraphs --paragraphs
    python -m crepe_dist.prepare translations --out data/translations --dedupe near

Writes train.csv, validation.csv and test.csv with the columns label, language, package and text; --label language makes
the language the class. Uses the packages in the largest sections (--sections); everything that is written about the
packages of one source is in one split, because they share sentences.

Most container images exclude translations from apt's lists. This fetches them from the sources in /etc/apt into its own
folder (--lists, 200 MB), without changing the system's settings. It needs no root.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd
from debian_packages import largest, records

from crepe_dist import command
from crepe_dist.errors import UserError
from crepe_dist.files import cache_folder
from crepe_dist.settings import arguments
from crepe_dist.settings.limits import whole

COLUMNS = ["label", "language", "package", "text"]
TEST, VALIDATION = 0.1, 0.05  # shares of the sources
SHORTEST = 20  # characters of a paragraph; shorter ones are headings such as "Features:"
ITEM = re.compile(r"\s+[-*+o•·] ")
OFFERED = re.compile(r"i18n/Translation-([\w@-]+)")


def main() -> None:
    flags = arguments.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("out", type=Path, metavar="DIR", help="folder for train.csv, validation.csv and test.csv")
    flags.add_argument("--paragraphs", action="store_true", help="make a row of each paragraph and list item")
    flags.add_argument("--sections", type=whole(2, 1000), default=40, metavar="N", help="default: 40")
    flags.add_argument("--lists", type=Path, metavar="DIR", help="apt's lists; default: in ~/.cache/crepe_dist")
    given = flags.parse_args()
    packages, translations = fetched(given.lists or cache_folder() / "apt")
    rows = table(packages, translations, given.sections, given.paragraphs)
    given.out.mkdir(parents=True, exist_ok=True)
    for name, some in rows.groupby("split"):
        some[COLUMNS].to_csv(given.out / f"{name}.csv", index=False)
    counts, sizes = rows[COLUMNS].nunique(), rows["split"].value_counts()
    print(
        f"{len(rows):,} rows ({', '.join(f'{name} {size:,}' for name, size in sizes.items())}), "
        f"{rows['text'].str.len().sum() / 1e6:,.0f} million characters, {counts['package']:,} packages, "
        f"{counts['language']} languages, {counts['label']} classes"
    )


def fetched(folder: Path) -> tuple[list[Path], list[tuple[str, Path]]]:
    """Fetch apt's indices into ``folder``.

    Returns:
        The indices of packages, and the language and file of each index of translations.

    Raises:
        UserError: apt is missing, cannot fetch the indices, or its sources offer no translations.
    """
    if shutil.which("apt-get") is None:
        raise UserError("apt-get was not found", "it fetches the translations", "run this on Debian or Ubuntu")
    folder = folder.absolute()
    for each in ("lists/partial", "cache/archives/partial"):
        (folder / each).mkdir(parents=True, exist_ok=True)
    _apt(folder, ["en"], "update")  # English alone, for the Release files, which list the languages
    releases = [path.read_text(encoding="utf-8", errors="replace") for path in (folder / "lists").glob("*Release")]
    languages = sorted({language for release in releases for language in OFFERED.findall(release)})
    _apt(folder, languages, "update")
    listed = _apt(folder, languages, "indextargets", "--format", "$(CREATED_BY)|$(LANGUAGE)|$(FILENAME)")
    targets = [line.split("|", 2) for line in listed.splitlines()]
    translations = [(language, Path(file)) for kind, language, file in targets if kind == "Translations"]
    if not translations:
        raise UserError("apt's sources offer no translations", "see /etc/apt", "add a source of Debian or Ubuntu")
    return [Path(file) for kind, _, file in targets if kind == "Packages"], translations


def _apt(folder: Path, languages: list[str], *arguments: str) -> str:
    settings = folder / "apt.conf"
    # A file, because only there can the languages of the system's configuration be cleared.
    named = " ".join(f'"{language}";' for language in languages)
    settings.write_text(f"#clear Acquire::Languages;\nAcquire::Languages {{ {named} }};\n", encoding="utf-8")
    options = {
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "Acquire::GzipIndexes": "false",
        "APT::Update::Error-Mode": "any",  # otherwise an index that cannot be fetched is a mere warning
        "APT::Sandbox::User": "root",  # apt's own user may not enter the folder
    }
    flags = [flag for name, value in options.items() for flag in ("-o", f"{name}={value}")]
    done = subprocess.run(
        ["apt-get", "-q", "-c", str(settings), *flags, *arguments],
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W:"))]
        raise UserError(
            "apt could not fetch its lists",
            lines[0][3:] if lines else f"apt-get ended with exit code {done.returncode}",
            "check the network and the sources in /etc/apt: apt-get update",
        )
    return done.stdout


def table(
    packages: Iterable[Path], translations: Iterable[tuple[str, Path]], sections: int, paragraphs: bool
) -> pd.DataFrame:
    """Read indices into a table with ``COLUMNS`` and the column ``split``."""
    about = pd.DataFrame(_packages(packages), columns=["package", "label", "source"]).drop_duplicates("package")
    about = largest(about, sections)
    about["split"] = about["source"].map(split)
    rows = pd.DataFrame(_texts(translations, paragraphs), columns=["package", "language", "text"]).drop_duplicates()
    return rows.merge(about, on="package")


def _packages(indices: Iterable[Path]) -> Iterator[tuple[str, str, str]]:
    for path in indices:
        for record in _read(path):
            if "Section" in record:
                source = record.get("Source", record["Package"]).split()[0]
                yield record["Package"], record["Section"], source


def _texts(translations: Iterable[tuple[str, Path]], paragraphs: bool) -> Iterator[tuple[str, str, str]]:
    for language, path in translations:
        for record in _read(path):
            found = cut(record.get(f"Description-{language}", ""))
            for text in (each for each in found if len(each) >= SHORTEST) if paragraphs else [" ".join(found)]:
                if text:
                    yield record["Package"], language, text


def _read(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        yield from records(lines)


def cut(description: str) -> list[str]:
    """Cut a description into its first line, its paragraphs and the items of its lists, each without line ends."""
    parts: list[list[str]] = [[]]
    for number, line in enumerate(description.split("\n")):
        if number == 1 or line.strip() == "." or ITEM.match(line):
            parts.append([])
        if line.strip() != ".":
            parts[-1] += ITEM.sub("", line).split()
    return [" ".join(words) for words in parts if words]


def split(source: str) -> str:
    """Choose the split of a source package: always the same one for the same name."""
    place = int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "big") / 2**64
    return "test" if place < TEST else "validation" if place < TEST + VALIDATION else "train"


if __name__ == "__main__":
    command.run(main)
