"""Reader of JSON Lines: one JSON object per line."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any

from crepe_dist.errors import UserError
from crepe_dist.preparing.formats import DETECTION_ROWS, NOT_UTF_8, OpenFile, Parsed, RawBatch, Row, parse_rows
from crepe_dist.preparing.formats.columns import LABEL_NAMES, ColumnSpec, ResolvedColumns, choose_columns
from crepe_dist.preparing.formats.lines import LineReader
from crepe_dist.preparing.label_parsing import DECODER, MULTIPLE_LABELS

# Maximum depth of nested objects whose keys are used as columns.
MAX_DEPTH = 4


def _parse_json_lines(
    columns: ResolvedColumns, label: str | None, cell_columns: Sequence[str], nested: bool, batch: RawBatch
) -> Parsed:
    """Parse JSON Lines, with one object per line.

    Args:
        columns: Keys to read. Each row must have the key of the last text column. Keys of other text columns may be
            missing.
        label: Class of all rows, if it is given by the file name.
        cell_columns: Keys whose values are returned in ``Row.cells``.
        nested: True if the label may be a list of labels, or an object that maps labels to probabilities.
    """
    scalars = [i for i in (*columns.labels, columns.weight) if i is not None]
    any_values = [i for i in (columns.id, *columns.groups) if i is not None]

    def row(number: int, line: bytes) -> Row | None:
        if not line or line.isspace():
            return None
        record, values = _parse_object(line), [""] * len(columns.names)
        for i in scalars:
            values[i] = _scalar_to_text(record, columns.names[i])
        for i in any_values:
            values[i] = _value_to_text(record, columns.names[i])
        if columns.label is not None:
            values[columns.label] = _label_to_text(record, columns.names[columns.label], nested)
        for i in columns.texts:
            key = columns.names[i]
            is_missing = _get_value(record, key) is None and i != columns.texts[-1]
            values[i] = "" if is_missing else _get_text(record, key)
        return columns.make_row(number, values, label, tuple(_value_to_text(record, key) for key in cell_columns))

    return parse_rows(enumerate(batch.content.split(b"\n"), start=batch.line), row)


def open_json_lines(
    file: LineReader, name: str, spec: ColumnSpec, label: str | None, *, keep_cells: bool, nested: bool
) -> OpenFile:
    """Open a JSON Lines file. Its columns are the keys of the first object, and the group columns of later objects.

    Args:
        keep_cells: If True, ``Row.cells`` contains the values of all keys.
        nested: True if the label may be a list of labels, or an object that maps labels to probabilities.

    Raises:
        UserError: A key in ``spec`` is missing, or the file is a single JSON array.
    """
    file.fill_head(1)
    if file.head.lstrip()[:1] == b"[":
        raise UserError(
            f"{name} is one JSON array",
            "the format needs one object per line",
            f"convert it: jq -c '.[]' {name} > {name}l",
        )
    first = list(islice(_iter_objects(file.head), DETECTION_ROWS))
    keys = list(dict.fromkeys((*spec.names, "label", "text")))  # These keys are used if no line can be parsed.
    if first:
        keys = list(_iter_keys(first[0], (spec.label, *LABEL_NAMES) if nested else (spec.label,)))
        keys += [
            key
            for key in dict.fromkeys(spec.groups)
            if key not in keys and any(_get_value(row, key) is not None for row in first)
        ]
    rows = [[_value_to_text(row, key) for key in keys] for row in first]
    columns = choose_columns(name, keys, spec, has_label=label is not None, rows=rows)
    reads, texts = columns.describe() if first else "", columns.names_at(columns.texts)
    cell_columns = () if not keep_cells else columns.names if first else texts
    parse = partial(_parse_json_lines, columns, label, cell_columns, nested)
    hint = columns.unread_hint() if first else ""
    return OpenFile(name, file, file, parse, "jsonl", reads, texts, cell_columns, columns=columns, hint=hint)


def _iter_objects(head: bytes) -> Iterator[dict[str, Any]]:
    """Yield the objects of the lines that can be parsed."""
    for line in head.splitlines():
        with suppress(ValueError):
            yield _parse_object(line)


def _parse_object(line: bytes) -> dict[str, Any]:
    try:
        record = DECODER.decode(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError(NOT_UTF_8) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record


def _iter_keys(record: dict[str, Any], labels: tuple[str | None, ...] = (), prefix: str = "") -> Iterator[str]:
    """Yield the keys of scalar values. Keys of nested objects are written as `outer.inner`.

    Args:
        labels: Keys that are also yielded if their values are lists or objects.
        prefix: Keys of the outer objects, each followed by a full stop.
    """
    for name, value in record.items():
        if isinstance(value, (dict, list)) and f"{prefix}{name}" in labels:
            yield f"{prefix}{name}"
        elif isinstance(value, dict) and prefix.count(".") < MAX_DEPTH:
            yield from _iter_keys(value, labels, f"{prefix}{name}.")
        elif not isinstance(value, (dict, list)):
            yield f"{prefix}{name}"


def _get_value(record: dict[str, Any], key: str) -> Any:
    """Return the value of a key such as `outer.inner`, or ``None`` if it does not exist."""
    if key in record:
        return record[key]
    outer, _, inner = key.partition(".")
    value = record.get(outer)
    return _get_value(value, inner) if inner and isinstance(value, dict) else None


def _scalar_to_text(record: dict[str, Any], key: str) -> str:
    value = _get_value(record, key)
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (dict, list)):
        raise ValueError(f"not a single value: {key!r}")
    return str(value)


def _label_to_text(record: dict[str, Any], key: str, nested: bool) -> str:
    value = _get_value(record, key)
    if not nested and isinstance(value, list):
        raise ValueError(f"{MULTIPLE_LABELS}: {json.dumps(value, ensure_ascii=False)}"[:200])
    return _value_to_text(record, key) if nested else _scalar_to_text(record, key)


def _value_to_text(record: dict[str, Any], key: str) -> str:
    """Return any value as text. Lists and objects become JSON."""
    value = _get_value(record, key)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else _scalar_to_text(record, key)


def _get_text(record: dict[str, Any], key: str) -> str:
    value = _get_value(record, key)
    if value is None and key not in record:
        raise ValueError(f"no such key: {key!r} (there are {', '.join(map(repr, record))[:200]})")
    if not isinstance(value, (str, type(None))):
        raise ValueError(f"not a text: {key!r}")
    return value or ""
