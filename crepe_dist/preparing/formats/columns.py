"""Which columns hold the label and the text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from crepe_dist.errors import UserError

LABELS = (
    "label", "class", "category", "target", "sentiment", "class index", "labels", "classes", "topic", "y",
    "stars", "rating",
)  # fmt: skip
TEXTS = (
    "text", "content", "review", "reviewtext", "review text", "review body", "body", "sentence", "document",
    "description", "message", "tweet", "comment",
)  # fmt: skip
# Never label or text: numbers of rows, as pandas and others write them.
INDICES = re.compile(r"(id|index|unnamed: \d+|  index level \d+  |)")
TITLES = ("title", "headline", "subject", "summary", "review title", "review headline")


@dataclass(frozen=True)
class Wanted:
    """Names (or numbers from 1, where there is no header) that the user gave; ``None``: to be found."""

    label: str | None = None
    title: str | None = None
    text: str | None = None

    @property
    def names(self) -> list[str]:
        return [name for name in (self.label, self.title, self.text) if name is not None]


@dataclass(frozen=True)
class Chosen:
    """Positions of the columns; ``label`` is ``None`` where the file itself tells the class."""

    label: int | None
    texts: tuple[int, ...]

    def describe(self, names: Sequence[str]) -> str:
        """What is read, for the report."""
        text = " | ".join(names[i] for i in self.texts)
        return f"text: {text}" if self.label is None else f"label: {names[self.label]}, text: {text}"


def is_header(rows: Sequence[Sequence[str]], wanted: Wanted) -> bool:
    """Whether the first of some rows names columns: wanted ones, or the usual names of a label or a text.

    A word that stands in the same column again is no header: a class may be called "review".
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
    """Whether the first row looks unlike the others, so that it is better to ask than to take it for data: an empty
    cell or a word where all others have numbers or more, or a label of its own where every other label comes again."""
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
    """A number, or a date or time written with digits."""
    return bool(text.strip()) and not text.strip().strip("0123456789+-.,:/ T")


def choose_named(file: str, names: Sequence[str], wanted: Wanted, *, label_given: bool) -> Chosen:
    """Columns by name, of a header or of a table.

    Args:
        label_given: the file's name is the class, so no column is needed.

    Raises:
        UserError: a column is not there, or cannot be guessed; it lists those that are there.
    """
    places: dict[str, int | None] = {}
    usual = {"label": LABELS, "text": TEXTS, "title": TITLES if wanted.text is None else ()}
    for what, given in (("label", wanted.label), ("text", wanted.text), ("title", wanted.title)):
        if what == "label" and label_given:
            places[what] = None
        elif given is not None:
            places[what] = _position(file, names, what, given)
        else:
            found = [i for name in usual[what] for i, each in enumerate(names) if _plain(each) == name]
            places[what] = next((i for i in found if i not in places.values()), None)
    # What has no usual name is the one column that is left, if there is one.
    for what in ("text",) if label_given else ("label", "text"):
        if places[what] is None:
            left = [
                i for i, name in enumerate(names) if i not in places.values() and not INDICES.fullmatch(_plain(name))
            ]
            if len(left) != 1:
                if len(names) == 1 and not label_given:
                    raise _one_column(file)
                taken = [f"{other} is {names[i]!r:.60}" for other, i in places.items() if i is not None]
                raise UserError(
                    f"{file}: which column is the {what}?",
                    "; ".join([f"there are {', '.join(names)}"[:500], *taken]),
                    f"name it by --{what}-column, or give its number, from 1 to {len(names)}",
                )
            places[what] = left[0]
    return Chosen(places["label"], tuple(i for i in (places["title"], places["text"]) if i is not None))


def _position(file: str, names: Sequence[str], what: str, given: str) -> int:
    if given in names:
        return list(names).index(given)
    if _is_place(given, len(names)):
        return int(given) - 1
    raise UserError(
        f"{file} has no column {given!r}",
        f"it has {', '.join(names)}"[:500],
        f"name one by --{what}-column, or give its number, from 1 to {len(names)}",
    )


def _one_column(file: str) -> UserError:
    return UserError(
        f"{file} has one column", "a label and a text are needed", "is it another --format than was taken?"
    )


def choose_numbered(file: str, width: int, wanted: Wanted, *, label_given: bool) -> Chosen:
    """Columns of a table without header: the label first, all others are text, unless numbers from 1 are given.

    Raises:
        UserError: a given column is not a number up to ``width``; of several columns without a label any may be the
            text.
    """

    def position(what: str, given: str) -> int:
        if not _is_place(given, width):
            raise UserError(
                f"{file} has no column {given!r}",
                f"it has {width} columns and no header was seen",
                f"--{what}-column takes a number from 1 to {width}; --header yes says that the first line names them",
            )
        return int(given) - 1

    if width == 1 and not label_given:
        raise _one_column(file)
    label = None if label_given else position("label", wanted.label or "1")
    if wanted.text is None and wanted.title is None:
        if label_given and width > 1:
            raise UserError(
                f"{file}: which column is the text?",
                f"it has {width} columns and no header was seen",
                f"--text-column, a number from 1 to {width}; or --header yes if the first line names the columns",
            )
        return Chosen(label, tuple(i for i in range(width) if i != label))
    named = [("title", wanted.title), ("text", wanted.text)]
    return Chosen(label, tuple(position(what, given) for what, given in named if given is not None))


def _is_place(given: str, width: int) -> bool:
    return given.isdecimal() and len(given) < 10 and 1 <= int(given) <= width


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", " ")
