"""Answers of a teacher: probabilities of the classes for rows of a data set, read from JSON Lines.

Each line has the probabilities in ``labels`` (``{"World": 0.8, "Sports": 0.2}``), ``label`` (one class) or ``top``, as
``crepe predict --format jsonl`` prints them, and one of these keys of a row, the first
that it has:

``text``  the text as in the source, or each of its columns by its name; found by the hash that every row keeps
``id``    value of the column that ``prepare --id`` names
``line``  line in the source, with ``file`` if there are several sources

Several answers for a row are averaged, so that a committee is its members' answers one after the other.
"""

from __future__ import annotations

import difflib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data import origins
from crepe_dist.data.composition import join
from crepe_dist.data.dataset import Dataset, Documents
from crepe_dist.data.targets import MOST_LABELS, SEVERAL, SHARE_UNIT, SOFT, Pairs, Targets
from crepe_dist.errors import UserError
from crepe_dist.files import finite, integer, json_lines, printable
from crepe_dist.wording import counted, number

LONGEST_LINE = 1 << 22  # bytes; a text may have 1 MiB, which JSON may escape
TOLERANCE = 0.01  # most difference of a sum of probabilities from 1, which are often rounded
PIECE = 1 << 14  # answers, or rows, that are looked up or converted together
KEYS = ("text", "id", "line")
EXAMPLE = 'write one object per line, such as {"text": "…", "labels": {"World": 0.8, "Sports": 0.2}}'
LINE_BITS = 40
Numbers = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Answers:
    """Answers of a teacher for the unlabelled texts of a data set.

    Attributes:
        rows: texts that have an answer, ascending, int64 [n].
        targets: the answers of these texts: soft labels, or the probability of each class where rows have several.
        unmatched: number of answers that are for no text.
        unanswered: number of lines without probabilities, such as those of texts that could not be classified.
    """

    rows: Numbers
    targets: Targets
    unmatched: int
    unanswered: int

    def describe(self, texts: int) -> str:
        """Say how many of the texts have answers, and how many answers were of no use."""
        more = [f"{counted(self.unmatched, 'answer matches', 'answers match')} no text"] * bool(self.unmatched)
        more += [f"{counted(self.unanswered, 'line has', 'lines have')} no answer"] * bool(self.unanswered)
        return "; ".join([f"answers for {number(len(self.rows))} of {number(texts)} unlabelled texts", *more])


def read_answers(path: Path, dataset: Dataset) -> Answers:
    """Read the answers for the unlabelled texts of a data set.

    Raises:
        UserError: the file cannot be read, names a class that the data do not have, has probabilities that cannot be,
            or no answer is for one of these texts.
    """
    assert dataset.unlabelled is not None
    unmatched = unanswered = 0
    first = ""
    lines, texts = _Lines(dataset), _Texts(dataset.unlabelled, len(dataset.classes), dataset.labelled == SEVERAL)
    for records in _pieces(path):
        answered = [(number, record) for number, record in records if lines.has_answer(record)]
        unanswered += len(records) - len(answered)
        answers = [lines.answer(path, number, record) for number, record in answered]
        is_matched = np.zeros(len(answers), np.bool_)
        for kind in KEYS:
            chosen = [index for index, (key, _, _) in enumerate(answers) if key == kind]
            if chosen:
                values = [answers[index][1] for index in chosen]
                shares = [answers[index][2] for index in chosen]
                is_matched[np.array(chosen)[texts.take(kind, values, shares)]] = True
        unmatched += int((~is_matched).sum())
        if not is_matched.all() and not first:
            where, record = answered[int((~is_matched).argmax())]
            first = f"{printable(path.name)}:{where}, {json.dumps(record, ensure_ascii=False)}"[:300]
    rows, targets = texts.answers()
    if not len(rows):
        name = printable(path.name)
        if not first:
            raise UserError(
                f"{name} has no answers", "no line has labels, a label or top" if unanswered else "it is empty", EXAMPLE
            )
        raise UserError(
            f"no answer of {name} is for a text of {dataset.folder}",
            f"the first: {first}",
            f"give each answer the text as in the source{_columns(dataset)}, or its id or line there",
        )
    return Answers(rows, targets, unmatched, unanswered)


