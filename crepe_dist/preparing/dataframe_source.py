"""Tables in memory (pandas' data frames and mappings of lists), written as JSON Lines so that all checks apply."""

from __future__ import annotations

import codecs
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from crepe_dist.data.label_types import FLOAT, INT, LABEL_TYPES
from crepe_dist.data.text_preprocessing import append_values, join_columns
from crepe_dist.errors import UserError
from crepe_dist.files.csv_cells import has_escaped_cells, unescape_cell
from crepe_dist.preparing.formats import DETECTION_ROWS
from crepe_dist.preparing.formats.columns import ColumnSpec, choose_columns


def is_table(source: object) -> bool:
    """Tell whether a source is a data frame or a mapping of columns, not names of files."""
    return isinstance(source, Mapping) or (hasattr(source, "columns") and hasattr(source, "items"))


def write_table(table: Any, path: Path, spec: ColumnSpec, *, labelled: bool = True) -> ColumnSpec:
    """Write the columns of label and text as JSON Lines, a line per row, in order; line n is row n, from 1.

    Returns:
        The names of the columns that were written.

    Raises:
        UserError: columns differ in length, do not exist, cannot be guessed, or hold no text.
    """
    name = path.stem
    items = [(str(key), column) for key, column in table.items()]
    columns = _to_lists(items, name, has_escaped_cells([key for key, _ in items]))
    if not any(map(len, columns.values())):
        raise UserError(f"{name} has no rows", remedy=f"give texts{' and their labels' * labelled}")
    names = list(columns)
    first = list(zip(*([_to_text(value) for value in column[:DETECTION_ROWS]] for column in columns.values())))
    chosen = choose_columns(name, names, spec, has_label=not labelled, rows=first)
    labels, texts = chosen.names_at(chosen.labels), chosen.names_at(chosen.texts)
    places = (chosen.label, chosen.weight, chosen.id)
    label, weight, id_ = (None if place is None else names[place] for place in places)
    for each in texts:
        value = next((value for value in columns[each] if not is_missing(value)), "")
        if not isinstance(value, str):
            what = f"{name}: column {each!r} is not text, but {value!r:.40} of type {type(value).__name__}"
            raise UserError(what, remedy="name a column of strings with --text-column")
    beside = chosen.names_at(chosen.feature_columns)
    plain = [name for name in (label, *labels, weight, id_) if name is not None]
    with path.open("wb") as stream:
        stream.write(codecs.BOM_UTF8)  # --encoding applies to files, such as a test file
        for values in zip(*(columns[each] for each in (*plain, *beside, *texts))):
            row = {each: _label_to_json(value) for each, value in zip(plain, values)}
            row |= {each: format_value(value) for each, value in zip(beside, values[len(plain) :])}
            row |= {each: _text_to_json(value) for each, value in zip(texts, values[len(plain) + len(beside) :])}
            # A lone surrogate becomes bytes that are not UTF-8, which reading rejects with that reason.
            stream.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    end = len(spec.categories)
    return ColumnSpec(label, texts, weight, labels, id_, categories=beside[:end], numbers=beside[end:])


def find_label_type(table: Any, label: str | None) -> str:
    """Return the type of the labels in a column of a table, one of ``LABEL_TYPES``; empty: text.

    The labels of a row may be a list or a mapping.
    """
    column = next((column for key, column in table.items() if str(key) == label), ())
    each = chain.from_iterable(value if _is_iterable(value) else [value] for value in column)
    found = {type(_to_python(value)).__name__ for value in each if not is_missing(value)}
    if found == {INT, FLOAT}:  # a column with gaps
        return FLOAT
    return found.pop() if len(found) == 1 and found.issubset(LABEL_TYPES) else ""


def _to_python(value: Any) -> Any:
    """Convert a number or a bool of NumPy to one of Python."""
    return value.item() if isinstance(value, (np.number, np.bool_)) else value


def _is_iterable(value: Any) -> bool:
    return not isinstance(value, (str, bytes)) and hasattr(value, "__iter__")


def extract_table_texts(table: Any, spec: ColumnSpec) -> Sequence[Any]:
    """Return the texts of a table without labels, and the values of columns beside them, composed as those of a file.

    Only these columns are converted.
    """
    items = [(str(key), column) for key, column in table.items()]
    chosen = choose_columns("the table", [key for key, _ in items], spec, has_label=True)
    names, beside = chosen.names_at(chosen.texts), chosen.names_at(chosen.feature_columns)
    chosen_items = [(key, column) for key, column in items if key in (*names, *beside)]
    columns = _to_lists(chosen_items, "the table", has_escaped_cells([key for key, _ in items]))
    texts, values = ([columns[name] for name in each] for each in (names, beside))
    joined = texts[0] if len(texts) == 1 else [_join_texts(of_row) for of_row in zip(*texts)]
    return [_append_values(*row) for row in zip(joined, *values)] if values else joined


def _append_values(text: Any, *values: Any) -> Any:
    """Append the values of a row to its text; return a text that is none as it is, for its message."""
    text = "" if is_missing(text) else text
    return append_values(text, list(map(format_value, values))) if isinstance(text, str) else text


def format_value(value: Any) -> str:
    """Return the value of a column beside the text as a file has it; empty for a missing one."""
    return "" if is_missing(value) else str(value).lower() if isinstance(value, bool) else str(value)


def _join_texts(values: Sequence[Any]) -> Any:
    """Join the texts of a row; return the first value that is neither a text nor missing instead, for its message."""
    texts = ["" if is_missing(value) else value for value in values]
    not_texts = [value for value in texts if not isinstance(value, str)]
    return not_texts[0] if not_texts else join_columns(texts)


def _to_lists(items: Sequence[tuple[str, Any]], name: str, has_guards: bool) -> dict[str, Sequence[Any]]:
    for key, count in Counter(key for key, _ in items).items():
        if count > 1:
            raise UserError(f"{name} has several columns named {key!r}", remedy="rename them, or leave all but one out")
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
        if has_guards:
            columns[key] = [unescape_cell(each) if isinstance(each, str) else each for each in columns[key]]
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(
            f"the columns of {name} differ in length",
            ", ".join(f"{key!r} has {length:,} rows" for key, length in lengths.items())[:300],
            "give a label for every text, and a text for every label",
        )
    return columns


def is_missing(value: object) -> bool:
    """Tell whether a value is None, NaN, or pandas' NA or NaT."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or type(value).__name__ in MISSING_TYPES


MISSING_TYPES = ("NAType", "NaTType")  # pandas is not imported for them


def _label_to_json(value: Any) -> Any:
    """Convert a label to a value of JSON. Whole numbers lose the `.0` that pandas adds to a column with gaps."""
    if is_missing(value):
        return None
    value = _to_python(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {_class_to_text(name): _label_to_json(share) for name, share in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(_class_to_text, value))
    if _is_iterable(value):  # a list, a tuple, an array
        return [_label_to_json(item) for item in value]
    return value if isinstance(value, (str, bool, int, float)) else str(value)


def _class_to_text(value: Any) -> str:
    """Return the name of a class that is a key of a mapping, or in a set, as a list of labels spells it."""
    label = _label_to_json(value)
    return label if isinstance(label, str) else json.dumps(label)


def _text_to_json(value: Any) -> Any:
    """Convert a text to a value of JSON. Reading rejects True as not a text."""
    return None if is_missing(value) else value if isinstance(value, str) else True


def _to_text(value: Any) -> str:
    return "" if is_missing(value) else str(value)
