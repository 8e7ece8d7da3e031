"""Detection of headers, and choice of the columns for the label and the text."""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from crepe_dist.data.text_preprocessing import SEPARATOR, join_columns, parse_number
from crepe_dist.errors import UserError
from crepe_dist.preparing.formats import FIELD_SEPARATOR, Row
from crepe_dist.preparing.label_parsing import labels_to_cell

# Common names of the label column, of the text column, and of a title column that is joined before the text. Names at
# the front have priority.
LABEL_NAMES = (
    "label", "class", "category", "target", "sentiment", "class index", "labels", "classes", "topic", "y",
    "stars", "rating",
)  # fmt: skip
TEXT_NAMES = (
    "text", "content", "review", "reviewtext", "review text", "review body", "body", "sentence", "document",
    "description", "message", "tweet", "comment",
)  # fmt: skip
TITLE_NAMES = ("title", "headline", "subject", "summary", "review title", "review headline")
# Names of columns with row numbers, as pandas and other programs write them. They are never the label or the text.
INDEX_NAMES = re.compile(r"(id|index|unnamed: \d+|  index level \d+  |)")
# A date, which may be followed by a time.
DATE = re.compile(r"(\d{4}([-/.])\d\d?\2\d\d?|\d\d?([-/.])\d\d?\3(\d{4}|\d\d))([T ,][\d\s:.,+-]*[A-Za-z.]{0,5})?$")
# Maximum number of rows above a header.
MAX_TITLE_ROWS = 10
# A column has a property, such as being numeric, if more than this fraction of its values have the property.
MIN_PROPORTION = 0.9
# Minimum number of rows needed to decide that nearly all values of a column differ.
MIN_ROWS_TO_COMPARE = 40
# Maximum number of distinct values in a categorical column.
MAX_CATEGORIES = 20
# Argument of ``str.translate`` that removes the characters between the digits of numbers, dates and times.
NUMBER_SIGNS = dict.fromkeys(map(ord, " +-.,:/%€$£¥T"))


@dataclass(frozen=True)
class ColumnSpec:
    """Columns that the user specified, by name or by number. Column numbers are counted from 1.

    Attributes:
        label: Label column. If it is ``None``, the column is detected.
        texts: Text columns, which are joined in this order. If there are none, the columns are detected.
        weight: Weight column; ``None`` if there are no weights. It is never detected.
        labels: Class columns, which replace ``label``. They are never detected.
        id: Id column; ``None`` if there are no ids. It is never detected.
        id_required: False if the column ``id`` may be missing.
        needs_label: False if the column ``label`` may be missing. If it is missing, the label column is detected.
        preferred_texts: Names of the text columns that a model was trained on. They are used if the file has at least
            one of these columns.
        reference_columns: Columns of another file. They are used for a file whose columns have no names.
        groups: Group columns. Rows that share a value stay in one split. They are never detected.
        groups_required: False if the columns ``groups`` may be missing.
    """

    label: str | None = None
    texts: tuple[str, ...] = ()
    weight: str | None = None
    labels: tuple[str, ...] = ()
    id: str | None = None
    id_required: bool = True
    needs_label: bool = True
    preferred_texts: tuple[str, ...] = ()
    reference_columns: "ResolvedColumns | None" = None
    groups: tuple[str, ...] = ()
    groups_required: bool = True

    @property
    def names(self) -> list[str]:
        """All specified columns, including ``preferred_texts``."""
        columns = (
            self.label,
            *self.texts,
            self.weight,
            self.id,
            *self.labels,
            *self.preferred_texts,
            *self.groups,
        )
        return [name for name in columns if name is not None]


