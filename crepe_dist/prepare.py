"""Prepares data: `python -m crepe_dist.prepare SOURCE --out DIR`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from crepe_dist import arguments, command
from crepe_dist.data.alphabet import MODES, Encoding
from crepe_dist.data.dataset import open_dataset, verify
from crepe_dist.data.preparation import QUARANTINE, SAMPLE, SAMPLE_FEATURE_LEN, Report, Split, find_sources, prepare
from crepe_dist.errors import UserError

EXAMPLES = """  python -m crepe_dist.prepare sample --out data/sample
  python -m crepe_dist.prepare reviews.csv.gz --out data/reviews --validation 0.1
  python -m crepe_dist.prepare ag_news_csv/ --out data/ag_news       (train.csv, test.csv, classes.txt)
  python -m crepe_dist.prepare --verify data/reviews
"""


def main() -> None:
    flags = arguments.parser(
        "prepare",
        "Encode texts once into a folder to train on. SOURCE is `sample`, a CSV file (label first, then the text, or "
        "title and text), or a folder with train.csv and perhaps test.csv; each may be .gz. With classes.txt beside "
        "it, labels are the numbers 1 to C of its lines.",
        EXAMPLES,
    )
    flags.add_argument("source", nargs="?", help="`sample`, a CSV file, or a folder with train.csv")
    flags.add_argument("--out", type=Path, metavar="DIR", help="folder to make")
    flags.add_argument("--test", metavar="FILE", help="CSV file of the test part; default: test.csv beside train.csv")
    flags.add_argument("--test-fraction", type=float, default=0.2, help="taken from the rows without a test file")
    flags.add_argument("--validation", type=float, default=0.0, help="fraction of the rows, to choose the best epoch")
    flags.add_argument("--seed", type=int, default=0, help="decides which rows go where; default: 0")
    flags.add_argument("--mode", choices=MODES, default="paper", help="encoding; default: paper")
    flags.add_argument("--feature-len", type=int, metavar="L", help="characters a document; default: 1014, sample 192")
    flags.add_argument("--fold-accents", choices=arguments.TRUTH, help="é → e; default: off in mode notebook, else on")
    flags.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    flags.add_argument("--verify", type=Path, metavar="DIR", help="compare a prepared folder with its checksums")
    given = flags.parse_args()

    if given.verify is not None:
        verify(open_dataset(given.verify))
        print(f"{given.verify} is as it was prepared")
        return
    if given.source is None or given.out is None:
        raise UserError("SOURCE and --out are needed", remedy="python -m crepe_dist.prepare --help shows examples")
    length = given.feature_len
    if length is None:
        length = SAMPLE_FEATURE_LEN if given.source == SAMPLE else 1014
    fold_accents = None if given.fold_accents is None else arguments.TRUTH[given.fold_accents]
    report = prepare(
        find_sources(given.source, given.test),
        given.out,
        Encoding(given.mode, length, fold_accents),
        Split(given.test_fraction, given.validation, given.seed),
        overwrite=given.overwrite,
    )
    print(_text(report))


def _text(report: Report) -> str:
    counts = pd.DataFrame(report.classes)
    counts.loc["all"] = counts.sum()
    lines = [counts.to_string(), f"prepared in {report.folder}"]
    if report.bad:
        lines.append(f"{report.bad} rows could not be used: {report.folder / QUARANTINE}")
    return "\n".join(lines)


if __name__ == "__main__":
    command.run(main)
