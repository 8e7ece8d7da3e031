#!/usr/bin/env python3
"""Make data sets from what Debian writes about its packages, and from its translations of names.

    uv run benchmarks/debian_data.py packages debian.csv
    uv run benchmarks/debian_data.py languages languages.csv      # apt-get install iso-codes
    uv run benchmarks/debian_data.py paragraphs paragraphs
    crepe prepare debian.csv --out data/debian --validation 0.1 --dedupe near
    crepe prepare paragraphs --out data/paragraphs --dedupe near

packages     the first line of each package's description; the class is the section
languages    names of languages, countries and currencies, of the package iso-codes; the class is the language. Most
             container images exclude translations: unpack the package with `apt-get download iso-codes` and `dpkg -x`,
             and pass its usr/share/locale as --locale
paragraphs   paragraphs and list items of descriptions in all languages, as train.csv, validation.csv and test.csv in a
             folder; the class is the section (or, with --label language, the language). All about the packages of one
             source is in one split, because they share sentences. The translations (200 MB) are fetched from the
             sources in /etc/apt into the cache, without changing the system's settings and without root
"""

from __future__ import annotations

import argparse
import gettext
import hashlib
import itertools
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from crepe_dist import command
from crepe_dist.errors import UserError
from crepe_dist.files import cache_folder
from crepe_dist.settings.fields import whole
from crepe_dist.settings.flags import Parser

CLASSES = {"packages": 20, "languages": 30, "paragraphs": 40}
TEST, VALIDATION = 0.1, 0.05  # shares of the sources
SHORTEST = 20  # characters of a paragraph; shorter ones are headings such as "Features:"
ITEM = re.compile(r"\s+[-*+o•·] ")
OFFERED = re.compile(r"i18n/Translation-([\w@-]+)")


def main() -> None:
    flags = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("kind", choices=CLASSES)
    flags.add_argument("out", type=Path, help="CSV with the columns label and text, or folder")
    flags.add_argument("--classes", type=whole(2, 1000), metavar="N", help=f"the largest ones; default: {CLASSES}")
    flags.add_argument("--locale", type=Path, default=Path("/usr/share/locale"), metavar="DIR", help="of iso-codes")
    options = flags.parse_args()
    classes = options.classes or CLASSES[options.kind]
    if options.kind == "paragraphs":
        options.out.mkdir(parents=True, exist_ok=True)
        for name, rows in paragraphs(classes).groupby("split"):
            rows[["label", "language", "package", "text"]].to_csv(options.out / f"{name}.csv", index=False)
        return
    source = packages() if options.kind == "packages" else names(options.locale)
    table = pd.DataFrame(source, columns=["label", "text"])
    if table.empty:
        raise UserError("there are no texts", "apt has no package lists, or --locale no iso_*.mo", "see --help")
    if options.kind == "languages":
        table = table.drop_duplicates()
    largest(table, classes).to_csv(options.out, index=False)


def largest(rows: pd.DataFrame, classes: int) -> pd.DataFrame:
    """Keep the rows of the classes with the most rows."""
    return rows[rows["label"].isin(rows["label"].value_counts().index[:classes])].copy()


def packages() -> Iterator[tuple[str, str]]:
    """Yield the section and the first line of the description of each package."""
    listed = subprocess.run(["apt-cache", "dumpavail"], check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
    for record in records(listed.split("\n")):
        text = record.get("Description") or record.get("Description-en") or ""
        if text and "Section" in record:
            yield record["Section"], text.partition("\n")[0]


def names(locale: Path) -> Iterator[tuple[str, str]]:
    """Yield (language, name), without names that are the same in English."""
    for path in sorted(locale.glob("*/LC_MESSAGES/iso_*.mo")):
        with path.open("rb") as stream:
            catalogue = gettext.GNUTranslations(stream)
        for english, name in catalogue._catalog.items():  # type: ignore[attr-defined]
            if isinstance(name, str) and english and name != english:
                yield path.parts[-3], name


def paragraphs(classes: int) -> pd.DataFrame:
    """Make a table of paragraphs with the columns label, language, package, text and split."""
    folder = cache_folder() / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    apt(folder, ["en"], "update")  # English alone, for the Release files, which list the languages
    releases = [path.read_text(encoding="utf-8", errors="replace") for path in (folder / "lists").glob("*Release")]
    languages = sorted({language for release in releases for language in OFFERED.findall(release)})
    apt(folder, languages, "update")
    listed = apt(folder, languages, "indextargets", "--format", "$(CREATED_BY)|$(LANGUAGE)|$(FILENAME)")
    about, texts = [], []
    for kind, language, file in (line.split("|", 2) for line in listed.splitlines()):
        with Path(file).open(encoding="utf-8", errors="replace", newline="\n") as lines:
            for record in records(lines):
                if kind == "Packages" and "Section" in record:
                    source = record.get("Source", record["Package"]).split()[0]
                    about.append((record["Package"], record["Section"], split(source)))
                elif kind == "Translations":
                    cuts = cut(record.get(f"Description-{language}", ""))
                    texts += [(record["Package"], language, text) for text in cuts if len(text) >= SHORTEST]
    table = pd.DataFrame(about, columns=["package", "label", "split"]).drop_duplicates("package")
    rows = pd.DataFrame(texts, columns=["package", "language", "text"]).drop_duplicates()
    return rows.merge(largest(table, classes), on="package")


def apt(folder: Path, languages: list[str], *arguments: str) -> str:
    """Run apt-get with lists of its own in ``folder``."""
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
    run = ["apt-get", "-q", "-c", str(settings), *flags, *arguments]
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(run, env=environment, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode != 0:
        raise UserError("apt could not fetch its lists", done.stderr[-500:], "check the network and /etc/apt")
    return done.stdout


def records(lines: Iterator[str] | list[str]) -> Iterator[dict[str, str]]:
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
    share = int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "big") / 2**64
    return "test" if share < TEST else "validation" if share < TEST + VALIDATION else "train"


if __name__ == "__main__":
    command.run(main)
