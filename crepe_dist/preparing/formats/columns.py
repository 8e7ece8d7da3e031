"""Detection of headers and choice of the columns of label and text."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from crepe_dist.data.composition import SEPARATOR, join
from crepe_dist.errors import UserError
from crepe_dist.preparing.formats import Row
from crepe_dist.preparing.labelling import cell_of

LABELS = (
    "label", "class", "category", "target", "sentiment", "class index", "labels", "classes", "topic", "y",
    "stars", "rating",
)  # fmt: skip
TEXTS = (
    "text", "content", "review", "reviewtext", "review text", "review body", "body", "sentence", "document",
    "description", "message", "tweet", "comment",
)  # fmt: skip
# Row numbers, as pandas and others write them: neither label nor text.
INDICES = re.compile(r"(id|index|unnamed: \d+|  index level \d+  |)")
DATE = re.compile(r"(\d{4}([-/.])\d\d?\2\d\d?|\d\d?([-/.])\d\d?\3(\d{4}|\d\d))([T ,][\d\s:.,+-]*[A-Za-z.]{0,5})?$")
MOST = 0.9  # share of the values that decides what a column is
DISTINCT = 40  # rows that are needed to say that all differ
TITLES = ("title", "headline", "subject", "summary", "review title", "review headline")


@dataclass(frozen=True)
class Wanted:
    """Columns given by the user, by name or by number from 1; ``None``, or no texts, to detect them."""

    label: str | None = None
    title: str | None = None  # joined before the texts
    texts: tuple[str, ...] = ()  # joined in this order
    weight: str | None = None  # never detected
    labels: tuple[str, ...] = ()  # one for each class, in place of a column of labels; never detected
    id: str | None = None  # never detected
    needs_id: bool = True  # else ``id`` may be missing
    needs_label: bool = True  # else ``label`` may be missing, and is detected then
    remembered: tuple[str, ...] = ()  # names of the texts that a model was trained on; used if a file has one of them
    like: Columns | None = None  # columns of another file, for one whose columns have no names

    @property
    def names(self) -> list[str]:
        """All given columns."""
        given = (self.label, self.title, *self.texts, self.weight, self.id, *self.labels, *self.remembered)
        return [name for name in given if name is not None]


@dataclass(frozen=True)
class Columns:
    """Columns of a file, by name, and the positions of those that are read.

    Attributes:
        label: ``None`` if the file name gives the class, or columns of classes do.
        texts: columns that make up the text, in this order.
        weight: ``None`` if rows have no weights.
        labels: columns of the classes.
        id: ``None`` if rows have no ids.
        ignored: column of the label of rows that are read without it.
    """

    names: tuple[str, ...]
    label: int | None
    texts: tuple[int, ...]
    weight: int | None = None
    labels: tuple[int, ...] = ()
    id: int | None = None
    ignored: int | None = None

    @property
    def used(self) -> list[int]:
        """Positions of all columns that are read."""
        positions = (self.label, *self.labels, *self.texts, self.id, self.weight)
        return [i for i in positions if i is not None]

    def named(self, positions: Sequence[int]) -> tuple[str, ...]:
        """Return the names of columns."""
        return tuple(self.names[i] for i in positions)

    def moved(self, positions: Sequence[int]) -> Columns:
        """Describe the same columns in a table of those at these positions alone."""
        to: dict[int | None, int | None] = {position: i for i, position in enumerate(positions)}
        texts, labels = (tuple(positions.index(i) for i in columns) for columns in (self.texts, self.labels))
        return Columns(self.named(positions), to.get(self.label), texts, to.get(self.weight), labels, to.get(self.id))

    def describe(self) -> str:
        """Describe the columns read, for the report."""
        label = "" if self.label is None else f"label: {self.names[self.label]}, "
        label += f"labels: {', '.join(self.named(self.labels))}, " if self.labels else ""
        pairs = (("weight", self.weight), ("id", self.id), ("ignored", self.ignored))
        others = [(what, i) for what, i in pairs if i is not None]
        more = "".join(f", {what}: {self.names[i]}" for what, i in others)
        return f"{label}text: {SEPARATOR.join(self.named(self.texts))}{more}"

    def row(self, line: int, values: Sequence[str], given: str | None, cells: tuple[str, ...]) -> Row:
        """Make a row of the values of all columns; ``given`` is the class of all rows, if the file name gives it."""
        label = given if self.label is None else values[self.label]
        if self.labels:
            label = cell_of(self.named(self.labels), [values[i] for i in self.labels])
        weight = None if self.weight is None else values[self.weight]
        id_ = "" if self.id is None else values[self.id]
        return Row(line, label or "", join([values[i] for i in self.texts]), cells, weight, id_)


def is_header(rows: Sequence[Sequence[str]], wanted: Wanted) -> bool:
    """Tell whether the first row is a header, which names a wanted column or has a usual name of a label or text.

    A word that occurs again in its column does not count, because a class may be called "review".
    """
    if not rows:
        return False
    cells, *others = rows
    if any(name in cells for name in wanted.names if not name.isdecimal()):
        return True
    return any(
        _plain(cell) in LABELS + TEXTS and all(cell != row[i] for row in others if i < len(row))
        for i, cell in enumerate(cells)
    )


def may_be_header(rows: Sequence[Sequence[str]]) -> bool:
    """Tell whether the first row differs so much from the others that the user should decide if it is a header.

    It differs if a cell is empty where all others are not, if a cell is a word where the others are numbers, or if its
    label is unique where every other label occurs again.
    """
    cells, *others = rows
    if len(others) < 3:
        return False
    for i, cell in enumerate(cells):
        below = [row[i] for row in others if i < len(row)]
        numbers = sum(_is_number(value) for value in below)
        if not cell.strip() and all(value.strip() for value in below):
            return True
        if cell.strip() and not _is_number(cell) and numbers > 0.9 * len(others):
            return True
    count = Counter(row[0] for row in others if row)
    return cells[0] not in count and min(count.values()) > 1 and len(count) <= len(others) / 3


def _is_number(text: str) -> bool:
    """Tell whether a text is a number, or a date or time in digits."""
    return bool(text.strip()) and not text.strip().strip("0123456789+-.,:/ T")


def choose_named(
    file: str,
    names: Sequence[str],
    wanted: Wanted,
    *,
    label_given: bool,
    rows: Sequence[Sequence[str]] = (),
) -> Columns:
    """Choose among named columns.

    Args:
        label_given: no label is needed. A column that looks like one is ignored, unless there is no other for the text.
        rows: first rows, in which dates are no labels.

    Raises:
        UserError: A column does not exist or cannot be guessed; the message lists the columns.
    """
    if not wanted.texts and wanted.title is None and not set(wanted.remembered).isdisjoint(names):
        if missing := [name for name in wanted.remembered if name not in names]:
            raise UserError(
                f"{file} has no column {missing[0]!r}",
                f"the model was trained on {SEPARATOR.join(wanted.remembered)}; it has {', '.join(names)}"[:500],
                "add that column, which may be empty, or name the columns to read with --text-column",
            )
        wanted = replace(wanted, texts=wanted.remembered)
    texts = [_position(file, names, "text", name) for name in wanted.texts]
    places: dict[str, int | None] = {f"text {number}": place for number, place in enumerate(texts[1:], start=2)}
    usual = {"label": LABELS, "text": TEXTS, "title": () if texts else TITLES}
    places["weight"] = None if wanted.weight is None else _position(file, names, "weight", wanted.weight)
    has_id = wanted.id is not None and (wanted.needs_id or wanted.id in names)
    places["id"] = _position(file, names, "id", str(wanted.id)) if has_id else None
    if wanted.label not in names and not wanted.needs_label:
        wanted = replace(wanted, label=None)
    places |= {f"class {name}": _position(file, names, "label-columns", name) for name in wanted.labels}
    label_given = label_given or bool(wanted.labels)
    for what, given in (("label", wanted.label), ("text", next(iter(wanted.texts), None)), ("title", wanted.title)):
        if what == "label" and (wanted.labels or (label_given and given is not None and given not in names)):
            places[what] = None
        elif given is not None:
            places[what] = _position(file, names, what, given)
        else:
            usual_places = [i for name in usual[what] for i, each in enumerate(names) if _plain(each) == name]
            places[what] = next((i for i in usual_places if i not in places.values()), None)
    # A column without a usual name can be chosen if it is the only one left.
    for what in ("text",) if label_given else ("label", "text"):
        if places[what] is None:
            free = [
                i for i, name in enumerate(names) if not INDICES.fullmatch(_plain(name)) and not _are_dates(i, rows)
            ]
            left = [i for i in free if i not in places.values()]
            if label_given and not left:
                places["label"] = None
                left = [i for i in free if i not in places.values()]
            if what == "label":
                left = [i for i in left if not _are_distinct(i, rows)]
            if len(left) != 1:
                taken = [f"{other} is {names[i]!r:.60}" for other, i in places.items() if i is not None]
                raise UserError(
                    f"{file}: which column is the {what}?",
                    "; ".join([f"the columns are {', '.join(names)}"[:500], *taken]),
                    f"give its name or its number from 1 to {len(names)} with {_flag(what)}",
                )
            places[what] = left[0]
    joined = tuple(i for i in (places["title"], places["text"], *texts[1:]) if i is not None)
    labels = tuple(_position(file, names, "label-columns", name) for name in wanted.labels)
    label, ignored = (None, places["label"]) if label_given else (places["label"], None)
    ignored = None if ignored in joined else ignored
    return _distinct(file, Columns(tuple(names), label, joined, places["weight"], labels, places["id"], ignored))


def _are_dates(place: int, rows: Sequence[Sequence[str]]) -> bool:
    """Tell whether a column has dates or times, which are no labels unless the user says so."""
    values = [row[place].strip() for row in rows if place < len(row) and row[place].strip()]
    return bool(values) and sum(DATE.match(value) is not None for value in values) > MOST * len(values)


def _are_distinct(place: int, rows: Sequence[Sequence[str]]) -> bool:
    """Tell whether nearly all values of a column differ, as those of labels do not."""
    values = [row[place] for row in rows if place < len(row)]
    return len(values) >= DISTINCT and len(set(values)) > MOST * len(values)


def _position(file: str, names: Sequence[str], what: str, column: str) -> int:
    if column in names:
        return list(names).index(column)
    if _is_place(column, len(names)):
        return int(column) - 1
    alike = [name for name in names if _plain(name) == _plain(column)] or difflib.get_close_matches(column, names, 1)
    raise UserError(
        f"{file} has no column {column!r}",
        f"it has {', '.join(names)}"[:500],
        (f"did you mean {alike[0]!r:.60}? Or " if alike else "")
        + f"give a name or a number from 1 to {len(names)} with {_flag(what)}; --header yes reads names",
    )


def choose_numbered(
    file: str, width: int, wanted: Wanted, *, label_given: bool, rows: Sequence[Sequence[str]] = ()
) -> Columns:
    """Choose the columns of a table without header. By default the first is the label and all others are text.

    Raises:
        UserError: A given column is not a number from 1 to ``width``, or the text column is ambiguous.
    """

    names = tuple(f"column {number}" for number in range(1, width + 1))
    position = partial(_position, file, names)
    if label_given and wanted.like is not None and width == len(wanted.like.names):
        return replace(wanted.like, names=names, label=None, weight=None, labels=(), ignored=wanted.like.label)
    if label_given and wanted.like is not None and width == len(wanted.like.texts):
        return Columns(names, None, tuple(range(width)))
    label_given = label_given or bool(wanted.labels)
    if width == 1 and not label_given:
        raise UserError(f"{file} has only one column", remedy="check the columns, or give another --input-format")
    if not label_given and wanted.label is None and _are_dates(0, rows):
        raise UserError(
            f"{file}: which column is the label?",
            "no header was found, and the first column has dates",
            f"give a number from 1 to {width} with --label",
        )
    labels = tuple(position("label-columns", name) for name in wanted.labels)
    label = None if label_given else position("label", wanted.label if wanted.label and wanted.needs_label else "1")
    weight = None if wanted.weight is None else position("weight", wanted.weight)
    has_id = wanted.id is not None and (wanted.needs_id or _is_place(wanted.id, width))
    id_ = position("id", str(wanted.id)) if has_id else None
    others = [i for i in (weight, id_) if i is not None]
    if not wanted.texts and wanted.title is None:
        if label_given and width - len(others) - len(labels) > 1:
            raise UserError(
                f"{file}: which column is the text?",
                f"it has {width} columns and no header was found",
                f"give a number from 1 to {width} with --text-column, or --header yes if the first line names them",
            )
        texts = tuple(i for i in range(width) if i not in (label, *others, *labels))
        return Columns(names, label, texts, weight, labels, id_)
    named = [("title", wanted.title), *(("text", name) for name in wanted.texts)]
    texts = tuple(position(what, given) for what, given in named if given is not None)
    return _distinct(file, Columns(names, label, texts, weight, labels, id_))


def _distinct(file: str, chosen: Columns) -> Columns:
    """Refuse a column that is chosen twice; only an id may be read as a text, too."""
    count = Counter((chosen.label, chosen.weight, *chosen.labels, *chosen.texts))
    twice = next((place + 1 for place, times in count.items() if place is not None and times > 1), None)
    if twice is not None:
        remedy = "name another column, such as the text with --text-column"
        raise UserError(f"{file}: column {twice} would be read twice", remedy=remedy)
    return chosen


def _flag(what: str) -> str:
    # `predict` has these columns too, and its --text is a text to classify.
    return f"--{what}" if what in ("label", "label-columns", "id") else f"--{what}-column"


def _is_place(column: str, width: int) -> bool:
    return column.isdecimal() and len(column) < 10 and 1 <= int(column) <= width


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", " ")
