"""Output formats of predictions: plain text, JSON Lines, CSV, and records for Parquet."""

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

from crepe_dist.errors import escape_character, escape_to_one_line
from crepe_dist.files.csv_cells import escape_cells
from crepe_dist.formatting import percent
from crepe_dist.predicting.input_reader import InputRow
from crepe_dist.predicting.occlusion import Explanation
from crepe_dist.predicting.prediction import REJECTED, Prediction

PROBABILITY_DIGITS = 6  # Number of digits of entropies and margins in JSON.
SCORE_DIGITS = 4  # Number of digits of the scores of an explanation in JSON.
InputAndPrediction = tuple[InputRow, Prediction]
_to_json = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would create an encoder for each record.


def output_column_types(top: int, is_multilabel: bool, score_class: str | None = None) -> dict[str, str]:
    """Return the names and types of the columns that predictions add to a table.

    Args:
        top: Number of classes in a prediction.
        is_multilabel: True to add a column with a JSON list of the predicted labels.
        score_class: Class whose probability is written to the column ``score``. If it is ``None``, there is no column
            ``score``.
    """
    types = {"predicted_labels": "object"} if is_multilabel else {}
    for rank in range(1, top + 1):
        suffix = "" if rank == 1 else f"_{rank}"
        types |= {f"predicted_class{suffix}": "object", f"predicted_probability{suffix}": "float64"}
    types |= {"score": "float64"} if score_class else {}
    return {**types, "characters_cut": "int64", "problem": "object"}


def output_cells(
    prediction: Prediction, top: int, convert: Callable[[float], Any] = float, score_class: str | None = None
) -> list[Any]:
    """Return the values of the columns named by ``output_column_types``, for a prediction without an error.

    The class of a rejected prediction is empty.

    Args:
        convert: Function that converts a probability to a cell.
    """
    cells: list[Any] = [] if prediction.labels is None else [_to_json(prediction.labels)]
    for label, probability in prediction.ranking[:top]:
        cells += (label, convert(probability))
    if prediction.rejected:
        cells[-2 * min(top, len(prediction.ranking))] = ""
    if score_class:
        cells.append(convert(prediction.probability_of(score_class)))
    return [*cells, prediction.characters_truncated, ""]


@dataclass
class Formatter:
    """Formatter for plain text, and base class of the other formatters.

    Args:
        top: Number of classes in a prediction.
        columns: Names of the input columns that are copied to the output.
        delimiter: Delimiter of the CSV file.
        is_multilabel: True if the model is a multilabel model.
        score_class: Class whose probability is the score. If it is ``None``, there is no score.

    Attributes:
        header: First line of the output, including the line ending. Empty if the format has no header.
    """

    top: int
    columns: Sequence[str] = ()
    delimiter: str = ","
    is_multilabel: bool = False
    score_class: str | None = None
    header = ""

    def line(self, row: InputRow, prediction: Prediction, explanation: Explanation | None = None) -> str:
        """Format the prediction for one row, without the line ending."""
        if prediction.error:
            return f"not classified: {escape_to_one_line(row.place)}: {escape_to_one_line(prediction.error)}"
        classes = [f"{escape_to_one_line(label)} {percent(probability)}" for label, probability in prediction.ranking]
        shown = classes[: self.top]
        if prediction.labels is not None:
            shown = classes[: len(prediction.labels)] or [f"no label ({', '.join(shown)})"]
        elif prediction.rejected:
            shown = [REJECTED, *shown]
        if self.score_class:
            shown = [f"score {percent(prediction.probability_of(self.score_class))}", *shown]
        return (f"{escape_to_one_line(row.id)}: " if row.id else "") + "   ".join(shown)

    def lines(self, pairs: Iterable[InputAndPrediction]) -> list[str]:
        """Format many predictions; see ``line``."""
        return [self.line(row, prediction) for row, prediction in pairs]


class JsonFormatter(Formatter):
    """Formatter for JSON Lines: one object per row. The object contains the explanation, if there is one."""

    def line(self, row: InputRow, prediction: Prediction, explanation: Explanation | None = None) -> str:
        start = f'{{"line": {row.line}, ' + (f'"id": {json_line(row.id)}, ' if row.id else "")
        return start + json_record(prediction, self.top, explanation, self.score_class)[1:]


class TableFormatter(Formatter):
    """Base class of the formatters for tables: the copied input columns, then the columns of ``types``."""

    @property
    def types(self) -> dict[str, str]:
        """Names and types of the columns that follow the copied input columns."""
        return output_column_types(self.top, self.is_multilabel, self.score_class)

    def cells(self, row: InputRow, prediction: Prediction, convert: Callable[[float], Any] = float) -> list[Any]:
        """Return the values of all columns. If the prediction has an error, numbers are ``None``."""
        copied = row.cells or ("",) * len(self.columns)
        if not prediction.error:
            return [*copied, *output_cells(prediction, self.top, convert, self.score_class)]
        *empty, _ = ["" if kind == "object" else None for kind in self.types.values()]
        return [*copied, *empty, f"line {row.line}: {prediction.error}"]


