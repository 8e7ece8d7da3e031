"""Command that classifies texts: ``echo "what a wonderful little film" | python -m crepe_dist.predict``."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from crepe_dist import command, extras
from crepe_dist.data.alphabet import Encoding, read_of_long
from crepe_dist.data.composition import join
from crepe_dist.distributed.launch import detect, limit_threads
from crepe_dist.errors import UserError, visible
from crepe_dist.predicting.answers import STYLES, TABLES, answer_types, answers, converter
from crepe_dist.predicting.inputs import KINDS, Input, Inputs, open_inputs
from crepe_dist.predicting.resumable import Counts, ResumableFile, resumable
from crepe_dist.preparing import remote
from crepe_dist.preparing.formats import EMPTY, FROM_WINDOWS
from crepe_dist.preparing.formats.columns import Wanted
from crepe_dist.preparing.sources import PIPE, Reading, by_suffix
from crepe_dist.runs import checkpoint
from crepe_dist.scratch import scratch
from crepe_dist.settings import flags as arguments
from crepe_dist.settings.fields import shortened, whole
from crepe_dist.version import __version__
from crepe_dist.wording import counted, listed

if TYPE_CHECKING:
    from crepe_dist.predicting.predictor import Predictor

EXAMPLES = """  echo "what a wonderful little film" | python -m crepe_dist.predict
  python -m crepe_dist.predict runs/reviews-1f2e3d4c5b --file new.txt --format jsonl --top 3
  python -m crepe_dist.predict --file reviews.csv --text-column body --format csv --out classified.csv
  python -m crepe_dist.predict --file s3://bucket/reviews.parquet --out s3://bucket/classified.parquet
  tail -f log.jsonl | python -m crepe_dist.predict --input-format jsonl --text-column message
  python -m crepe_dist.predict --file new.txt --min-probability auto
  python -m crepe_dist.predict --title "Good stuff" --text "This album is above the previous one"
  python -m crepe_dist.predict --text "what a wonderful little film" --explain
