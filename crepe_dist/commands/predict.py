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
from typing import TYPE_CHECKING, Any, TextIO
from urllib.parse import urlsplit

from crepe_dist import extras
from crepe_dist.data.char_encoder import CharEncoder, describe_truncation
from crepe_dist.distributed.launch import set_omp_threads
from crepe_dist.errors import UserError, escape_controls
from crepe_dist.files.folders import temporary_folder
from crepe_dist.files.output_streams import is_stream, open_stream
from crepe_dist.formatting import excerpt, join_words, pluralize
from crepe_dist.native.library import num_threads
from crepe_dist.predicting.input_reader import INPUT_FORMATS, InputReader, InputRow, open_inputs_for_model
from crepe_dist.predicting.output_file import temporary_output
from crepe_dist.predicting.output_formats import (
    OUTPUT_FORMATS,
    TABLE_FORMATS,
    Formatter,
    InputAndPrediction,
    ParquetFormatter,
    create_formatter,
)
from crepe_dist.predicting.prediction import Prediction
from crepe_dist.preparing import remote
from crepe_dist.preparing.formats import NOT_UTF_8
from crepe_dist.preparing.formats.lines import SAVE_AS_UTF_8
from crepe_dist.preparing.sources import PIPE, format_by_suffix
from crepe_dist.settings.fields import (
    ANY_TEXT,
    COLUMN,
    NON_EMPTY,
    Choice,
    Repeated,
    int_range,
    setting,
    truncate,
)
from crepe_dist.settings.flags import Command, DeviceFlag, ModelFlags, ThresholdFlag, check_output

if TYPE_CHECKING:
    from crepe_dist.predicting.predictor import Predictor


