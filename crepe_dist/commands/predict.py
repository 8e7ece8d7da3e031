"""Command that classifies texts."""

import io
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, TextIO
from urllib.parse import urlsplit

from crepe_dist import extras
from crepe_dist.data.char_encoder import CharEncoder, describe_truncation
from crepe_dist.data.text_preprocessing import strip_field_separators
from crepe_dist.distributed.launch import set_omp_threads
from crepe_dist.errors import UserError, escape_controls
from crepe_dist.files.folders import temporary_folder
from crepe_dist.files.output_streams import is_stream, open_stream
from crepe_dist.formatting import excerpt, join_words, pluralize
from crepe_dist.native.library import num_threads
from crepe_dist.predicting.input_reader import InputReader, InputRow, TextFlags, format_of
from crepe_dist.predicting.output_file import temporary_output
from crepe_dist.predicting.output_formats import (
    STYLES,
    TABLES,
    Formatter,
    InputAndPrediction,
    ParquetAnswers,
    create_formatter,
)
from crepe_dist.predicting.prediction import Prediction
from crepe_dist.preparing import remote
from crepe_dist.preparing.formats import ENCODING_REMEDY, NOT_UTF_8
from crepe_dist.preparing.sources import PIPE, format_by_suffix
from crepe_dist.runs import checkpoint
from crepe_dist.settings.fields import (
    ANY_TEXT,
    COLUMN,
    NON_EMPTY,
    Choice,
    Repeated,
    float_range,
    int_range,
    setting,
    truncate,
)
from crepe_dist.settings.flags import Command, DeviceFlag, ModelFlags, ThresholdFlag, check_output

if TYPE_CHECKING:
    from crepe_dist.predicting.predictor import Predictor


@dataclass
class Predict(TextFlags, ModelFlags, DeviceFlag, ThresholdFlag, Command):
    """Classify texts: the lines of standard input, the rows of --file, or the text of --text.

    There is one answer per row, in order. A row that cannot be classified gets an answer with the reason, and the exit
    code is 1.
    """

    usage = """
        echo "what a wonderful little film" | crepe predict
        crepe predict runs/reviews-1f2e3d4c5b --file new.txt --format jsonl --top 3
        crepe predict --file reviews.csv --text-column body --format csv --out classified.csv
        crepe predict --file s3://bucket/reviews.parquet --out s3://bucket/classified.parquet
        tail -f log.jsonl | crepe predict --input-format jsonl --text-column message
        crepe predict --file new.txt --min-probability auto
        crepe predict --text "what a wonderful little film" --explain
        """

    text: tuple[str, ...] = setting((), "text to classify, instead of a file; repeatable", Repeated(ANY_TEXT))
    file: Optional[str] = setting(
        None, "file of texts, plain or .gz, or its URL; default: -, standard input", NON_EMPTY
    )
    id: Optional[str] = setting(None, "column that answers repeat; default: that of prepare, if it is there", COLUMN)
    windows: bool = setting(
        False,
        "read the whole of a long text in windows, and predict from their mean logits, weighted by known characters",
    )
    score_class: Optional[str] = setting(None, "class whose probability each answer has as its score", NON_EMPTY)
    min_score: Optional[float] = setting(
        None, "leave out rows whose score is lower; needs --score-class", float_range(0, 1)
    )
    top: Optional[int] = setting(
        None, "number of classes in an answer; default: 5, and 1 with --format csv or parquet", int_range(1, 10**9)
    )
    format: Optional[str] = setting(
        None,
        "format; csv and parquet keep the input's columns; default: by the name of --out, else text",
        Choice(STYLES),
    )
    out: Optional[str] = setting(
        None,
        "file for the predictions, or its URL; the file appears when it is complete; default: standard output",
        NON_EMPTY,
    )
    explain: bool = setting(False, "show which characters support the class")

    def run(self) -> None:
        self.format = self.format or _format_of(self.out)
        _check(self)
        set_omp_threads()
        from crepe_dist.predicting.predictor import load

        path = checkpoint.log_model_in_use(checkpoint.resolve_model(self.checkpoint), self.checkpoint)
        predictor = load(path, **self.external_weights_kwargs(), device=self.device, **self.thresholds())
        _predict(predictor, self)


def _is_stream(out: str) -> bool:
    return not remote.is_url(out) and is_stream(Path(out))


def _format_of(out: Optional[str]) -> str:
    path = Path(urlsplit(out or "").path)
    kind = format_by_suffix(path) or "text"
    if kind not in STYLES or path.suffix.lower() == ".gz":
        raise UserError(
            f"--out is {truncate(str(out))}, a kind of file that predict does not write",
            remedy="give a name that ends in .csv, .jsonl, .parquet or .txt, or the format with --format",
        )
    return kind