@dataclass  # The generated __init__ calls __post_init__.
class CsvFormatter(TableFormatter):
    """Formatter for CSV. ``None`` is written as an empty cell."""

    def __post_init__(self) -> None:
        self._records: list[str] = []
        stream = SimpleNamespace(write=self._records.append)
        # This line terminator makes the writer quote cells that contain "\r" or "\n".
        self._writer: Any = csv.writer(stream, delimiter=self.delimiter, lineterminator="\r\n")
        self.header = f"{self._format([[*self.columns, *self.types]])[0]}\n"

    def line(self, row: InputRow, prediction: Prediction, explanation: Explanation | None = None) -> str:
        return self.lines([(row, prediction)])[0]

    def lines(self, pairs: Iterable[InputAndPrediction]) -> list[str]:
        return self._format([self.cells(row, prediction, "{:.6f}".format) for row, prediction in pairs])

    def _format(self, rows: list[list[Any]]) -> list[str]:
        self._records.clear()
        self._writer.writerows(map(escape_cells, rows))
        return [record[:-2] for record in self._records]


class ParquetFormatter(TableFormatter):
    """Formatter for Parquet: records of values for ``arrow_file.write_parquet``."""

    def records(self, pairs: Iterable[InputAndPrediction]) -> list[list[Any]]:
        """Return a list for each row: the line number, then the values of all columns."""
        return [[row.line, *self.cells(row, prediction)] for row, prediction in pairs]


FORMATTERS = {"text": Formatter, "jsonl": JsonFormatter, "csv": CsvFormatter, "parquet": ParquetFormatter}
OUTPUT_FORMATS = tuple(FORMATTERS)
TABLE_FORMATS = ("csv", "parquet")  # Formats that copy the columns of the input.


def create_formatter(format: str, top: int | None, num_classes: int, **layout: Any) -> Formatter:
    """Create the formatter of a format.

    Args:
        format: One of ``OUTPUT_FORMATS``.
        top: Number of classes in a prediction. If it is ``None``, a prediction has 1 class in tables, and 5 classes in
            other formats.
        num_classes: Number of classes of the model, which limits ``top``.
        layout: Further arguments of ``Formatter``.
    """
    return FORMATTERS[format](min(top or (1 if format in TABLE_FORMATS else 5), num_classes), **layout)


def json_record(
    prediction: Prediction, top: int, explanation: Explanation | None = None, score_class: str | None = None
) -> str:
    """Format a prediction and its most probable classes (``top`` of them) as a JSON object.

    The class of a rejected prediction is null. The object of a text that cannot be classified has the key ``problem``.
    """
    if prediction.error:
        return json_line({"class": None, "probability": None, "top": [], "problem": prediction.error})
    # Formatting the object here is four times as fast as encoding a dictionary.
    classes = [
        f'{{"class": {_json_name(label)}, "probability": {probability}}}'
        for label, probability in prediction.ranking[:top]
    ]
    labels = "" if prediction.labels is None else f'"labels": [{", ".join(map(_json_name, prediction.labels))}], '
    score = f'"score": {prediction.probability_of(score_class)}, ' if score_class else ""
    explained = "" if explanation is None else f', "explanation": {json_line(explanation_to_dict(explanation))}'
    return (
        f'{{{labels}"class": {"null" if prediction.rejected else _json_name(prediction.label)}, '
        f'"probability": {prediction.probability}, {score}"entropy": {round(prediction.entropy, PROBABILITY_DIGITS)}, '
        f'"margin": {round(prediction.margin, PROBABILITY_DIGITS)}, "top": [{", ".join(classes)}], '
        f'"read": {prediction.characters_read}, "characters_cut": {prediction.characters_truncated}{explained}}}'
    )


def explanation_to_dict(explanation: Explanation) -> dict[str, Any]:
    """Convert an explanation to JSON values. Positions are in code points of the text."""
    return {
        "class": explanation.label,
        "cut": [explanation.truncated.start, explanation.truncated.stop],
        "words": [
            {"text": word.text, "start": word.start, "stop": word.stop, "score": round(word.score, SCORE_DIGITS)}
            for word in explanation.words
        ],
        "characters": [round(score, SCORE_DIGITS) for score in explanation.scores],
    }


def json_line(value: Any) -> str:
    """Encode a value as one line of JSON. Escape only the characters that a terminal would interpret."""
    line = _to_json(value)
    if line.isprintable():
        return line
    return "".join(
        character if escape_character(character) == character else json.dumps(character)[1:-1] for character in line
    )


_json_name = cache(json_line)  # Class names repeat in every record, so their JSON is cached.