@dataclass(frozen=True)
class ResolvedColumns:
    """Names of all columns of a file, and the positions of the columns that are read.

    Attributes:
        names: Names of all columns.
        label: Position of the label. ``None`` if the class comes from the name of the file or from ``labels``.
        texts: Positions of the columns that make up the text, in this order.
        weight: Position of the weight. ``None`` if the rows have no weights.
        labels: Positions of the class columns.
        id: Position of the id. ``None`` if the rows have no ids.
        ignored: Position of a label that is not read. ``None`` if there is none.
        groups: Positions of the group columns; ``None`` for a column that the file does not have.
    """

    names: tuple[str, ...]
    label: int | None
    texts: tuple[int, ...]
    weight: int | None = None
    labels: tuple[int, ...] = ()
    id: int | None = None
    ignored: int | None = None
    groups: tuple[int | None, ...] = ()

    @property
    def used(self) -> list[int]:
        """Positions of all columns that are read."""
        positions = (self.label, *self.labels, *self.texts, self.id, self.weight, *self.groups)
        return [i for i in positions if i is not None]

    def names_at(self, positions: Sequence[int]) -> tuple[str, ...]:
        """Return the names of the columns at these positions."""
        return tuple(self.names[i] for i in positions)

    def reindex(self, positions: Sequence[int]) -> "ResolvedColumns":
        """Return the same columns for a table that has only the columns at these positions."""
        new_positions: dict[int | None, int | None] = {position: i for i, position in enumerate(positions)}
        texts, labels = (tuple(positions.index(i) for i in columns) for columns in (self.texts, self.labels))
        single = {name: new_positions.get(getattr(self, name)) for name in ("label", "weight", "id")}
        return ResolvedColumns(
            self.names_at(positions),
            texts=texts,
            labels=labels,
            groups=tuple(map(new_positions.get, self.groups)),
            **single,
        )

    def describe(self) -> str:
        """Describe the columns that are read, for the report."""
        label = "" if self.label is None else f"label: {self.names[self.label]}, "
        label += f"labels: {', '.join(self.names_at(self.labels))}, " if self.labels else ""
        groups = (("group", i) for i in self.groups)
        pairs = (("weight", self.weight), ("id", self.id), *groups, ("ignored", self.ignored))
        single = [(what, i) for what, i in pairs if i is not None]
        suffix = "".join(f", {what}: {self.names[i]}" for what, i in single)
        return f"{label}text: {SEPARATOR.join(self.names_at(self.texts))}{suffix}"

    def unread_hint(self) -> str:
        """Return a hint that names the columns that are not read. The hint is empty if all columns are read."""
        read = {*self.used, self.ignored}
        unread = [i for i, name in enumerate(self.names) if i not in read and not _is_index(name)]
        return f"not read: {', '.join(self.names_at(unread))}" if unread else ""

    def make_row(self, line: int, values: Sequence[str], given: str | None, cells: tuple[str, ...]) -> Row:
        """Make a row from the values of all columns.

        Args:
            given: Class of all rows, if it is given by the file name.
        """
        label = given if self.label is None else values[self.label]
        if self.labels:
            label = labels_to_cell(self.names_at(self.labels), [values[i] for i in self.labels])
        weight = None if self.weight is None else values[self.weight]
        id_ = "" if self.id is None else values[self.id]
        groups = ""
        if self.groups:
            groups = FIELD_SEPARATOR.join(
                ["" if i is None else values[i].replace(FIELD_SEPARATOR, " ") for i in self.groups]
            )
        text = values[self.texts[0]] if len(self.texts) == 1 else join_columns([values[i] for i in self.texts])
        return Row(line, label or "", text, cells, weight, id_, groups)


def is_header(rows: Sequence[Sequence[str]], spec: ColumnSpec) -> bool:
    """Return True if the first row is a header.

    A header contains a name from ``spec``, or a common name of a label column or a text column. A common name does not
    count if a lower row of its column repeats it, because a class may be called "review".
    """
    if not rows:
        return False
    cells, *below = rows
    if any(name in cells for name in spec.names if not name.isdecimal()):
        return True
    return any(
        _normalize(cell) in LABEL_NAMES + TEXT_NAMES and all(cell != row[i] for row in below if i < len(row))
        for i, cell in enumerate(cells)
    )


def count_rows_above_header(rows: Sequence[Sequence[str]], spec: ColumnSpec) -> int:
    """Count the rows above the header, such as a title and a blank row. Return 0 if the first row may be the header.

    Rows above the header have at most one non-blank cell each. The header and the rows below it have more.
    """
    widths = [sum(map(bool, map(str.strip, row))) for row in rows]
    above = next((i for i, width in enumerate(widths) if width > 1), 0)
    is_title = 0 < above < MAX_TITLE_ROWS and sum(width > 1 for width in widths) > MIN_PROPORTION * (len(rows) - above)
    if not is_title or is_header(rows[:1], spec):
        return 0
    below = rows[above:]
    return above if is_header(below, spec) or may_be_header(below) else 0