def _columns(dataset: Dataset) -> str:
    columns = dataset.composition.columns
    return f" (the columns {', '.join(columns)})" if len(columns) > 1 else ""


def _pieces(path: Path) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """Yield the records of a file, some at a time, with the numbers of their lines."""
    piece: list[tuple[int, dict[str, Any]]] = []
    try:
        for line, record in enumerate(json_lines(path, LONGEST_LINE), start=1):
            if not isinstance(record, dict):
                raise ValueError(f"{path}, line {line}: not a JSON object")
            piece.append((line, record))
            if len(piece) == PIECE:
                yield piece
                piece = []
    except (OSError, ValueError) as error:
        raise UserError(
            f"the answers in {printable(path)} cannot be read",
            getattr(error, "strerror", None) or str(error)[:300],
            EXAMPLE,
        ) from error
    if piece:
        yield piece


Shares = list[tuple[int, float]]  # classes and their probabilities


class _Lines:
    """Reader of single answers."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._number = {name: index for index, name in enumerate(dataset.classes)}
        self._several = dataset.labelled == SEVERAL
        self._columns = dataset.composition.columns or ("text",)
        self._sources = {source["file"]: index for index, source in enumerate(dataset.manifest["sources"])}
        assert dataset.unlabelled is not None
        self._own = np.unique(dataset.unlabelled.origins[:, 0]).tolist()

    @staticmethod
    def has_answer(record: dict[str, Any]) -> bool:
        """Tell whether a record has probabilities, unlike that of a text which could not be classified."""
        return bool(record.get("top")) or record.get("labels") is not None or record.get("label") not in (None, "")

    def answer(self, path: Path, line: int, record: dict[str, Any]) -> tuple[str, Any, Shares]:
        """Return by what the row of an answer is found, that value, and the probabilities."""
        try:
            key, value = self._key(record)
            return key, value, self._shares(record)
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"the answer in {printable(path)}:{line} cannot be used",
                str(error),
                f"correct it; the classes are {', '.join(self._number)}"[:300],
            ) from error

    def _key(self, record: dict[str, Any]) -> tuple[str, Any]:
        columns = [record.get(name) for name in self._columns]
        if "text" in record and not isinstance(record["text"], str):
            raise ValueError("its text is not a string")
        given = all(isinstance(value, str) for value in columns)
        if given or "text" in record:
            text = join([str(value) for value in columns]) if given else str(record["text"])
            return "text", self._dataset.composition.text(text).encode("utf-8", "surrogatepass")
        has_ids = self._dataset.manifest.get("id") is not None
        if has_ids and isinstance(record.get("id"), (str, int)) and record["id"] != "":
            return "id", str(record["id"]).encode()
        if "line" in record:
            line = integer(record["line"], 0, (1 << LINE_BITS) - 1, "its line")
            if "file" not in record and len(self._own) != 1:
                raise ValueError("it has a line, but no file, and the unlabelled texts are of several")
            if record.get("file", "") not in self._sources and "file" in record:
                raise ValueError(f"the data have no source {str(record['file'])!r:.60}")
            return "line", int(_place(self._sources[record["file"]] if "file" in record else self._own[0], line))
        raise ValueError(f"it has none of the keys {', '.join(KEYS)}, so it is not known for which text it is")

    def _shares(self, record: dict[str, Any]) -> Shares:
        labels = record.get("labels")
        if record.get("top"):
            given = {each["class"]: each["probability"] for each in record["top"]}
        elif isinstance(labels, dict):
            given = labels
        elif labels is None or isinstance(labels, list):
            given = dict.fromkeys([record["label"]] if labels is None else labels, 1)
        else:
            raise ValueError(f"its labels are {str(labels)!r:.60}, neither an object nor a list")
        shares = []
        for name, value in given.items():
            if name not in self._number:
                alike = [each for each in self._number if each.casefold() == str(name).casefold()]
                alike = alike or difflib.get_close_matches(str(name), self._number, 1)
                hint = f"; did you mean {alike[0]!r:.60}?" if alike else ""
                raise ValueError(f"the data have no class {str(name)!r:.60}{hint}")
            shares.append((self._number[name], finite(value, 0, 1 + TOLERANCE, f"the probability of {name!r:.60}")))
        total = sum(share for _, share in shares)
        if not self._several and abs(total - 1) > TOLERANCE:
            top = ": crepe predict prints those of all classes with --top" if record.get("top") else ""
            raise ValueError(f"the probabilities sum to {total:.4g}, not to 1{top}")
        if len(shares) > MOST_LABELS:
            raise ValueError(f"more than {MOST_LABELS:,} classes")
        return shares


class _Texts:
    """Unlabelled texts, found by their keys, and the answers for them so far."""

    def __init__(self, documents: Documents, classes: int, several: bool) -> None:
        self._documents = documents
        self._size = classes
        self._several = several
        self._keys: dict[str, tuple[Keys, Numbers]] = {}
        self._answered = array("q")  # a row for each answer
        self._rows, self._classes, self._shares = array("q"), array("H"), array("d")

    def take(self, kind: str, values: Sequence[Any], shares: Sequence[Shares]) -> Numbers:
        """Take the answers for these texts; return which of them were, int64 [taken]."""
        wanted = origins.hashes(values) if kind != "line" else np.array(values, np.uint64)
        keys, rows = self._sorted(kind)
        start, end = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
        for index in np.flatnonzero(end > start).tolist():
            for row in rows[start[index] : end[index]].tolist():  # several rows may have the same id
                self._answered.append(row)
                for label, share in shares[index]:
                    self._rows.append(row)
                    self._classes.append(label)
                    self._shares.append(share)
        return np.flatnonzero(end > start)

    def _sorted(self, kind: str) -> tuple[Keys, Numbers]:
        """Return the keys of all rows, sorted, and their rows."""
        if kind not in self._keys:
            part = self._documents
            if kind == "text":
                keys = np.array(part.origins[:, origins.HASH])
            elif kind == "line":
                keys = _place(part.origins[:, 0], part.origins[:, 1])
            else:
                keys = np.concatenate([origins.hashes(ids) for ids in part.ids()])
            order = np.argsort(keys, kind="stable")
            self._keys[kind] = keys[order], order
        return self._keys[kind]

    def answers(self) -> tuple[Numbers, Targets]:
        """Average the answers of each row; return the rows, and their targets."""
        size = self._size
        answered, times = np.unique(np.array(self._answered, np.int64), return_counts=True)
        # The probabilities of a row and class are added in the order of the answers.
        keys = np.array(self._rows, np.int64) * size + np.array(self._classes, np.int64)
        pair, place = np.unique(keys, return_inverse=True)
        total = np.bincount(place, np.array(self._shares, np.float64), len(pair))
        first = np.searchsorted(pair, answered * size)
        count = np.searchsorted(pair, (answered + 1) * size) - first
        pairs: Pairs = np.zeros((len(answered), int(count.max(initial=1)), 2), np.uint16)
        columns = np.arange(pairs.shape[1])
        for begin in range(0, len(answered), PIECE):
            chunk = slice(begin, begin + PIECE)
            is_given = columns < count[chunk, None]
            at = np.where(is_given, first[chunk, None] + columns, 0)
            shares = np.where(is_given, total[at], 0.0)
            pairs[chunk, :, 0] = np.where(is_given, pair[at] % size, 0)
            if self._several:
                pairs[chunk, :, 1] = np.rint(np.minimum(shares / times[chunk, None], 1) * SHARE_UNIT)
            else:
                pairs[chunk, :, 1] = _whole(shares / shares.sum(axis=1, keepdims=True))
        return answered, Targets(SEVERAL if self._several else SOFT, pairs, size)


def _place(file: Any, line: Any) -> Any:
    return (np.asarray(file, np.uint64) << np.uint64(LINE_BITS)) + np.asarray(line, np.uint64)


def _whole(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Round shares to units of 1 / ``SHARE_UNIT``, whose sum in a row is exact, by largest remainders."""
    units = np.floor(shares * SHARE_UNIT).astype(np.int64)
    order = np.argsort(units - shares * SHARE_UNIT, axis=1, kind="stable")
    missing = SHARE_UNIT - units.sum(axis=1, keepdims=True)
    more = np.zeros_like(units)
    np.put_along_axis(more, order, (np.arange(units.shape[1]) < missing).astype(np.int64), axis=1)
    return np.asarray(units + more)
