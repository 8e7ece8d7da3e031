#!/usr/bin/env python3
"""Make a data set in many scripts: names of languages, countries, regions and currencies, labelled by language.

    apt-get install iso-codes
    uv run benchmarks/languages.py languages.csv
    python -m crepe_dist.prepare languages.csv --out data/languages --validation 0.1 --dedupe near

Uses the translations in Debian's package iso-codes into the languages with the most entries (--languages). Most
container images exclude translations: unpack the package with `apt-get download iso-codes` and `dpkg -x`, and pass its
usr/share/locale as --locale.
"""

from __future__ import annotations

import argparse
import gettext
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from debian_packages import largest

from crepe_dist import command
from crepe_dist.errors import UserError
from crepe_dist.settings import arguments
from crepe_dist.settings.limits import whole


def main() -> None:
    flags = arguments.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("out", type=Path, metavar="FILE", help="CSV with the columns label and text")
    flags.add_argument("--languages", type=whole(2, 1000), default=30, metavar="N", help="default: 30")
    flags.add_argument(
        "--locale", type=Path, default=Path("/usr/share/locale"), metavar="DIR", help="default: %(default)s"
    )
    given = flags.parse_args()
    names = pd.DataFrame(_translated(given.locale), columns=["label", "text"]).drop_duplicates()
    if names.empty:
        raise UserError(f"{given.locale} has no iso_*.mo", remedy="apt-get install iso-codes, or see --help")
    largest(names, given.languages).to_csv(given.out, index=False)


def _translated(locale: Path) -> Iterator[tuple[str, str]]:
    """Yield (language, name), without names that are the same in English."""
    for path in sorted(locale.glob("*/LC_MESSAGES/iso_*.mo")):
        with path.open("rb") as stream:
            catalogue = gettext.GNUTranslations(stream)
        for english, name in catalogue._catalog.items():  # type: ignore[attr-defined]
            if isinstance(name, str) and english and name != english:
                yield path.parts[-3], name


if __name__ == "__main__":
    command.run(main)