def may_be_header(rows: Sequence[Sequence[str]]) -> bool:
    """Return True if the first row differs so much from the other rows that it may be a header. The user must decide.

    The first row differs in three cases:

    - One of its cells is empty, and no other cell of the column is empty.
    - One of its cells is neither blank nor a number, and more than 90 % of the other cells of the column are numbers.
    - Its first cell is unique, and every other value of the first column occurs more than once. On average, these
      values occur at least three times.
    """
    cells, *rows_below = rows
    if len(rows_below) < 3:
        return False
    for i, cell in enumerate(cells):
        below = [row[i] for row in rows_below if i < len(row)]
        numbers = sum(_is_number(value) for value in below)
        if not cell.strip() and all(value.strip() for value in below):
            return True
        if cell.strip() and not _is_number(cell) and numbers > 0.9 * len(rows_below):
            return True
    count = Counter(row[0] for row in rows_below if row)
    return cells[0] not in count and min(count.values()) > 1 and len(count) <= len(rows_below) / 3


def _mostly_pass(test: Callable[[str], object], values: Sequence[str]) -> bool:
    """Return True if nearly all values of a column pass a test."""
    return bool(values) and sum(map(bool, map(test, values))) > MIN_PROPORTION * len(values)


def _is_categorical(place: int, rows: Sequence[Sequence[str]]) -> bool:
    """Return True if a column has few distinct values, like a categorical column."""
    values = _filled(place, rows)
    return 2 <= len(set(values)) <= min(MAX_CATEGORIES, len(values) / 4)


