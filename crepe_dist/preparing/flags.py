"""Flags of the command `prepare`, and the preparation that they describe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

from crepe_dist import invocation
from crepe_dist.data.alphabet import Encoding
from crepe_dist.data.dataset import MANIFEST, SAMPLE
from crepe_dist.data.targets import KINDS, ONE, SEVERAL, SOFT
from crepe_dist.errors import UserError
from crepe_dist.files import read_json
from crepe_dist.preparing import amazon, remote
from crepe_dist.preparing.auto_encoding import MISSED, Alphabet, Fit
from crepe_dist.preparing.checking import Share
from crepe_dist.preparing.corrections import read_corrections
from crepe_dist.preparing.formats.columns import Wanted
from crepe_dist.preparing.label_map import read_map
from crepe_dist.preparing.labelling import Labelling
from crepe_dist.preparing.out_folder import check_out
from crepe_dist.preparing.preparation import (
    MAX_BAD,
    MAX_EXPANSION,
    PrepareOptions,
    Steps,
    merge_in_steps,
    prepare_in_steps,
)
from crepe_dist.preparing.selection import DEDUPE, VALIDATION_FROM, SplitOptions
from crepe_dist.preparing.sources import FORMATS, SAMPLE_DEDUPE, SAMPLE_FEATURE_LEN, Reading, Sources, find_sources
from crepe_dist.settings import arguments
from crepe_dist.settings.allowed_values import CUTS, LONGEST_DOCUMENT, MODES
from crepe_dist.settings.data_options import LONGEST_FITTED
from crepe_dist.settings.limits import real, whole

COMMON = (
    *("--out", "--label", "--text", "--title", "--header", "--test", "--validation", "--unlabelled"),
    *("--max-per-class", "--dedupe", "--feature-len", "--overwrite"),
)
EXAMPLES = """  python -m crepe_dist.prepare sample --out data/sample
  python -m crepe_dist.prepare reviews.csv.gz --out data/reviews --validation 0.1
  python -m crepe_dist.prepare labelled.csv --unlabelled texts.txt --out data/tickets
  python -m crepe_dist.prepare train.jsonl --test test.jsonl --text body --label topic --out data/topics
  python -m crepe_dist.prepare ag_news_csv/ --out data/ag_news       (train.csv, test.csv, classes.txt)
  python -m crepe_dist.prepare aclImdb/ --out data/imdb              (train/pos/*.txt, train/neg/*.txt, test/...)
  zcat logs-*.gz | python -m crepe_dist.prepare - --format jsonl --out data/logs
  python -m crepe_dist.prepare s3://bucket/reviews/ --out data/reviews   (also https://, gs://, hf://…)
  python -m crepe_dist.prepare amazon7                               (downloads the notebook's seven categories)
  python -m crepe_dist.prepare big/ --part 1/4 --out part-1          (on the first of four machines)
  python -m crepe_dist.prepare --merge part-1 part-2 part-3 part-4 --out data/big
  python -m crepe_dist.prepare --verify data/reviews
"""
AMAZON = "amazon7"
AUTO = "auto"  # fitted to the training texts
USUAL = "usual"  # the standard alphabet of the mode


def parser() -> arguments.Parser:
    """Build the parser of the command."""
    flags = arguments.parser(
        "prepare",
        "Encode texts as a data set folder for training. SOURCE is a file (CSV, TSV, JSON Lines, Parquet, plain or "
        ".gz), a folder of files named train*, test*, validation*, a folder with a subfolder for each class, a URL of "
        "such a file or folder, `-` for a pipe, `sample`, or `amazon7`; several sources are joined.",
        EXAMPLES,
    )
    flags.show_common("SOURCE... --out DIR", *COMMON)
    flags.add_argument("source", nargs="*", metavar="SOURCE", help="files, folders, URLs, -, sample or amazon7")
    flags.add_argument("--out", type=Path, metavar="DIR", help="folder to create")
    flags.add_argument("--overwrite", action="store_true", help="replace --out if it is a prepared folder")
    flags.add_argument("--verify", type=Path, metavar="DIR", help="compare a prepared folder with its checksums")

    group = flags.add_argument_group("reading")
    group.add_argument(
        "--format", "--input-format", choices=FORMATS, help="file format; default: detected from name and content"
    )
    arguments.add_header(group)
    group.add_argument(
        "--label",
        "--label-column",
        metavar="COLUMN",
        help="column of the label, by name or number from 1; default: a column with a usual name, or the first",
    )
    group.add_argument(
        "--text",
        "--text-column",
        action="append",
        metavar="COLUMN",
        help="column of the text; repeat it to join several in this order; default: a column with a usual name, or all "
        "but the label",
    )
    group.add_argument(
        "--title", "--title-column", metavar="COLUMN", help="column to join with the text as `title | text`"
    )
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
        "--label-columns",
        metavar="A,B,…",
        help="columns of the classes, in place of one of labels: 0 or 1, or shares with --labels soft",
    )
    group.add_argument(
        "--merge-labels",
        type=Path,
        metavar="CSV",
        help="merge or rename labels: a file with from,to in each line; other labels stay",
    )
    group.add_argument(
        "--propose-labels",
        type=Path,
        metavar="CSV",
        help="write a proposal for --merge-labels: labels that look like variants of others, in case, spaces or one "
        "letter",
    )
    group.add_argument(
        "--max-bad",
        type=real(0, 1),
        default=MAX_BAD,
        metavar="SHARE",
        help="maximum share of unusable rows; default: 0.01",
    )
    group.add_argument(
        "--max-expansion",
        type=real(1, 1e6),
        default=MAX_EXPANSION,
        metavar="FACTOR",
        help=f"most decompressed bytes of a source, as a multiple of its size; default: {MAX_EXPANSION:g}",
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
        "--align",
        type=whole(1, 10**9),
        metavar="N",
        help="make the number of training rows a multiple of N; the remainder goes to the test split",
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
        f"default: auto, sample {SAMPLE_FEATURE_LEN}, {AMAZON} {amazon.FEATURE_LEN}",
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
        metavar="usual|auto|FILE",
        help="known characters; usual: the standard alphabet of the mode; auto: the characters of the "
        "training texts; FILE: the alphabet of a prepared folder or of a checkpoint's .json; default: usual, or auto "
        f"if that covers {100 * MISSED:g} %% more of the characters; é read as e is not covered",
    )

    group = flags.add_argument_group("many cores, many machines")
    group.add_argument(
        "--processes", type=whole(1, 4096), metavar="N", help="number of worker processes; default: one per core"
    )
    group.add_argument("--part", type=_share, metavar="I/N", default=Share(), help="read the I-th of N parts")
    group.add_argument("--merge", action="store_true", help="merge parts; SOURCE are the folders of all N parts")

    group = flags.add_argument_group(AMAZON)
    group.add_argument("--url", default=amazon.URL, help=f"address of the files' folder; default: {amazon.URL}")
    group.add_argument(
        "--downloads", type=Path, default=Path("data/downloads"), help="folder for the files; default: data/downloads"
    )
    return flags


def steps(args: Any, page: Callable[[dict[str, Any]], str] | None, command: str) -> Steps:
    """Run the preparation that parsed flags describe, as a generator of its progress.

    Args:
        page: function that renders the report's numbers as HTML; ``None`` for no page.
        command: command line, for the report.

    Raises:
        UserError: a source does not exist, or flags contradict each other.
    """
    named = [*args.source, args.test, args.validation, *(args.unlabelled or ())]
    urls = [name for name in named if remote.is_url(name)]
    if args.merge or not urls:
        return (yield from _local_steps(args, page, command))
    check_out(args.out, args.overwrite)  # before a long download
    with remote.folder_beside(args.out) as folder:
        copies = {}
        for url in dict.fromkeys(urls):
            copies[url] = str((yield from remote.copy_in_steps(url, folder)))
        local = argparse.Namespace(**vars(args))
        local.source = [copies.get(name, name) for name in args.source]
        local.test, local.validation = (
            copies.get(args.test, args.test),
            copies.get(args.validation, args.validation),
        )
        local.unlabelled = [copies.get(name, name) for name in args.unlabelled or ()]
        return (yield from _local_steps(local, page, remote.without_secrets(command), folder))


def _local_steps(
    args: Any, page: Callable[[dict[str, Any]], str] | None, command: str, copies: Path | None = None
) -> Steps:
    """Run a preparation of local files, some of which may be ``copies`` of others."""
    if args.corrections is not None and args.part.of > 1:
        raise UserError(
            "--corrections cannot be combined with --part",
            "all rows are needed to apply them",
            "prepare the data on one machine",
        )
    arguments.check_output(args.propose_labels, "--propose-labels")
    labelling, columns = _labelling(args)
    wanted = Wanted(args.label, args.title, tuple(args.text or ()), args.weight, columns, args.id)
    reading = Reading(args.format, args.header, wanted, labelling, args.strip_html)
    options = PrepareOptions(
        reading,
        args.max_bad,
        args.max_expansion,
        args.processes,
        args.part,
        args.overwrite,
        command,
        page,
        None if args.corrections is None else read_corrections(args.corrections),
        args.propose_labels,
    )
    if args.merge:
        return (yield from merge_in_steps([Path(name) for name in args.source], args.out, options))
    test, validation = _file_or_share(args.test), _file_or_share(args.validation)
    files = {name: part for name, part in (("test", test), ("validation", validation)) if isinstance(part, str)}
    sources = find_sources(args.source, reading=reading, unlabelled=args.unlabelled or (), **files)
    _check_not_read(args.propose_labels, [*(s.path for s in sources.files), args.corrections, args.merge_labels])
    if copies:  # a name that had to be a path does not say where the copy was
        named = (replace(source, name=source.name.replace(f"{copies}/", "")) for source in sources.files)
        sources = Sources(tuple(named))
    _check_shares(sources, test, validation)
    is_sample = args.source == [SAMPLE]
    length: Any = args.feature_len or (SAMPLE_FEATURE_LEN if is_sample else AUTO)
    encoding = Encoding(
        args.mode,
        LONGEST_FITTED if length == AUTO else length,
        args.fold_accents,
        *(("", "") if args.alphabet in (None, AUTO, USUAL) else _alphabet_of(Path(args.alphabet))),
        args.cut or "",
    )
    split = SplitOptions(
        test=test if isinstance(test, float) else 0.2,
        validation=validation if isinstance(validation, float) else None,
        seed=args.seed,
        stratified=args.stratified,
        max_per_class=args.max_per_class,
        dedupe=args.dedupe or (SAMPLE_DEDUPE if is_sample else "no"),
        align=1 if args.align is None else args.align,
        keep_unlabelled=args.keep_unlabelled,
    )
    fit = Fit(length == AUTO, _fitted_alphabet(args), bool(args.fold_accents))
    return (yield from prepare_in_steps(sources, args.out, encoding, split, options, fit))


def _check_not_read(proposal: Path | None, read: Sequence[Path | None]) -> None:
    """Refuse to replace a file that is read, such as a source, by a proposal of labels."""
    if proposal is not None and proposal.resolve() in [path.resolve() for path in read if path is not None]:
        raise UserError(
            f"--propose-labels {proposal} is a file that is read", "it would be replaced", "name another file"
        )


def _labelling(args: Any) -> tuple[Labelling, tuple[str, ...]]:
    """Return the labels of rows, and the columns of the classes."""
    columns = tuple(name.strip() for name in (args.label_columns or "").split(",") if name.strip())
    separator = args.label_separator or ""
    kind = args.labels or (SEVERAL if separator or columns else ONE)
    problem = ""
    if kind == ONE and (separator or columns):
        problem = "--labels one cannot be combined with --label-separator or --label-columns"
    elif kind == SOFT and separator:
        problem = "--labels soft cannot be combined with --label-separator"
    elif columns and (separator or args.label):
        problem = "--label-columns cannot be combined with --label or --label-separator"
    elif len(columns) == 1 or len(set(columns)) < len(columns):
        problem = "--label-columns needs at least two different columns"
    elif kind != ONE and (args.stratified or args.max_per_class is not None):
        problem = (
            f"--labels {kind} cannot be combined with --stratified or --max-per-class: they need one class per row"
        )
    if problem:
        raise UserError(problem, remedy=f"leave one out; {invocation.typed('prepare')} --help describes them")
    merged = () if args.merge_labels is None else read_map(args.merge_labels)
    return Labelling(kind, separator, merged), columns


def _fitted_alphabet(args: Any) -> Alphabet:
    if args.alphabet == AUTO:
        return "made"
    # Mode notebook exists for the published parameters, which need its standard alphabet.
    return "needed" if args.alphabet is None and args.mode != "notebook" else "given"


def _alphabet_of(path: Path) -> tuple[str, str]:
    """Read the custom alphabet of a prepared folder or a checkpoint's description, and its rare characters."""
    path = path / MANIFEST if path.is_dir() else path
    try:
        encoding = Encoding.from_dict(read_json(path)["encoding"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--alphabet: {path} has no alphabet",
            f"{type(error).__name__}: {error}"[:300],
            "give auto, a prepared folder, or the .json beside a checkpoint",
        ) from error
    if not encoding.is_custom:
        raise UserError(
            f"--alphabet: {path} has no custom alphabet", remedy=f"use --mode {encoding.mode}, whose alphabet it has"
        )
    return encoding.alphabet, encoding.paired


def _file_or_share(text: str | None) -> str | float | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _check_shares(sources: Sources, test: str | float | None, validation: str | float | None) -> None:
    for part, value in (("test", test), ("validation", validation)):
        if isinstance(value, float) and value > 0 and part in sources.parts:
            raise UserError(
                f"--{part} {value:g} cannot be used: the sources have their own {part} split",
                ", ".join(source.name for source in sources.files if source.part == part)[:200],
                f"leave --{part} out, or name the training files alone",
            )


def _share(text: str) -> Share:
    index, _, of = text.partition("/")
    if not index.isdecimal() or not of.isdecimal() or not 1 <= int(index) <= int(of):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N")
    return Share(int(index) - 1, int(of))
