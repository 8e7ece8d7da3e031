"""Formats for predictions: plain text, JSON Lines, CSV, and records for Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

from crepe_dist.errors import escape_character, escape_to_one_line
from crepe_dist.files.csv_cells import cells
from crepe_dist.formatting import percent
from crepe_dist.predicting.input_reader import InputRow
from crepe_dist.predicting.occlusion import Explanation
from crepe_dist.predicting.prediction import NONE, Prediction

DIGITS, SCORE_DIGITS = 6, 4
InputAndPrediction = tuple[InputRow, Prediction]
_encoded = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps makes an encoder for each record


def answer_types(top: int, several: bool, score: str | None = None) -> dict[str, str]:
    """Return the names of the columns that answers add to a table, and their types; several labels are a JSON list.

    Args:
        score: class whose probability is a column.
    """
    types = {"predicted_labels": "object"} if several else {}
    for rank in range(1, top + 1):
        number = "" if rank == 1 else f"_{rank}"
        types |= {f"predicted_class{number}": "object", f"predicted_probability{number}": "float64"}
    types |= {"score": "float64"} if score else {}
    return {**types, "characters_cut": "int64", "problem": "object"}


def answer_cells(
    prediction: Prediction, top: int, number: Callable[[float], Any] = float, score: str | None = None
) -> list[Any]:
    """Return the values of these columns for a text without a problem; the class of a rejected text is empty.

    Args:
        number: converts a probability.
    """
    cells: list[Any] = [] if prediction.labels is None else [_encoded(prediction.labels)]
    # The answer may be a node above the classes.
    for label, probability in ((prediction.label, prediction.probability), *prediction.ranking[1:top]):
        cells += (label, number(probability))
    if prediction.rejected:
        cells[-2 * min(top, len(prediction.ranking))] = ""
    if score:
        cells.append(number(prediction.probability_of(score)))
    return [*cells, prediction.characters_cut, ""]


@dataclass
class Formatter:
    """Formatter for plain text, and the base class of the other formatters.

    Args:
        columns: names of the row's own columns, in a table.
        score: class whose probability is the score.

    Attributes:
        header: header above all answers, including its line end; empty if the format has none.
    """

    top: int
    columns: Sequence[str] = ()
    delimiter: str = ","
    several: bool = False
    score: str | None = None
    header = ""

    def line(self, row: InputRow, prediction: Prediction, explanation: Explanation | None = None) -> str:
        """Format the answer to one row, without the line end."""
        if prediction.problem:
            return f"not classified: {escape_to_one_line(row.place)}: {escape_to_one_line(prediction.problem)}"
        shares = [f"{escape_to_one_line(label)} {percent(share)}" for label, share in prediction.ranking]
        likely = shares[: self.top]
        if prediction.labels is not None:
            likely = shares[: len(prediction.labels)] or [f"no label ({', '.join(likely)})"]
        elif prediction.rejected:
            likely = [NONE, *likely]
        elif prediction.label != prediction.ranking[0][0]:  # a node above the classes
            likely = [f"{escape_to_one_line(prediction.label)} {percent(prediction.probability)}", *likely]
        if self.score:
            likely = [f"score {percent(prediction.probability_of(self.score))}", *likely]
        return (f"{escape_to_one_line(row.id)}: " if row.id else "") + "   ".join(likely)

    def lines(self, answers: Iterable[InputAndPrediction]) -> list[str]:
        """Format several answers; see ``line``."""
        return [self.line(row, prediction) for row, prediction in answers]


class JsonAnswers(Formatter):
    """Formatter for JSON Lines: one object per row, including its explanation."""

    def line(self, row: InputRow, prediction: Prediction, explanation: Explanation | None = None) -> str:
        start = f'{{"line": {row.line}, ' + (f'"id": {json_line(row.id)}, ' if row.id else "")
        return start + json_record(prediction, self.top, explanation, self.score)[1:]


@dataclass  # whose initializer calls __post_init__
class CsvAnswers(Formatter):
    """Formatter for CSV: the row's own columns, and those of ``answer_types``."""

    def __post_init__(self) -> None:
        self._added = list(answer_types(self.top, self.several, self.score))
        self._records: list[str] = []
        stream = SimpleNamespace(write=self._records.append)
        # This line end, so that "\r" and "\n" in a cell are both quoted. Without an escape, Python 3.10 refuses NUL.
        self._writer: Any = csv.writer(stream, delimiter=self.delimiter, lineterminator="\r\n", escapechar="\udfff")
        self.header = f"{self._written([[*self.columns, *self._added]])[0]}\n"

    def line(self, row: InputRow, prediction: Prediction, explanation: Explanation | None = None) -> str:
        return self.lines([(row, prediction)])[0]

    def lines(self, answers: Iterable[InputAndPrediction]) -> list[str]:
        return self._written([self._cells(row, prediction) for row, prediction in answers])

    def _cells(self, row: InputRow, prediction: Prediction) -> list[Any]:
        cells = list(row.cells) or [""] * len(self.columns)
        if prediction.problem:
            return [*cells, *[""] * (len(self._added) - 1), f"line {row.line}: {prediction.problem}"]
        return cells + answer_cells(prediction, self.top, "{:.6f}".format, self.score)

    def _written(self, rows: list[list[Any]]) -> list[str]:
        self._records.clear()
        self._writer.writerows(map(cells, rows))
        return [record[:-2] for record in self._records]


