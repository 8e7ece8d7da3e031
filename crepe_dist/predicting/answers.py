"""Formats for predictions: plain text, JSON Lines, CSV, and Parquet, which is made from CSV in constant memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from crepe_dist import files
from crepe_dist.errors import UserError, one_line, shown
from crepe_dist.predicting.inputs import Input
from crepe_dist.predicting.occlusion import Explanation
from crepe_dist.predicting.prediction import NONE, Prediction, unanswered
from crepe_dist.wording import percent

STYLES = ("text", "jsonl", "csv", "parquet")
TABLES = ("csv", "parquet")  # with the columns of the input
SCORE_DIGITS = 4
BLOCK = 1 << 23  # bytes of CSV that become a row group
# Types of Parquet whose values have the same text in CSV.
KEPT = ("is_integer", "is_boolean", "is_date", "is_timestamp", "is_decimal", "is_float32", "is_float64")
_encoded = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps makes an encoder for each record


def answer_types(top: int, several: bool) -> dict[str, str]:
    """Return the names of the columns that answers add to a table, and their types; several labels are a JSON list."""
    types = {"predicted_labels": "object"} if several else {}
    for rank in range(1, top + 1):
        number = "" if rank == 1 else f"_{rank}"
        types |= {f"predicted_class{number}": "object", f"predicted_probability{number}": "float64"}
    return {**types, "characters_cut": "int64", "problem": "object"}


def answer_cells(prediction: Prediction, top: int) -> list[Any]:
    """Return the values of these columns for a text without a problem; the class of a rejected text is empty."""
    cells: list[Any] = [] if prediction.labels is None else [_encoded(prediction.labels)]
    for rank, (label, probability) in enumerate(prediction.ranking[:top]):
        cells += ["" if prediction.rejected and rank == 0 else label, probability]
    return [*cells, prediction.characters_cut, ""]


class Answers:
    """Formatter for plain text, and the base class of the other formatters.

    Attributes:
        header: header above all answers, including its line end; empty if the format has none.
    """

    header = ""

    def __init__(self, top: int, columns: Sequence[str], delimiter: str = ",", several: bool = False) -> None:
        self.several = several
        self.top = top
        self.columns = columns

    def line(self, row: Input, prediction: Prediction | None, explanation: Explanation | None = None) -> str:
        """Format the answer to one row, without the line end; without a prediction, the problem of the row."""
        if prediction is None:
            return f"not classified: {one_line(row.place)}: {one_line(row.problem)}"
        shares = [f"{one_line(label)} {percent(share)}" for label, share in prediction.ranking]
        likely = shares[: self.top]
        if prediction.labels is not None:
            likely = shares[: len(prediction.labels)] or [f"no label ({', '.join(likely)})"]
        elif prediction.rejected:
            likely = [NONE, *likely]
        return (f"{one_line(row.id)}: " if row.id else "") + "   ".join(likely)


class JsonAnswers(Answers):
    """Formatter for JSON Lines: one object per row, including its explanation."""

    def line(self, row: Input, prediction: Prediction | None, explanation: Explanation | None = None) -> str:
        record: dict[str, Any] = {"line": row.line, **({"id": row.id} if row.id else {})}
        if prediction is None:
            return json_line({**record, **unanswered(row.problem)})
        record |= prediction.record(self.top)
        if explanation is not None:
            record["explanation"] = explained(explanation)
        return json_line(record)


class _Returned:
    """Stream for ``csv.writer``, whose ``writerow`` then returns the record."""

    @staticmethod
    def write(record: str) -> str:
        return record


class CsvAnswers(Answers):
    """Formatter for CSV: the row's own columns, and those of ``answer_types``.

    Args:
        exact: format what ``converter`` reads: numbers in full, and no header.
    """

    def __init__(
        self, top: int, columns: Sequence[str], delimiter: str = ",", several: bool = False, exact: bool = False
    ) -> None:
        super().__init__(top, columns, delimiter, several)
        # This line end, so that "\r" and "\n" in a cell are both quoted.
        self._writer: Any = csv.writer(_Returned(), delimiter=delimiter, lineterminator="\r\n")
        self._exact = exact
        self.header = "" if exact else f"{self._record([*columns, *answer_types(top, several)])}\n"

    def line(self, row: Input, prediction: Prediction | None, explanation: Explanation | None = None) -> str:
        cells = list(row.cells) or [""] * len(self.columns)
        if prediction is None:
            return self._record([*cells, *[""] * (2 * self.top + self.several + 1), f"line {row.line}: {row.problem}"])
        digits = "" if self._exact else ".6f"
        values = answer_cells(prediction, self.top)
        return self._record([*cells, *(format(each, digits if type(each) is float else "") for each in values)])

    def _record(self, cells: list[str]) -> str:
        record: str = self._writer.writerow(cells if self._exact else map(files.cell, cells))
        return record.removesuffix("\r\n")


def answers(
    style: str, top: int | None, columns: Sequence[str], classes: int, delimiter: str = ",", *, several: bool = False
) -> Answers:
    """Make the formatter for one of ``STYLES``."""
    top = min(top or (1 if style in TABLES else 5), classes)
    if style in TABLES:
        is_csv = style == "csv"
        return CsvAnswers(top, columns, delimiter if is_csv else ",", several, exact=not is_csv)
    return (JsonAnswers if style == "jsonl" else Answers)(top, columns, several=several)


def explained(explanation: Explanation) -> dict[str, Any]:
    """Convert an explanation to JSON-able data; positions count the code points of the text."""
    return {
        "class": explanation.label,
        "cut": [explanation.cut.start, explanation.cut.stop],
        "words": [
            {"text": word.text, "start": word.start, "stop": word.stop, "score": round(word.score, SCORE_DIGITS)}
            for word in explanation.words
        ],
        "characters": [round(score, SCORE_DIGITS) for score in explanation.scores],
    }


def json_line(record: dict[str, Any]) -> str:
    """Encode a record as one line of JSON; escape only the characters that a terminal would act on."""
    line = _encoded(record)
    if line.isprintable():
        return line
    return "".join(character if shown(character) == character else json.dumps(character)[1:-1] for character in line)


def converter(source: str | None, columns: Sequence[str], answers: Mapping[str, str]) -> Callable[[Path, Path], None]:
    """Return the function that writes a Parquet file from a CSV file without header.

    Args:
        source: Parquet file of the input, whose types are kept where CSV can hold them; ``None`` for other formats.
        columns: names of the columns of the input.
        answers: names and types of the columns after them.

    Raises:
        UserError: two columns have the same name.
    """
    import pyarrow as pa  # takes 0.2 s
    from pyarrow import parquet

    names = [*columns, *answers]
    if twice := [name for name in names if names.count(name) > 1]:
        remedy = "rename that column, or use --format csv"
        raise UserError(f"the answers would have two columns {twice[0]!r:.80}", remedy=remedy)
    kinds = {"float64": pa.float64(), "int64": pa.int64(), "object": pa.string()}
    types = dict.fromkeys(columns, pa.string()) | {name: kinds[kind] for name, kind in answers.items()}
    for column in parquet.read_schema(source) if source else ():
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if column.name in columns and any(getattr(pa.types, test)(kind) for test in KEPT):
            types[column.name] = kind
    return partial(_convert, types)


def _convert(types: dict[str, Any], source: Path, target: Path) -> None:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    parsing = arrow_csv.ParseOptions(newlines_in_values=True)
    options = arrow_csv.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=False)
    with parquet.ParquetWriter(target, pa.schema(list(types.items()))) as writer, source.open("rb") as stream:
        for block in _records(stream):
            # Arrow's own reader of blocks reads 32 of them ahead, and refuses a record that is longer than one.
            reading = arrow_csv.ReadOptions(use_threads=False, block_size=len(block), column_names=list(types))
            writer.write_table(arrow_csv.read_csv(pa.py_buffer(block), reading, parsing, options))


def _records(stream: BinaryIO) -> Iterator[bytes]:
    """Yield blocks of whole records. Before a line end inside quotes, there is an odd number of quotes."""
    rest = b""
    while read := stream.read(BLOCK):
        rest += read
        end = rest.rfind(b"\n") + 1
        while rest.count(b'"', 0, end) % 2:
            end = rest.rfind(b"\n", 0, end - 1) + 1
        if end:
            yield rest[:end]
        rest = rest[end:]
