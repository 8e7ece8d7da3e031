"""One line a row: the answers as text, JSON Lines or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from crepe_dist.errors import shown, visible
from crepe_dist.predicting.inputs import Input
from crepe_dist.predicting.occlusion import Explanation
from crepe_dist.predicting.prediction import Prediction

STYLES = ("text", "jsonl", "csv")
SHOWN = {"text": 5, "jsonl": 5, "csv": 1}  # classes, unless another number is wanted
DIGITS = 4  # of scores


class Answers:
    """Answers as text.

    Args:
        top: classes that are told.
        columns: names of the inputs' cells.
    """

    def __init__(self, top: int, columns: Sequence[str]) -> None:
        self.top = top
        self.columns = columns

    @property
    def header(self) -> str:
        """What stands above all answers, with its line end."""
        return ""

    def line(self, row: Input, prediction: Prediction | None, explanation: Explanation | None = None) -> str:
        """The answer to a row, without a line end; ``None`` for one that could not be classified."""
        if prediction is None:
            return f"not classified: line {row.line}: {_on_a_line(row.problem)}"
        ranking = prediction.ranking[: self.top]
        return "   ".join(f"{_on_a_line(label)} {probability:.1%}" for label, probability in ranking)


class JsonAnswers(Answers):
    """An object a row; an explanation becomes a part of it."""

    def line(self, row: Input, prediction: Prediction | None, explanation: Explanation | None = None) -> str:
        record: dict[str, Any] = {"line": row.line}
        if prediction is None:
            return json_line({**record, "class": None, "probability": None, "top": [], "problem": row.problem})
        record |= prediction.record(self.top)
        if explanation is not None:
            record["explanation"] = explained(explanation)
        return json_line(record)


class CsvAnswers(Answers):
    """The row's own columns, then the class and its probability, and why a row has none."""

    @property
    def header(self) -> str:
        names = list(self.columns)
        for place in range(1, self.top + 1):
            number = "" if place == 1 else f"_{place}"
            names += [f"predicted_class{number}", f"predicted_probability{number}"]
        return f"{_csv([*names, 'problem'])}\n"

    def line(self, row: Input, prediction: Prediction | None, explanation: Explanation | None = None) -> str:
        cells = list(row.cells) or [""] * len(self.columns)
        if prediction is None:
            return _csv([*cells, *[""] * (2 * self.top), f"line {row.line}: {row.problem}"])
        for name, probability in prediction.ranking[: self.top]:
            cells += [name, f"{probability:.6f}"]
        return _csv([*cells, ""])


def answers(style: str, top: int | None, columns: Sequence[str], classes: int) -> Answers:
    """The answers in one of ``STYLES``.

    Args:
        top: classes that are told; ``None``: five, in CSV one.
        classes: how many there are.
    """
    kind = {"text": Answers, "jsonl": JsonAnswers, "csv": CsvAnswers}[style]
    return kind(min(top or SHOWN[style], classes), columns)


def explained(explanation: Explanation) -> dict[str, Any]:
    """An explanation as JSON: positions count Unicode's code points of the text."""
    return {
        "class": explanation.label,
        "read": [explanation.start, explanation.stop],
        "words": [
            {"text": word.text, "start": word.start, "stop": word.stop, "score": round(word.score, DIGITS)}
            for word in explanation.words
        ],
        "characters": [round(score, DIGITS) for score in explanation.scores],
    }


def json_line(record: dict[str, Any]) -> str:
    """One line of JSON, in letters where a terminal shows them, escaped where it would act on them."""
    line = json.dumps(record, ensure_ascii=False)
    if line.isprintable():
        return line
    return "".join(character if shown(character) == character else json.dumps(character)[1:-1] for character in line)


def _csv(cells: Iterable[str]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\r\n").writerow(cells)  # both must be quoted where they stand in a cell
    return stream.getvalue().removesuffix("\r\n")


def _on_a_line(text: str) -> str:
    return visible(text) if "\n" not in text else "".join(map(shown, text))
