"""Tables in memory: pandas data frames and mappings of lists.

For training, a table is written to a JSON Lines file, so that its rows pass the same checks as the rows of other files.
"""

import codecs
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from crepe_dist.data.label_types import FLOAT, INT, LABEL_TYPES
from crepe_dist.data.text_preprocessing import join_columns
from crepe_dist.errors import UserError
from crepe_dist.files.csv_cells import has_escaped_cells, unescape_cell
from crepe_dist.preparing.formats import DETECTION_ROWS
from crepe_dist.preparing.formats.columns import ColumnSpec, choose_columns

# Names of the types of missing values in pandas.
MISSING_TYPES = ("NAType", "NaTType")


def is_table(source: object) -> bool:
    """Return True if a source is a data frame or a mapping of columns, and False if it consists of file names."""
    return isinstance(source, Mapping) or (hasattr(source, "columns") and hasattr(source, "items"))


def write_table(table: Any, path: Path, spec: ColumnSpec, *, labelled: bool = True) -> ColumnSpec:
    """Write the chosen columns of a table as JSON Lines. Line n of the file is row n, counted from 1.

    Args:
        labelled: If True, the table must have a label column.

    Returns:
        The names of the columns that were written.

    Raises:
        UserError: The columns differ in length, a column does not exist, the columns cannot be detected, or a text
            column does not contain text.
    """
    name = path.stem
    items = [(str(key), column) for key, column in table.items()]
    columns = _to_lists(items, name, has_escaped_cells([key for key, _ in items]))
    if not any(map(len, columns.values())):
        raise UserError(f"{name} has no rows", remedy=f"give texts{' and their labels' * labelled}")
    names = list(columns)
    first = list(zip(*(map(format_value, column[:DETECTION_ROWS]) for column in columns.values())))
    chosen = choose_columns(name, names, spec, has_label=not labelled, rows=first)
    labels, texts = chosen.names_at(chosen.labels), chosen.names_at(chosen.texts)
    places = (chosen.label, chosen.weight, chosen.id)
    label, weight, id_ = (None if place is None else names[place] for place in places)
    for column in texts:
        value = next((value for value in columns[column] if not is_missing(value)), "")
        if not isinstance(value, str):
            what = f"{name}: column {column!r} is not text, but {value!r:.40} of type {type(value).__name__}"
            raise UserError(what, remedy="name a column of strings with --text-column")
    groups = chosen.names_at([i for i in chosen.groups if i is not None])
    plain = [name for name in (label, *labels, weight, id_, *groups) if name is not None]
    # If an id or group column is also a text column, it is written as text.
    converters: dict[str, Callable[[Any], Any]] = {
        **dict.fromkeys(plain, _label_to_json),
        **dict.fromkeys(texts, _text_to_json),
    }
    with path.open("wb") as stream:
        # --encoding is meant for files of the user, such as a test file. The flag does not apply to a file with a byte
        # order mark.
        stream.write(codecs.BOM_UTF8)
        for values in zip(*(columns[column] for column in converters)):
            row = {column: convert(value) for (column, convert), value in zip(converters.items(), values)}
            # A lone surrogate is written as bytes that are not valid UTF-8, so the reader rejects the row.
            stream.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    return ColumnSpec(label, texts, weight, labels, id_, groups=groups)


def find_label_type(table: Any, label: str | None) -> str:
    """Return the type of the labels in a table column: one of ``LABEL_TYPES``, or an empty string.

    The string is empty if the labels are text or have different types, or if ``label`` is not a column of the table.
    A cell may contain a list or a mapping of labels.
    """
    column = next((column for key, column in table.items() if str(key) == label), ())
    labels = chain.from_iterable(value if _is_iterable(value) else [value] for value in column)
    types = {type(_to_python(value)).__name__ for value in labels if not is_missing(value)}
    if types == {INT, FLOAT}:  # pandas converts integers to floats if values are missing.
        return FLOAT
    return types.pop() if len(types) == 1 and types.issubset(LABEL_TYPES) else ""


