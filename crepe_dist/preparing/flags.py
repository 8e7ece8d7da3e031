"""Flags of the command `prepare`."""

from __future__ import annotations

import argparse
from pathlib import Path

from crepe_dist.data.targets import KINDS
from crepe_dist.preparing.auto_encoding import MISSED
from crepe_dist.preparing.preparation import MAX_BAD
from crepe_dist.preparing.selection import DEDUPE, VALIDATION_FROM
from crepe_dist.preparing.sources import FORMATS, SAMPLE_DEDUPE, SAMPLE_FEATURE_LEN
from crepe_dist.settings import flags as arguments
from crepe_dist.settings.fields import CUTS, LONGEST_DOCUMENT, MODES, real, whole
from crepe_dist.settings.options import LONGEST_FITTED

COMMON = (
    *("--out", "--label", "--text", "--title", "--header", "--test", "--validation", "--unlabelled"),
    *("--max-per-class", "--dedupe", "--feature-len", "--overwrite"),
)
EXAMPLES = """  python -m crepe_dist.prepare sample --out data/sample
  python -m crepe_dist.prepare reviews.csv.gz --out data/reviews --validation 0.1
  python -m crepe_dist.prepare labelled.csv --unlabelled texts.txt --validation 0.1 --out data/tickets
  python -m crepe_dist.prepare train.jsonl --test test.jsonl --text body --label topic --out data/topics
  python -m crepe_dist.prepare ag_news_csv/ --out data/ag_news       (train.csv, test.csv, classes.txt)
  python -m crepe_dist.prepare aclImdb/ --out data/imdb              (train/pos/*.txt, train/neg/*.txt, test/...)
  zcat logs-*.gz | python -m crepe_dist.prepare - --input-format jsonl --out data/logs
  python -m crepe_dist.prepare s3://bucket/reviews/ --out data/reviews   (also https://, gs://, hf://…)
  python -m crepe_dist.prepare --verify data/reviews
"""
AUTO = "auto"  # fitted to the training texts
USUAL = "usual"  # the standard alphabet of the mode