def _check(args: Any) -> None:
    if args.text and (args.file or args.input_format or args.text_column or args.id):
        raise UserError(
            "--text excludes the flags of files: --file, --input-format, --text-column and --id",
            remedy="for a column of a file, use --text-column",
        )
    if args.text:
        args.refuse(["header", "encoding"], "--text gives the texts themselves, and no file is read")
    if args.format in TABLES and args.explain:
        raise UserError(f"--format {args.format} does not support --explain", remedy="use --format jsonl")
    if args.windows and args.explain:
        raise UserError("--windows does not support --explain", remedy="leave one of them out")
    if args.min_score is not None and args.score_class is None:
        raise UserError("--min-score requires a class", remedy="name it with --score-class CLASS")
    if args.format == "parquet":
        extras.require("parquet", "--format parquet")
        if args.out is None or _is_stream(args.out):
            where = "standard output" if args.out is None else f"{args.out} is a pipe or a device, which"
            why = f"{where} cannot be read backwards, and a Parquet file is read from its end"
            raise UserError("--format parquet requires a file", why, "give --out FILE.parquet")
    if remote.is_url(args.out):
        remote.check_writable(args.out)
    else:
        check_output(None if args.out is None else Path(args.out), "--out")
    if args.out is not None and args.file is not None and os.path.realpath(args.out) == os.path.realpath(args.file):
        raise UserError("--out is the file of --file, which it would replace", remedy="choose another --out")


def _predict(predictor: "Predictor", args: Any) -> None:
    if not args.text and args.file in (None, PIPE) and sys.stdin is not None and sys.stdin.isatty():
        print("type a text and press Enter; Ctrl-D ends", file=sys.stderr)
    if args.score_class is not None:
        predictor.index(args.score_class)
    counts = Counts()
    with ExitStack() as stack:
        file = args.file
        if remote.is_url(file):
            file = str(remote.download(file, stack.enter_context(temporary_folder()) / "copy"))
        columns, groups, delimiter = _inputs(args, predictor, file)
        layout = {"columns": columns, "several": predictor.is_multilabel, "score": args.score_class}
        layout |= {"delimiter": delimiter} if args.format == "csv" else {}
        formatter = create_formatter(args.format, args.top, len(predictor.classes), **layout)
        work = _Work(predictor, formatter, args.windows, args.min_score)
        processes = 1
        if isinstance(groups, InputReader) and file is not None and os.path.isfile(file):
            from crepe_dist.model.inference import CpuInferenceEngine  # our own kernels can be forked

            processes = num_threads() if isinstance(predictor.engine, CpuInferenceEngine) else 1
        predictions = groups.map_groups(work, processes) if isinstance(groups, InputReader) else map(work, groups)
        if isinstance(formatter, ParquetAnswers):
            from crepe_dist.predicting.arrow_file import write_parquet  # PyArrow takes 0.2 s to import

            source = Path(str(file)) if isinstance(groups, InputReader) and groups.format == "parquet" else None
            target = stack.enter_context(temporary_output(args.out))
            write_parquet(target, source, columns, formatter.types, counts.count(predictions))
        else:
            stream = stack.enter_context(_text_output(args.out))
            # A terminal acts on control characters, which CSV keeps.
            work.clean = escape_controls if stream.isatty() else str
            stream.write(work.clean(formatter.header))
            for text in counts.count(work.explained(groups, stream) if args.explain else predictions):
                stream.write(text)
                stream.flush()
    _conclude(counts, args, predictor.encoding)


@dataclass
class Counts:
    """Numbers of rows.

    Args:
        rows: all rows.
        dropped: rows that are left out because their score is too low.
        long: rows whose text is cut.
        problems: rows that are not classified, by the reason.
    """

    rows: int = 0
    dropped: int = 0
    long: int = 0
    problems: Counter[str] = field(default_factory=Counter)

    def count(self, results: Iterable[tuple[Any, "Counts"]]) -> Iterator[Any]:
        """Yield the outputs of ``results``, and add the numbers of rows that come with the outputs."""
        for output, counts in results:
            self.rows += counts.rows
            self.dropped += counts.dropped
            self.long += counts.long
            self.problems += counts.problems
            yield output


@dataclass
class _Work:
    """Classifier of groups of rows.

    Attributes:
        clean: replaces control characters of a line if the output is a terminal.
    """

    predictor: "Predictor"
    formatter: Formatter
    windows: bool
    min_score: Optional[float]
    clean: Callable[[str], str] = str

    def __call__(self, rows: list[InputRow]) -> tuple[Any, Counts]:
        """Classify a group of rows.

        Returns:
            Text of all lines, or a list of records for Parquet; and the numbers of rows.
        """
        pairs = self._predicted(rows)
        kept = self._kept(pairs)
        if isinstance(self.formatter, ParquetAnswers):
            return self.formatter.records(kept), _counts(pairs, kept)
        return "".join([f"{self.clean(line)}\n" for line in self.formatter.lines(kept)]), _counts(pairs, kept)

    def explained(self, groups: Iterable[list[InputRow]], stream: TextIO) -> Iterator[tuple[str, Counts]]:
        """Write each answer and its explanation, which is coloured if ``stream`` is a terminal; yield the numbers."""
        from crepe_dist.reports import explanation as explanations  # Rich takes a tenth of a second

        has_explained = False
        for pair in chain.from_iterable(map(self._predicted, groups)):
            for row, prediction in (kept := self._kept([pair])):
                explanation = None if prediction.problem else self.predictor.explain(row.text, self.formatter.score)
                stream.write(f"{self.clean(self.formatter.line(row, prediction, explanation))}\n")
                if explanation and type(self.formatter) is Formatter:
                    explanations.write(explanation, stream, legend=not has_explained)
                    has_explained = True
            yield "", _counts([pair], kept)

    def _predicted(self, rows: list[InputRow]) -> list[InputAndPrediction]:
        predictions = self.predictor.predict_stream((row.text for row in rows if not row.problem), self.windows)
        return [(row, Prediction("", 0.0, (), 0, row.problem) if row.problem else next(predictions)) for row in rows]

    def _kept(self, pairs: list[InputAndPrediction]) -> list[InputAndPrediction]:
        """Leave out the rows whose score is too low."""
        score, least = self.formatter.score, self.min_score
        if score is None or least is None:
            return pairs
        return [pair for pair in pairs if pair[1].problem or pair[1].probability_of(score) >= least]