def _to_python(value: Any) -> Any:
    """Convert a NumPy number or bool to a Python number or bool."""
    return value.item() if isinstance(value, (np.number, np.bool_)) else value


def _is_iterable(value: Any) -> bool:
    return not isinstance(value, (str, bytes)) and hasattr(value, "__iter__")


def extract_table_texts(table: Any, spec: ColumnSpec) -> Sequence[Any]:
    """Return the texts of a table without labels. Only the text columns are converted to lists."""
    items = [(str(key), column) for key, column in table.items()]
    chosen = choose_columns("the table", [key for key, _ in items], spec, has_label=True)
    names = chosen.names_at(chosen.texts)
    chosen_items = [(key, column) for key, column in items if key in names]
    columns = _to_lists(chosen_items, "the table", has_escaped_cells([key for key, _ in items]))
    texts = [columns[name] for name in names]
    return texts[0] if len(texts) == 1 else list(map(_join_row, zip(*texts)))


def format_value(value: Any) -> str:
    """Convert a value to the string that a file would contain. A missing value becomes an empty string."""
    return "" if is_missing(value) else str(value).lower() if isinstance(value, bool) else str(value)


def _join_row(texts: Sequence[Any]) -> Any:
    """Join the texts of a row.

    If a text is present but is not a string, this function returns the value unchanged, so that a later error message
    can show it.
    """
    texts = ["" if is_missing(text) else text for text in texts]
    not_texts = [text for text in texts if not isinstance(text, str)]
    return not_texts[0] if not_texts else join_columns(texts)


def _to_lists(items: Sequence[tuple[str, Any]], name: str, is_escaped: bool) -> dict[str, Sequence[Any]]:
    for key, count in Counter(key for key, _ in items).items():
        if count > 1:
            raise UserError(
                f"{name} has several columns named {key!r}", remedy="rename the columns, or leave only one of them"
            )
    columns: dict[str, Sequence[Any]] = {}
    for key, column in items:
        if isinstance(column, (str, bytes)) or not hasattr(column, "__iter__"):
            raise UserError(
                f"column {key!r} of {name} is {column!r:.40}",
                f"a column is a list with a value for each row, not {type(column).__name__}",
                "give lists of the same length",
            )
        as_list = getattr(column, "tolist", None) or getattr(column, "to_pylist", None)  # NumPy and pandas; Arrow
        columns[key] = as_list() if as_list else list(column)
        if is_escaped:
            columns[key] = [unescape_cell(value) if isinstance(value, str) else value for value in columns[key]]
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(
            f"the columns of {name} differ in length",
            ", ".join(f"{key!r} has {length:,} rows" for key, length in lengths.items())[:300],
            "give a label for every text, and a text for every label",
        )
    return columns


def is_missing(value: object) -> bool:
    """Return True if a value is ``None``, NaN, or one of the pandas values NA and NaT."""
    # The pandas types are compared by name because pandas is not imported here.
    return value is None or (isinstance(value, float) and math.isnan(value)) or type(value).__name__ in MISSING_TYPES


def _label_to_json(value: Any) -> Any:
    """Convert a label to a JSON value. 1.0 becomes 1, because pandas converts integers to floats."""
    if is_missing(value):
        return None
    value = _to_python(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {_class_to_text(name): _label_to_json(prob) for name, prob in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(_class_to_text, value))
    if _is_iterable(value):  # A list, a tuple or an array.
        return [_label_to_json(item) for item in value]
    return value if isinstance(value, (str, bool, int, float)) else str(value)


def _class_to_text(value: Any) -> str:
    """Convert a class in a mapping or a set to the same name that it gets in a list of labels."""
    label = _label_to_json(value)
    return label if isinstance(label, str) else json.dumps(label)


def _text_to_json(value: Any) -> Any:
    """Convert a text to a JSON value. A value that is not a string becomes True, which the reader rejects."""
    return None if is_missing(value) else value if isinstance(value, str) else True