def parser() -> arguments.Parser:
    """Build the parser of the command."""
    flags = arguments.parser(
        "prepare",
        "Encode texts as a data set folder for training. SOURCE is a file (CSV, TSV, JSON Lines, Parquet, plain or "
        ".gz), a folder of files named train*, test*, validation*, a folder with a subfolder for each class, a URL of "
        "such a file or folder, `-` for a pipe, or `sample`; several sources are joined.",
        EXAMPLES,
    )
    flags.show_common("SOURCE... --out DIR", *COMMON)
    flags.add_argument("source", nargs="*", metavar="SOURCE", help="files, folders, URLs, - or sample")
    flags.add_argument("--out", type=Path, metavar="DIR", help="folder to create")
    flags.add_argument("--overwrite", action="store_true", help="replace --out if it is a prepared folder")
    flags.add_argument("--verify", type=Path, metavar="DIR", help="compare a prepared folder with its checksums")

    group = flags.add_argument_group("reading")
    add_columns(group)
    group.add_argument(
        "--weight",
        "--weight-column",
        metavar="COLUMN",
        help="column of the weights of training rows in the loss, numbers from 0; they are divided by their mean; "
        "scores do not use them; default: all rows count alike",
    )
    group.add_argument(
        "--id",
        "--id-column",
        metavar="COLUMN",
        help="column that names a row, such as a ticket number: mistakes and answers show it beside file and line",
    )
    group.add_argument(
        "--labels",
        choices=KINDS,
        help="labels of a row; several: any number, in a JSON list or separated; soft: shares of classes, in a JSON "
        "object or in columns; default: one, or several with --label-separator or --label-columns",
    )
    group.add_argument(
        "--label-separator",
        metavar="CHAR",
        help="separator of several labels in a cell, such as ';', or space for white space",
    )
    group.add_argument(
        "--empty-label",
        choices=("drop", "keep"),
        default="drop",
        help="with several labels, rows with an empty label; keep: they have none of the classes; default: drop, as "
        "rows that nobody has labelled",
    )
    group.add_argument(
        "--merge-labels",
        type=Path,
        metavar="CSV",
        help="merge or rename labels: a file with from,to in each line; other labels stay",
    )
    group.add_argument(
        "--max-bad",
        type=real(0, 1),
        default=MAX_BAD,
        metavar="SHARE",
        help="maximum share of unusable rows; default: 0.01",
    )
    group.add_argument(
        "--corrections",
        type=Path,
        metavar="FILE",
        help="labels to give in place of those in the source: a label_errors.csv of inspect, edited as you like",
    )

    group = flags.add_argument_group("selection of rows")
    group.add_argument(
        "--test", metavar="FILE|SHARE", default=None, help="test split; default: the sources' own test files, else 0.2"
    )
    group.add_argument(
        "--validation",
        metavar="FILE|SHARE",
        default=None,
        help="split for choosing the best epoch and stopping early; default: the sources' own validation files, else "
        f"0.1 of at least {VALIDATION_FROM:,} rows",
    )
    group.add_argument(
        "--unlabelled",
        action="append",
        metavar="FILE",
        help="texts without labels for training: a file of any format, plain lines too, a folder or a URL; repeatable; "
        "labels in it are ignored; default: files and folders named unlabelled* in the sources",
    )
    group.add_argument(
        "--keep-unlabelled",
        action="store_true",
        help="keep the rows of SOURCE that have no label as unlabelled texts, instead of leaving them out",
    )
    group.add_argument("--stratified", action="store_true", help="split every class in the same proportions")
    group.add_argument(
        "--max-per-class", type=whole(1, 10**12), metavar="N", help="sample at most N rows per class, uniformly"
    )
    group.add_argument(
        "--dedupe",
        choices=DEDUPE,
        help=f"drop repeated texts; near ignores case, spaces and punctuation; default: no, sample {SAMPLE_DEDUPE}",
    )
    group.add_argument(
        "--seed", type=whole(0, (1 << 32) - 1), default=0, metavar="N", help="random seed of the selection; default: 0"
    )

    group = flags.add_argument_group("encoding")
    group.add_argument(
        "--mode",
        choices=MODES,
        default="paper",
        help="paper: lower case, read in reverse; full: upper and lower case, read in reverse; notebook: read in "
        "order, upper case and line breaks unknown; default: paper",
    )
    group.add_argument(
        "--feature-len",
        type=whole(1, LONGEST_DOCUMENT, AUTO),
        metavar="L",
        help=f"characters per document; auto keeps 99 %% of the training texts whole, at most {LONGEST_FITTED}; "
        f"default: auto, sample {SAMPLE_FEATURE_LEN}",
    )
    group.add_argument(
        "--cut",
        choices=CUTS,
        help="part of a longer text that is not read; start: as in the paper; default: middle, so that the subject and "
        "the end of a text are read; in mode notebook: end",
    )
    group.add_argument(
        "--strip-html",
        action="store_true",
        help="remove HTML tags from the texts, and read &amp; as &; models of these data do the same",
    )
    arguments.add_fold_accents(group, "in mode notebook and with a custom alphabet")
    group.add_argument(
        "--alphabet",
        metavar="usual|auto|FOLDER",
        help="known characters; usual: the standard alphabet of the mode; auto: the characters of the "
        "training texts; FOLDER: that of a prepared folder, a run, or a checkpoint's .json; default: usual, or auto "
        f"if that covers more in {100 * MISSED:g} %% of the texts or characters; é read as e is not covered",
    )

    flags.add_argument(
        "--processes", type=whole(1, 4096), metavar="N", help="number of worker processes; default: one per core"
    )
    return flags


def add_columns(
    group: argparse._ActionsContainer,
    label: str = "a column with a usual name, or the first",
    text: str = "a column with a usual name, or all but the label",
) -> None:
    """Add the flags for the format and the columns of labelled files, with the defaults that their help states."""
    group.add_argument("--input-format", choices=FORMATS, help="file format; default: detected from name and content")
    arguments.add_header(group)
    arguments.add_encoding(group)
    group.add_argument(
        "--label",
        "--label-column",
        metavar="COLUMN",
        help=f"column of the label, by name or number from 1; default: {label}",
    )
    group.add_argument(
        "--label-columns",
        metavar="A,B,…",
        help="columns of the classes, in place of one of labels: 0 or 1, or shares with --labels soft",
    )
    group.add_argument(
        "--text",
        "--text-column",
        action="append",
        metavar="COLUMN",
        help=f"column of the text; repeat it to join several in this order; default: {text}",
    )
    group.add_argument(
        "--title", "--title-column", metavar="COLUMN", help="column to join with the text as `title | text`"
    )