"""


def main() -> None:
    args = parser().parse_args()
    args.format = args.format or _format_of(args.out)
    _check(args)
    limit_threads(detect())
    from crepe_dist.predicting.predictor import load

    path = checkpoint.announce(checkpoint.find(args.checkpoint))
    predictor = load(path, **arguments.foreign(args), device=args.device, min_probability=args.min_probability)
    _predict(predictor, args)


def parser() -> arguments.Parser:
    flags = arguments.parser(
        "predict",
        "Classify texts: the lines of standard input, the rows of --file, or the text of --text. There is one answer "
        "per row, in order. A row that cannot be classified gets an answer with the reason, and the exit code is 1.",
        EXAMPLES,
    )
    arguments.add_checkpoint(flags)
    arguments.add_device(flags)
    flags.add_argument("--text", action="append", type=str, help="text to classify, instead of a file; repeatable")
    flags.add_argument("--title", type=str, help="title of --text, joined as in training: title | text")

    group = flags.add_argument_group("files and pipes")
    group.add_argument(
        "--file", metavar="FILE", help="file of texts, plain or .gz, or its URL; default: -, standard input"
    )
    group.add_argument("--input-format", choices=KINDS, help="format; default: by the file name, else lines")
    arguments.add_header(group)
    arguments.add_encoding(group)
    group.add_argument(
        "--text-column",
        action="append",
        metavar="COLUMN",
        help="column name, or number from 1; repeat it to join several in this order; default: the columns that the "
        "model was trained on, else guessed",
    )
    group.add_argument("--title-column", metavar="COLUMN", help="column joined with the text as `title | text`")

    group.add_argument(
        "--id",
        "--id-column",
        metavar="COLUMN",
        help="column that answers repeat; default: that of prepare, if it is there",
    )

    group = flags.add_argument_group("answers")
    group.add_argument(
        "--top", type=whole(1, 10**9), metavar="K", help="number of classes in an answer; default: 5, in CSV 1"
    )
    arguments.add_min_probability(group)
    group.add_argument(
        "--format",
        choices=STYLES,
        help="format; csv and parquet keep the input's columns; default: by the name of --out, else text",
    )
    group.add_argument(
        "--out",
        metavar="FILE",
        help="file for the answers, or its URL; it appears when all are done, and the same command resumes a killed "
        "one that reads a file; default: standard output",
    )
    group.add_argument("--explain", action="store_true", help="show which characters support the class")
    arguments.add_foreign(flags)
    return flags


def _format_of(out: str | None) -> str:
    name = out or ""
    path = Path(urlsplit(name).path if remote.is_url(name) else name)
    kind = by_suffix(path) or "text"
    if kind not in STYLES or path.suffix.lower() == ".gz":
        raise UserError(
            f"--out is {shortened(name)}, a kind of file that predict does not write",
            remedy="give a name that ends in .csv, .jsonl, .parquet or .txt, or the format with --format",
        )
    return kind


def _check(args: Any) -> None:
    if args.title is not None and len(args.text or ()) != 1:
        raise UserError("--title requires one --text", remedy="for a column of a file, use --title-column")
    if args.text and args.file:
        raise UserError("--text and --file exclude each other", remedy="for a column of a file, use --text-column")
    file_flags = (args.input_format, args.text_column, args.title_column, args.id)
    if args.text is not None and (any(file_flags) or (args.header, args.encoding) != ("auto", "utf-8")):
        raise UserError("--input-format, --header, --encoding and the columns require a file", remedy="add --file FILE")
    if args.format in TABLES and args.explain:
        raise UserError(f"--format {args.format} does not support --explain", remedy="use --format jsonl")
    if args.format == "parquet":
        extras.require("parquet", "--format parquet")
        if args.out is None:
            raise UserError("--format parquet requires a file", remedy="add --out FILE.parquet")
    if remote.is_url(args.out):
        remote.check_writable(args.out)
    else:
        arguments.check_output(None if args.out is None else Path(args.out), "--out")
    if args.out is not None and args.file is not None and os.path.realpath(args.out) == os.path.realpath(args.file):
        raise UserError("--out is the file of --file, which it would replace", remedy="choose another --out")


def _predict(predictor: Predictor, args: Any) -> None:
    if args.text is None and args.file in (None, PIPE) and sys.stdin is not None and sys.stdin.isatty():
        print("type a text and press Enter; Ctrl-D ends", file=sys.stderr)
    with _output(args, predictor.path) as (stream, file):
        columns, groups, delimiter = _inputs(args, predictor, file)
        classes, several = len(predictor.classes), predictor.several
        formatter = answers(args.format, args.top, columns, classes, delimiter, several=several)
        counts = stream.counts if isinstance(stream, ResumableFile) else Counts()
        if args.format == "parquet":
            of_parquet = file if isinstance(groups, Inputs) and groups.format == "parquet" else None
            stream.convert = converter(of_parquet, columns, answer_types(formatter.top, several))
        # A terminal acts on control characters, which CSV keeps.
        clean = visible if args.out is None and sys.stdout.isatty() else str
        if counts.rows:
            print(f"resuming after {counted(counts.rows, 'row')}", file=sys.stderr)
        else:
            stream.write(clean(formatter.header))
        done, has_explained = counts.rows, False
        for group in groups:
            group, done = group[done:], max(0, done - len(group))
            predictions = predictor.predict_stream(row.text for row in group if not row.problem)
            for row in group:
                counts.rows += 1
                prediction = None if row.problem else next(predictions)
                if prediction is not None and prediction.problem:
                    row, prediction = row._replace(problem=prediction.problem), None
                if prediction is None:
                    counts.problems[re.split("[:;]", row.problem)[0]] += 1
                    stream.write(f"{clean(formatter.line(row, None))}\n")
                    continue
                counts.long += prediction.characters_cut > 0
                explanation = predictor.explain(row.text) if args.explain else None
                stream.write(f"{clean(formatter.line(row, prediction, explanation))}\n")
                if explanation and args.format == "text":
                    from crepe_dist.reports import explanation as explanations  # Rich takes a tenth of a second

                    explanations.write(explanation, stream, legend=not has_explained)
                    has_explained = True
            stream.flush()
    _conclude(counts, args, predictor.encoding)


def _conclude(counts: Counts, args: Any, encoding: Encoding) -> None:
    """Print what was done; raise ``UserError`` if rows could not be classified."""
    out = visible(remote.without_secrets(args.out or ""))
    if out:
        print(f"{counted(counts.rows, 'row')} written to {out}", file=sys.stderr)
    if not counts.rows:
        print(f"{visible(args.file or 'standard input')} has no rows", file=sys.stderr)
    if counts.long:
        longer = f"{counts.long:,} of {counted(counts.rows, 'text')} {'is' if counts.long == 1 else 'are'} longer than"
        read = f"{encoding.feature_len:,} characters, of which the network reads {read_of_long(encoding.to_dict())}"
        print(longer, read, file=sys.stderr)
    if counts.problems:
        remedy = f"find them by their answers{f' in {out}' if out else ''} and fix them; all other rows are classified"
        raise UserError(
            f"{sum(counts.problems.values()):,} of {counted(counts.rows, 'row')} could not be classified",
            listed([f"{kind} ({count:,})" for kind, count in counts.problems.most_common()]),
            FROM_WINDOWS if "not UTF-8" in counts.problems else remedy,
        )


def _inputs(args: Any, predictor: Predictor, file: str | None) -> tuple[tuple[str, ...], Iterable[list[Input]], str]:
    """Return the names of the columns to keep, the rows in groups, and the delimiter for CSV.

    The columns of the text and of the ids are those of the model's data, unless others are given.
    """
    if args.text is not None:
        texts = [join([args.title or "", text]) for text in args.text]
        rows = [Input(line, text, "" if text.strip() else EMPTY, (text,)) for line, text in enumerate(texts, start=1)]
        return ("text",), [rows], ","
    wanted = Wanted(
        title=args.title_column,
        texts=tuple(args.text_column or ()),
        id=args.id or predictor.id,
        needs_id=args.id is not None,
        remembered=predictor.composition.columns,
    )
    reading = Reading(None, args.header, wanted, encoding=args.encoding)
    inputs = open_inputs(file or PIPE, args.input_format, reading, keep=args.format in TABLES)
    return inputs.columns, inputs, inputs.delimiter


@contextmanager
def _output(args: Any, path: Path) -> Iterator[tuple[Any, str | None]]:
    """Provide the stream for the answers, and the path of the input, which is a copy of a URL."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # a kept column may contain lone surrogates
    with ExitStack() as stack:
        file = args.file
        if remote.is_url(file):
            file = str(remote.copy(file, stack.enter_context(scratch()) / "copy"))
        if args.out is None:
            yield sys.stdout, file
        else:
            yield stack.enter_context(resumable(args.out, _job(args, path))), file


def _job(args: Any, path: Path) -> dict[str, Any] | None:
    """Describe what decides the answers; ``None`` if they cannot be resumed: from a pipe or a URL."""
    if args.file is None or not os.path.isfile(args.file):
        return None
    options = {name: value for name, value in vars(args).items() if name not in ("checkpoint", "file", "out")}
    job = {"version": __version__, "model": _state(path), "file": _state(args.file), "options": options}
    return dict(json.loads(json.dumps(job, default=str)))


def _state(path: str | Path) -> list[Any]:
    about = os.stat(path)
    return [os.path.realpath(path), about.st_size, about.st_mtime_ns]


if __name__ == "__main__":
    command.run(main)