@dataclass
class Predict(ModelFlags, DeviceFlag, ThresholdFlag, Command):
    """Classify texts: the lines of standard input, the rows of --file, or the text of --text.

    The output contains one prediction per row, in the order of the rows. If a row cannot be classified, its prediction
    contains the reason, and the exit code is 1.
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

    input_format: str | None = setting(
        None,
        "Format of the input file. Default: determined by the file name; lines if the name has no known suffix.",
        Choice(INPUT_FORMATS),
    )
    text_column: tuple[str, ...] = setting(
        (),
        "Name or number (from 1) of the text column. Repeat the option to join the texts of multiple columns in this "
        "order. Default: the columns that the model was trained on. If the file lacks these columns, the text column "
        "is guessed.",
        Repeated(COLUMN),
    )
    text: tuple[str, ...] = setting(
        (), "Text to classify, instead of a file. Repeat the option for multiple texts.", Repeated(ANY_TEXT)
    )
    file: str | None = setting(
        None,
        "Texts to classify: a file, plain or .gz, or its URL. Default: standard input (-).",
        NON_EMPTY,
    )
    windows: bool = setting(
        False,
        "Read a long text completely, in overlapping windows. The prediction is computed from the mean of the windows' "
        "logits, weighted by the number of known characters in each window. Default: a long text is truncated.",
    )
    top: int | None = setting(
        None,
        "Number of classes in a prediction, the most probable first. Default: 1 with --format csv or parquet, "
        "otherwise 5.",
        int_range(1, 10**9),
    )
    format: str | None = setting(
        None,
        "Output format. csv and parquet copy the columns of the input. Default: determined by the name of --out, or "
        "text if --out is not given.",
        Choice(OUTPUT_FORMATS),
    )
    out: str | None = setting(
        None,
        "Output file, or its URL. The file gets this name when it is complete. Default: standard output.",
        NON_EMPTY,
    )
    explain: bool = setting(False, "Show for each character how much it supports the class.")

    def run(self) -> None:
        self.format = self.format or _detect_output_format(self.out)
        _check(self)
        set_omp_threads()
        from crepe_dist.predicting.loading import load_for_command  # Imported here because this import is slow.

        _predict(load_for_command(self, device=self.device, **self.thresholds()), self)


def _is_stream(out: str) -> bool:
    return not remote.is_url(out) and is_stream(Path(out))


def _detect_output_format(out: str | None) -> str:
    path = Path(urlsplit(out or "").path)
    output_format = format_by_suffix(path) or "text"
    if output_format not in OUTPUT_FORMATS or path.suffix.lower() == ".gz":
        raise UserError(
            f"--out is {truncate(str(out))}, a kind of file that predict does not write",
            remedy="give a name that ends in .csv, .jsonl, .parquet or .txt, or the format with --format",
        )
    return output_format


def _check(args: Any) -> None:
    if args.text and args.file:
        raise UserError("--text and --file exclude each other", remedy="for a column of a file, use --text-column")
    if args.format in TABLE_FORMATS and args.explain:
        raise UserError(f"--format {args.format} does not support --explain", remedy="use --format jsonl")
    if args.windows and args.explain:
        raise UserError("--windows does not support --explain", remedy="leave one of them out")
    if args.format == "parquet":
        extras.require("parquet", "--format parquet")
        if args.out is None or _is_stream(args.out):
            where = "standard output" if args.out is None else f"{args.out} is a pipe or a device, which"
            why = f"{where} does not support seeking, and a Parquet file is read from its end"
            raise UserError("--format parquet requires a file", why, "pass --out FILE.parquet")
    if remote.is_url(args.out):
        remote.check_writable(args.out)
    else:
        check_output(None if args.out is None else Path(args.out), "--out")
    if args.out is not None and args.file is not None and os.path.realpath(args.out) == os.path.realpath(args.file):
        raise UserError("--out is the file of --file, which it would replace", remedy="choose another --out")


def _predict(predictor: "Predictor", args: Any) -> None:
    if not args.text and args.file in (None, PIPE) and sys.stdin is not None and sys.stdin.isatty():
        print("type a text and press Enter; press Ctrl-D to finish", file=sys.stderr)
    counts = RowCounts()
    with ExitStack() as stack:
        file = args.file
        if remote.is_url(file):
            file = str(remote.download(file, stack.enter_context(temporary_folder()) / "copy"))
        columns, groups, delimiter = _inputs(args, predictor, file)
        layout = {"columns": columns, "is_multilabel": predictor.is_multilabel}
        layout |= {"delimiter": delimiter} if args.format == "csv" else {}
        formatter = create_formatter(args.format, args.top, len(predictor.classes), **layout)
        classifier = _RowClassifier(predictor, formatter, args.windows)
        num_processes = 1
        if isinstance(groups, InputReader) and file is not None and os.path.isfile(file):
            from crepe_dist.model.inference import CpuInferenceEngine

            # Only the native CPU kernels work in forked processes.
            num_processes = num_threads() if isinstance(predictor.engine, CpuInferenceEngine) else 1
        predictions = (
            groups.map_groups(classifier, num_processes) if isinstance(groups, InputReader) else map(classifier, groups)
        )
        if isinstance(formatter, ParquetFormatter):
            from crepe_dist.predicting.arrow_file import write_parquet  # Importing PyArrow takes 0.2 s.

            source = Path(str(file)) if isinstance(groups, InputReader) and groups.format == "parquet" else None
            target = stack.enter_context(temporary_output(args.out))
            write_parquet(target, source, columns, formatter.types, counts.add(predictions))
        else:
            stream = stack.enter_context(_text_output(args.out))
            # A terminal interprets control characters, and the CSV format does not escape them.
            classifier.clean = escape_controls if stream.isatty() else str
            stream.write(classifier.clean(formatter.header))
            for text in counts.add(classifier.explain(groups, stream) if args.explain else predictions):
                stream.write(text)
                stream.flush()
    _print_summary(counts, args, predictor.encoding)


@dataclass
class RowCounts:
    """Row counts for the summary of the command.

    Args:
        rows: Total number of rows.
        truncated: Number of rows with a truncated text.
        errors: Number of rows that cannot be classified, by reason.
    """

    rows: int = 0
    truncated: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, results: Iterable[tuple[Any, "RowCounts"]]) -> Iterator[Any]:
        """Yield the outputs in ``results``, and add the row counts of each output to this object."""
        for output, counts in results:
            self.rows += counts.rows
            self.truncated += counts.truncated
            self.errors += counts.errors
            yield output


@dataclass
class _RowClassifier:
    """Classifier of groups of rows.

    Attributes:
        clean: Function that escapes the control characters of a line if the output is a terminal.
    """

    predictor: "Predictor"
    formatter: Formatter
    windows: bool
    clean: Callable[[str], str] = str

    def __call__(self, rows: list[InputRow]) -> tuple[Any, RowCounts]:
        """Classify a group of rows.

        Returns:
            The output lines as one string, or a list of records for Parquet; and the row counts.
        """
        pairs = self._predict(rows)
        counts = _count_rows(pairs)
        if isinstance(self.formatter, ParquetFormatter):
            return self.formatter.records(pairs), counts
        return "".join([f"{self.clean(line)}\n" for line in self.formatter.lines(pairs)]), counts

    def explain(self, groups: Iterable[list[InputRow]], stream: TextIO) -> Iterator[tuple[str, RowCounts]]:
        """Write each prediction and its explanation to ``stream``. Yield an empty output and the counts of each row.

        The explanation is coloured if ``stream`` is a terminal.
        """
        from crepe_dist.reports import explanation as explanations  # Importing Rich takes 0.1 s.

        has_explained = False
        for row, prediction in chain.from_iterable(map(self._predict, groups)):
            explanation = None if prediction.error else self.predictor.explain(row.text)
            stream.write(f"{self.clean(self.formatter.line(row, prediction, explanation))}\n")
            if explanation and type(self.formatter) is Formatter:
                explanations.write(explanation, stream, legend=not has_explained)
                has_explained = True
            yield "", _count_rows([(row, prediction)])

    def _predict(self, rows: list[InputRow]) -> list[InputAndPrediction]:
        predictions = self.predictor.predict_stream((row.text for row in rows if not row.error), self.windows)
        return [(row, Prediction("", 0.0, (), 0, row.error) if row.error else next(predictions)) for row in rows]


def _count_rows(pairs: Sequence[InputAndPrediction]) -> RowCounts:
    # The reason ends at the first colon or semicolon, which precedes the details about the row.
    errors = Counter(re.split("[:;]", prediction.error)[0] for _, prediction in pairs if prediction.error)
    truncated = sum(prediction.characters_truncated > 0 for _, prediction in pairs if not prediction.error)
    return RowCounts(len(pairs), truncated, errors)


def _print_summary(counts: RowCounts, args: Any, encoding: CharEncoder) -> None:
    """Print the numbers of written and truncated rows.

    Raises:
        UserError: Some rows could not be classified.
    """
    out = escape_controls(remote.redact_url(args.out or ""))
    if out:
        print(f"{pluralize(counts.rows, 'row')} written to {out}", file=sys.stderr)
    if not counts.rows:
        print(f"{escape_controls(args.file or 'standard input')} has no rows", file=sys.stderr)
    if counts.truncated:
        texts = f"{counts.truncated:,} of {pluralize(counts.rows, 'text')} {'is' if counts.truncated == 1 else 'are'}"
        length = f"{encoding.feature_len:,} characters"
        read = f"the network reads only {describe_truncation(encoding.to_dict())}; to read everything, pass --windows"
        print(f"{texts} longer than {length}: {read}", file=sys.stderr)
    if counts.errors:
        where = f" in {out}" if out else ""
        remedy = f"find these rows by the errors{where}, and fix them; all other rows are classified"
        raise UserError(
            f"{sum(counts.errors.values()):,} of {pluralize(counts.rows, 'row')} could not be classified",
            join_words([f"{error} ({count:,})" for error, count in counts.errors.most_common()]),
            SAVE_AS_UTF_8 if NOT_UTF_8 in counts.errors else remedy,
        )


def _inputs(
    args: Any, predictor: "Predictor", file: str | None
) -> tuple[tuple[str, ...], Iterable[list[InputRow]], str]:
    """Return the names of the columns to copy, the groups of rows, and the delimiter for CSV.

    The id column and, by default, the text columns have the same names as in the training data.
    """
    if args.text:
        texts = enumerate(args.text, start=1)
        return ("text",), [[InputRow(line, text, "", (text,)) for line, text in texts]], ","
    file = file or PIPE
    # If both files are Parquet files, write_parquet copies the columns with their types.
    keep_columns = args.format == "csv" or (
        args.format == "parquet" and (args.input_format or format_by_suffix(Path(file))) != "parquet"
    )
    inputs = open_inputs_for_model(file, predictor, args.input_format, args.text_column, keep_columns=keep_columns)
    if inputs.format == "parquet" and args.format == "csv":
        _warn_of_nested_columns(file, args.file, inputs.columns)
    return inputs.columns, inputs, inputs.delimiter


def _warn_of_nested_columns(file: str, name: str, copied: Sequence[str]) -> None:
    """Warn about columns of a Parquet file that CSV cannot represent.

    Args:
        file: Path of the Parquet file, or of the local copy of a remote file.
        name: File name as the user specified it.
        copied: Names of the columns that are copied to the CSV file.
    """
    from pyarrow import parquet  # Importing PyArrow takes 0.2 s.

    if nested := [column for column in parquet.read_schema(file).names if column not in copied]:
        what = f"the columns {join_words(nested)} of {remote.redact_url(name)} are not copied: their values are nested"
        warnings.warn(f"{excerpt(what)}; --format parquet copies them", stacklevel=2)


@contextmanager
def _text_output(out: str | None) -> Iterator[TextIO]:
    """Open the output stream for text formats. Lone surrogates in copied columns are replaced with question marks."""
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
