"""JSON Lines, and the notebook's Amazon 5-core files."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from crepe_dist.data.composition import join
from crepe_dist.errors import UserError
from crepe_dist.preparing.formats.columns import LABELS, Wanted, choose_named
from crepe_dist.preparing.formats.lines import LineCutter
from crepe_dist.preparing.formats.rows import MAX_RECORD, BadRow, Block, Parsed, Row, Share, excerpt, too_long
from crepe_dist.preparing.formats.stream import Stream
from crepe_dist.preparing.labelling import DECODER, MANY, cell_of

LOOK_AT = 200  # rows from which columns are chosen
MAX_DEPTH = 4  # levels of nested objects whose keys are listed
MAX_LITERAL = 1 << 16  # characters of a Python literal; parsing takes about 100 times its length in memory


@dataclass(frozen=True)
class JsonLines:
    """Parser of JSON Lines, with one object per line.

    Args:
        label: key of the label; ``None`` if all rows are of the class ``given``.
        texts: keys whose values are joined to the text; all but the last may be missing.
        given: class of all rows, if ``label`` is ``None``.
        literals: also accept Python literals, which the Amazon 5-core files use.
        name: name of the format.
        reads: description of the columns read, for the report.
        kept: keys whose values go into ``Row.cells``.
        weight: key of the weight; ``None`` if rows have no weights.
        labels: keys of the classes, in place of a label.
        nested: the label may be a list of labels, or an object of their shares.
        id: key of the id; ``None`` if rows have no ids.
    """

    label: str | None
    texts: tuple[str, ...]
    given: str | None = None
    literals: bool = False
    name: str = "jsonl"
    reads: str = ""
    kept: tuple[str, ...] = ()
    weight: str | None = None
    labels: tuple[str, ...] = ()
    nested: bool = False
    id: str | None = None

    def parse(self, block: Block, share: Share) -> Parsed:
        lines = block.data.split(b"\n")
        result = Parsed([], [], len(block.data), len(lines))
        for number, line in enumerate(lines, start=block.line):
            if not line or line.isspace() or not share.owns(number):
                continue
            try:
                result.rows.append(self._row(number, line))
            except ValueError as error:
                result.bad.append(BadRow(number, str(error), excerpt(line)))
        return result

    def _row(self, number: int, line: bytes) -> Row:
        if len(line) > MAX_RECORD:
            raise ValueError(too_long())
        record = _load(line, literals=self.literals)
        label = self.given if self.label is None else self._label(record, self.label)
        if self.labels:
            label = cell_of(self.labels, [_scalar(record, key) for key in self.labels])
        texts = [_text(record, key) for key in self.texts[:-1] if _value(record, key) is not None]
        text = join([*texts, _text(record, self.texts[-1])])
        cells = tuple(_cell(record, key) for key in self.kept)
        weight = None if self.weight is None else _scalar(record, self.weight)
        return Row(number, label or "", text, cells, weight, "" if self.id is None else _cell(record, self.id))

    def _label(self, record: dict[str, Any], key: str) -> str:
        value = _value(record, key)
        if not self.nested and isinstance(value, list):
            raise ValueError(f"{MANY}: {json.dumps(value, ensure_ascii=False)}"[:200])
        return _cell(record, key) if self.nested else _scalar(record, key)


def open_json_lines(
    stream: Stream,
    file: str,
    wanted: Wanted,
    label: str | None,
    *,
    keep: bool = False,
    live: bool = False,
    nested: bool = False,
) -> tuple[JsonLines, LineCutter]:
    """Open a JSON Lines file. The keys of its first object are the columns.

    Args:
        stream: bytes of the file.
        file: name of the file, for messages.
        wanted: columns given by the user.
        label: class of all rows, if the file name gives it.
        keep: keep the values of all these keys in ``Row.cells``.
        live: see ``LineCutter``.
        nested: the label may be a list or an object.

    Raises:
        UserError: A wanted key is missing, or the file is a single JSON value.
    """
    cutter = LineCutter(stream, quoted=False, live=live)
    cutter.look(1)
    if cutter.head.lstrip()[:1] == b"[":
        raise UserError(f"{file} is one JSON array", "one object per line is needed", f"jq -c '.[]' {file} > {file}l")
    for line in cutter.head.splitlines():
        try:
            record = _load(line, literals=False)
        except ValueError:
            continue
        names = list(_names(record, (wanted.label, *LABELS) if nested else (wanted.label,)))
        rows = list(islice(_rows(cutter.head, names), LOOK_AT))
        lists = [key for key, value in record.items() if isinstance(value, list) and key not in names]
        columns = choose_named(file, names, wanted, label_given=label is not None, rows=rows, lists=lists)
        key = None if columns.label is None else names[columns.label]
        texts = tuple(names[i] for i in columns.texts)
        kept = tuple(names) if keep else ()
        weight = None if columns.weight is None else names[columns.weight]
        id_ = None if columns.id is None else names[columns.id]
        labels = tuple(names[i] for i in columns.labels)
        reads = columns.describe(names)
        return JsonLines(key, texts, label, False, "jsonl", reads, kept, weight, labels, nested, id_), cutter
    texts = wanted.texts or wanted.remembered or ("text",)
    key = None if label is not None else wanted.label or "label"
    key = None if wanted.labels else key
    kept = texts if keep else ()
    weight, labels, id_ = wanted.weight, wanted.labels, wanted.id
    return JsonLines(key, texts, label, kept=kept, weight=weight, labels=labels, nested=nested, id=id_), cutter


def _rows(head: bytes, names: Sequence[str]) -> Iterator[list[str]]:
    """Yield the values of the first whole lines that can be read."""
    for line in head.splitlines():
        with suppress(ValueError):
            record = _load(line, literals=False)
            yield [_cell(record, name) for name in names]


def open_amazon(stream: Stream, label: str) -> tuple[JsonLines, LineCutter]:
    """Open the Amazon reviews of one category; their text is ``summary | reviewText``."""
    reads = "text: summary | reviewText"
    return JsonLines(None, ("summary", "reviewText"), label, True, "amazon", reads), LineCutter(stream, quoted=False)


def _load(line: bytes, *, literals: bool) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    try:
        record = DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        if not literals:
            raise ValueError(f"not JSON: {error}") from None
        record = _literal(text)
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record


def _literal(text: str) -> Any:
    if len(text) > MAX_LITERAL:
        raise ValueError(f"not JSON, and longer than {MAX_LITERAL:,} characters")
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError("neither JSON nor a Python literal") from None


def _names(record: dict[str, Any], labels: tuple[str | None, ...] = (), before: str = "") -> Iterator[str]:
    """Yield the keys of scalar values; keys of nested objects are written `outer.inner`.

    Args:
        labels: keys whose values may be lists or objects.
    """
    for name, value in record.items():
        if isinstance(value, (dict, list)) and f"{before}{name}" in labels:
            yield f"{before}{name}"
        elif isinstance(value, dict) and before.count(".") < MAX_DEPTH:
            yield from _names(value, labels, f"{before}{name}.")
        elif not isinstance(value, (dict, list)):
            yield f"{before}{name}"


def _value(record: dict[str, Any], key: str) -> Any:
    """Return the value of a key or of a path of keys; ``None`` if it does not exist."""
    if key in record:
        return record[key]
    outer, _, inner = key.partition(".")
    within = record.get(outer)
    return _value(within, inner) if inner and isinstance(within, dict) else None


def _scalar(record: dict[str, Any], key: str) -> str:
    value = _value(record, key)
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (dict, list)):
        raise ValueError(f"not a single value: {key!r}")
    return str(value)


def _cell(record: dict[str, Any], key: str) -> str:
    """Return any value as text, for ``Row.cells``."""
    value = _value(record, key)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else _scalar(record, key)


def _text(record: dict[str, Any], key: str) -> str:
    value = _value(record, key)
    if value is None and key not in record:
        raise ValueError(f"no such key: {key!r} (there are {', '.join(map(repr, record))[:200]})")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"not a text: {key!r}")
    return value