def _filled(place: int, rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the non-blank values of a column."""
    return [row[place].strip() for row in rows if place < len(row) and row[place].strip()]


def _is_numeric(value: str) -> bool:
    """Return True if a value is a number, such as 1.5e-3, 1.234,50 or 9 €, or a date or time in digits."""
    return parse_number(value) is not None or value.translate(NUMBER_SIGNS).isdecimal()


def _is_number(text: str) -> bool:
    """Return True if a text is a number, or a date or time in digits."""
    return bool(text.strip()) and not text.strip().strip("0123456789+-.,:/ T")


def choose_columns(
    file: str,
    names: Sequence[str],
    spec: ColumnSpec,
    *,
    has_label: bool,
    rows: Sequence[Sequence[str]] = (),
    has_header: bool = True,
) -> ResolvedColumns:
    """Choose the columns of a file.

    Columns that the user specified have priority. Columns with common names come next, and then the only remaining
    column. If there is no header, the first column is the label and all other columns are text. A numeric column is
    never detected as text.

    Args:
        file: Name of the file in messages.
        names: Names of the columns of the file.
        has_label: True if the class is known without a label column, or no label is needed. A column that looks like a
            label is then ignored, except if no other column can be the text.
        rows: First rows. They are used to exclude columns of dates from detection as the label, and columns of numbers
            from detection as the text.
        has_header: True if the columns have names.

    Raises:
        UserError: A column does not exist or cannot be detected. The message lists the columns.
    """
    names, reference = tuple(names), spec.reference_columns
    if not has_header and has_label and reference is not None and len(names) == len(reference.names):
        return replace(reference, names=names, label=None, weight=None, labels=(), ignored=reference.label, groups=())
    if not has_header and has_label and reference is not None and len(names) == len(reference.texts):
        return ResolvedColumns(names, None, tuple(range(len(names))))
    if not spec.texts and not set(spec.preferred_texts).isdisjoint(names):
        needed = spec.preferred_texts
        spec = replace(spec, texts=needed)
        if missing := [name for name in needed if name not in names and not _is_column_number(name, len(names))]:
            raise UserError(
                f"{file} has no column {missing[0]!r}",
                f"the model was trained on {SEPARATOR.join(needed)}; the file has {', '.join(names)}"[:500],
                "add that column, which may be empty, or name the text columns with --text-column",
            )
    has_label = has_label or bool(spec.labels)
    find = partial(_find_column, file, names)
    labels = tuple(find("label-columns", name) for name in spec.labels)
    weight = None if spec.weight is None else find("weight", spec.weight)

    def find_optional(what: str, name: str, *, is_required: bool) -> int | None:
        exists = is_required or name in names or _is_column_number(name, len(names))
        return find(what, name) if exists else None

    id_ = None if spec.id is None else find_optional("id", spec.id, is_required=spec.id_required)
    groups = tuple(find_optional("group", name, is_required=spec.groups_required) for name in spec.groups)
    taken: set[int | None] = {*labels, weight, id_, *groups}

    def usual(kinds: Sequence[str]) -> int | None:
        matches = (i for kind in kinds for i, name in enumerate(names) if _normalize(name) == kind and i not in taken)
        return next(matches, None) if has_header else None

    label: int | None = None
    if not spec.labels:
        is_needed = spec.label is not None and spec.needs_label and not has_label
        label = find("label", str(spec.label)) if is_needed or spec.label in names else usual(LABEL_NAMES)
    texts: list[int | None] = [find("text", name) for name in spec.texts]
    taken |= {label, *texts[1:]}
    texts = texts or [usual(TEXT_NAMES)]
    title = None if spec.texts else usual(TITLE_NAMES)
    named = [i for i, name in enumerate(names) if not _is_index(name)]
    free = [i for i in named if not _mostly_pass(DATE.match, _filled(i, rows))]

    def only(what: str, left: list[int]) -> int:
        """Return the only remaining column. Raise ``UserError`` if there is not exactly one."""
        if len(left) == 1:
            return left[0]
        header = "" if has_header else "; no header was detected"
        header += f"; a column of --group is not used as the {what}" if groups else ""
        header += "; a column of numbers is not used as the text" if what == "text" and not left else ""
        raise UserError(
            f"{file}: which column is the {what}?",
            f"the columns are {', '.join(names)}"[:500] + header,
            f"set {_flag_name(what)} to its name or its number from 1 to {len(names)}",
        )

    if label is None and not has_label:
        taken |= {*texts, title}
        if has_header:
            left = [i for i in free if i not in taken and not _is_mostly_unique(i, rows)]
        elif len(names) == 1:
            raise UserError(f"{file} has only one column", remedy="check the columns, or pass another --input-format")
        else:
            left = [0] if 0 in free else []
        label = only("label", left)
    taken |= {label, title}
    if texts == [None]:
        candidates = free if has_header else range(len(names))
        words = [i for i in candidates if not _mostly_pass(_is_numeric, _filled(i, rows))]
        left = [i for i in words if i not in taken and not (title is not None and _is_categorical(i, rows))]
        if not left and title is not None:
            texts = []
        elif has_header or has_label:
            texts = [only("text", left or [i for i in words if has_label and i not in taken - {label}])]
        else:
            texts = [*left] or [only("text", left)]
    joined = tuple(i for i in (title, *texts) if i is not None)
    label, ignored = (None, label) if has_label else (label, None)
    ignored = None if ignored in joined else ignored
    return _check_no_repeats(file, ResolvedColumns(names, label, joined, weight, labels, id_, ignored, groups))


def _is_mostly_unique(place: int, rows: Sequence[Sequence[str]]) -> bool:
    """Return True if nearly all values of a column differ. Such a column cannot be the label."""
    values = [row[place] for row in rows if place < len(row)]
    return len(values) >= MIN_ROWS_TO_COMPARE and len(set(values)) > MIN_PROPORTION * len(values)


def _find_column(file: str, names: Sequence[str], what: str, column: str) -> int:
    if column in names:
        return list(names).index(column)
    if _is_column_number(column, len(names)):
        return int(column) - 1
    similar = [name for name in names if _normalize(name) == _normalize(column)] or difflib.get_close_matches(
        column, names, 1
    )
    raise UserError(
        f"{file} has no column {column!r}",
        f"the columns are {', '.join(names)}"[:500],
        (f"did you mean {similar[0]!r:.60}? Otherwise, " if similar else "")
        + f"set {_flag_name(what)} to a column name or a number from 1 to {len(names)}",
    )


def _check_no_repeats(file: str, chosen: ResolvedColumns) -> ResolvedColumns:
    """Raise ``UserError`` if a column is chosen for two purposes.

    Only an id column may also be read as text. A group column may have any other purpose.
    """
    count = Counter((chosen.label, chosen.weight, *chosen.labels, *chosen.texts))
    twice = next((place + 1 for place, times in count.items() if place is not None and times > 1), None)
    if twice is not None:
        why = f"it is {chosen.names[twice - 1]!r:.60}"
        raise UserError(f"column {twice} of {file} is chosen two times", why, "name another column")
    return chosen


def _flag_name(what: str) -> str:
    # The flag is --text-column, because --text of `predict` is a text to classify.
    return f"--{what}-column" if what == "text" else f"--{what}"


def _is_column_number(column: str, width: int) -> bool:
    return column.isdecimal() and len(column) < 10 and 1 <= int(column) <= width


def _is_index(name: str) -> bool:
    return INDEX_NAMES.fullmatch(_normalize(name)) is not None


def _normalize(name: str) -> str:
    return name.strip().lower().replace("_", " ")