def _counts(pairs: Sequence[InputAndPrediction], kept: Sequence[InputAndPrediction]) -> Counts:
    problems = Counter(re.split("[:;]", prediction.problem)[0] for _, prediction in pairs if prediction.problem)
    long = sum(prediction.characters_cut > 0 for _, prediction in pairs if not prediction.problem)
    return Counts(len(pairs), len(pairs) - len(kept), long, problems)


def _conclude(counts: Counts, args: Any, encoding: CharEncoder) -> None:
    """Print what was done; raise ``UserError`` if rows could not be classified."""
    out = escape_controls(remote.redact_url(args.out or ""))
    if out:
        print(f"{pluralize(counts.rows - counts.dropped, 'row')} written to {out}", file=sys.stderr)
    if args.min_score is not None:
        dropped = f"{counts.dropped:,} of {pluralize(counts.rows, 'row')} left out"
        print(f"{dropped}: their score is below {args.min_score:g}", file=sys.stderr)
    if not counts.rows:
        print(f"{escape_controls(args.file or 'standard input')} has no rows", file=sys.stderr)
    if counts.long:
        longer = (
            f"{counts.long:,} of {pluralize(counts.rows, 'text')} {'is' if counts.long == 1 else 'are'} longer than"
        )
        read = (
            f"{encoding.feature_len:,} characters, of which the network reads {describe_truncation(encoding.to_dict())}"
        )
        print(f"{longer} {read}; --windows reads all of them", file=sys.stderr)
    if counts.problems:
        remedy = f"find them by their answers{f' in {out}' if out else ''} and fix them; all other rows are classified"
        raise UserError(
            f"{sum(counts.problems.values()):,} of {pluralize(counts.rows, 'row')} could not be classified",
            join_words([f"{kind} ({count:,})" for kind, count in counts.problems.most_common()]),
            ENCODING_REMEDY if NOT_UTF_8 in counts.problems else remedy,
        )


def _inputs(
    args: Any, predictor: "Predictor", file: Optional[str]
) -> tuple[tuple[str, ...], Iterable[list[InputRow]], str]:
    """Return the names of the columns to keep, the rows in groups, and the delimiter for CSV.

    The columns of the text and of the ids are those of the model's data, unless others are given.
    """
    if args.text:
        given = enumerate(map(strip_field_separators, args.text), start=1)
        return ("text",), [[InputRow(line, text, "", (text,)) for line, text in given]], ","
    file = file or PIPE
    # From Parquet to Parquet, write_parquet copies the columns in their own types.
    keep = args.format == "csv" or (args.format == "parquet" and format_of(file, args.input_format) != "parquet")
    inputs = args.opened(file, predictor, args.id, keep=keep)
    if inputs.format == "parquet" and args.format == "csv":
        _warn_of_columns(file, args.file, inputs.columns)
    if inputs.format == "fasttext":
        note = "words with __label__ are labels, and are left out of the texts; --input-format lines keeps them"
        print(f"{escape_controls(args.file or 'standard input')}: {note}", file=sys.stderr)
    return inputs.columns, inputs, inputs.delimiter


def _warn_of_columns(file: str, given: str, kept: Sequence[str]) -> None:
    """Warn about columns of a Parquet file that CSV cannot hold."""
    from pyarrow import parquet  # takes 0.2 s

    if left := [name for name in parquet.read_schema(file).names if name not in kept]:
        what = (
            f"CSV does not have the columns {join_words(left)} of {remote.redact_url(given)}: their values are nested"
        )
        warnings.warn(f"{excerpt(what)}; --format parquet keeps them", stacklevel=2)


@contextmanager
def _text_output(out: Optional[str]) -> Iterator[TextIO]:
    """Open the stream for predictions as text; a kept column may contain lone surrogates."""
    if out is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="replace")
        yield sys.stdout
    elif _is_stream(out):
        with open_stream(Path(out), "replace") as stream:
            yield stream
    else:
        with temporary_output(out) as path, path.open("w", encoding="utf-8", errors="replace", newline="") as stream:
            yield stream