class ParquetAnswers(Formatter):
    """Formatter for Parquet: records of values for ``arrow_file.write_parquet``."""

    @property
    def types(self) -> dict[str, str]:
        """Names and types of the columns that follow the row's own columns."""
        return answer_types(self.top, self.several, self.score)

    def records(self, answers: Iterable[InputAndPrediction]) -> list[list[Any]]:
        """Return a list for each row: the line number, the row's own cells, and the values of ``types``."""
        return [[row.line, *self._own(row), *self._added(row, prediction)] for row, prediction in answers]

    def _own(self, row: InputRow) -> Sequence[str]:
        return row.cells or ("",) * len(self.columns)

    def _added(self, row: InputRow, prediction: Prediction) -> list[Any]:
        if not prediction.problem:
            return answer_cells(prediction, self.top, float, self.score)
        *others, _ = ["" if kind == "object" else None for kind in self.types.values()]
        return [*others, f"line {row.line}: {prediction.problem}"]


FORMATTERS = {"text": Formatter, "jsonl": JsonAnswers, "csv": CsvAnswers, "parquet": ParquetAnswers}
STYLES, TABLES = tuple(FORMATTERS), ("csv", "parquet")  # the latter with the columns of the input


def create_formatter(style: str, top: int | None, classes: int, **layout: Any) -> Formatter:
    """Make the formatter of a style; ``layout`` are arguments of ``Formatter``."""
    return FORMATTERS[style](min(top or (1 if style in TABLES else 5), classes), **layout)


def json_record(
    prediction: Prediction, top: int, explanation: Explanation | None = None, score: str | None = None
) -> str:
    """Write a prediction and its ``top`` most probable classes as a JSON object; a rejected class is null.

    A text that cannot be classified has a problem and no class.
    """
    if prediction.problem:
        return json_line({"class": None, "probability": None, "top": [], "problem": prediction.problem})
    # Four times as fast as to encode a dictionary.
    shares = [f'{{"class": {_name(label)}, "probability": {share}}}' for label, share in prediction.ranking[:top]]
    labels = "" if prediction.labels is None else f'"labels": [{", ".join(map(_name, prediction.labels))}], '
    scored = f'"score": {prediction.probability_of(score)}, ' if score else ""
    more = "" if explanation is None else f', "explanation": {json_line(explained(explanation))}'
    return (
        f'{{{labels}"class": {"null" if prediction.rejected else _name(prediction.label)}, '
        f'"probability": {prediction.probability}, {scored}"entropy": {round(prediction.entropy, DIGITS)}, '
        f'"margin": {round(prediction.margin, DIGITS)}, "top": [{", ".join(shares)}], '
        f'"read": {prediction.read}, "characters_cut": {prediction.characters_cut}{more}}}'
    )


def explained(explanation: Explanation) -> dict[str, Any]:
    """Convert an explanation to JSON-able data; positions count the code points of the text."""
    return {
        "class": explanation.label,
        "cut": [explanation.truncated.start, explanation.truncated.stop],
        "words": [
            {"text": word.text, "start": word.start, "stop": word.stop, "score": round(word.score, SCORE_DIGITS)}
            for word in explanation.words
        ],
        "characters": [round(score, SCORE_DIGITS) for score in explanation.scores],
    }


def json_line(record: Any) -> str:
    """Encode a record or a text as one line of JSON; escape only the characters that a terminal would act on."""
    line = _encoded(record)
    if line.isprintable():
        return line
    return "".join(
        character if escape_character(character) == character else json.dumps(character)[1:-1] for character in line
    )


_name = cache(json_line)  # of a class
