"""Reading of sources into a spool.

The main process reads batches of bytes. Worker processes parse the batches, check the rows and write the texts. The
main process writes the records of the rows in the order of the sources.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from crepe_dist.data.arrays import hash_texts
from crepe_dist.data.dataset import UNLABELLED
from crepe_dist.data.markup import TAG, without_tags
from crepe_dist.data.targets import SINGLE_LABEL
from crepe_dist.data.text_preprocessing import parse_number
from crepe_dist.errors import UserError
from crepe_dist.preparing.formats import (
    FIELD_SEPARATOR,
    NOT_UTF_8,
    InvalidRow,
    OpenFile,
    Parsed,
    RawBatch,
    Row,
    check_text,
    excerpt,
)
from crepe_dist.preparing.label_parsing import ABSENT, ParseClassName
from crepe_dist.preparing.open_source import (
    open_source,
    read_options_for_unlabelled,
)
from crepe_dist.preparing.sources import ReadOptions, Source
from crepe_dist.preparing.spec import PreparationSpec
from crepe_dist.preparing.spool import (
    GROUP_VALUES,
    INVALID_ROWS,
    MAX_WEIGHT,
    ROW,
    ROWS,
    Rows,
    SpooledRows,
    append_texts,
    group_record,
)
from crepe_dist.preparing.worker_pool import PrintLine, ProgressCallback, WorkerPool, print_nothing

# Maximum length of a label, in characters.
MAX_LABEL = 200
# Maximum length of an id, in characters. Longer ids are cut.
MAX_ID = 200
# Start of the reason why a row with an unknown label is invalid. The label follows.
UNKNOWN_LABEL = "unknown label"
# Reason why a row without a label is left out. The limit for invalid rows ignores such rows, because exports often
# contain them.
NO_LABEL = "no label"
# Arguments of ``bytes.translate`` that reduce ASCII text to letters and digits in lower case.
_LOWER = bytes(range(256)).lower()
_NOT_ALPHANUMERIC = bytes(point for point in range(128) if not chr(point).isalnum())
_NOT_WORDS = re.compile(r"[\W_]+")
# Maximum number of classes.
MAX_CLASSES = 1 << 16
# Maximum number of distinct sets of labels, for multilabel and soft labels.
MAX_LABEL_SETS = 1 << 24
# Maximum length of the reason why a row is invalid, in characters.
MAX_REASON = 300
# Pattern for UTF-8 that was decoded as Latin-1 or Windows-1252. A letter or sign of a Western language then becomes two
# characters, and a quotation mark becomes three.
_SECOND = "".join(map(chr, range(0x80, 0xC0))) + bytes(range(0x80, 0xC0)).decode("cp1252", "ignore")
MOJIBAKE = re.compile(f"[ÂÃ][{_SECOND}]|â[€\x80][{_SECOND}]")
# Defects that the data report counts. A row whose text has a defect is still valid.
DEFECTS = HTML, GARBLED = "html", "mojibake"
# Input of ``read_batch``: index of the source, split of the source, parser of its format, and batch to parse.
Task = tuple[int, str, Callable[[RawBatch], Parsed], RawBatch]


class BatchRows(NamedTuple):
    """Rows of a batch.

    Attributes:
        rows: Records of the valid rows. The field ``label`` of a record is the position of its label in ``labels``.
        labels: Number of valid rows with each label string.
        invalid: Invalid rows.
        defects: Number of valid rows with each of ``DEFECTS``.
        file: Index of the source.
        texts: File that contains the texts.
        groups: Values of the group columns of the valid rows, an array of ``spool.group_record``.
    """

    rows: Rows
    labels: Counter[str]
    invalid: list[InvalidRow]
    defects: Counter[str]
    file: int
    texts: Path
    groups: Rows


def read_sources(
    sources: Sequence[Source],
    folder: Path,
    spec: PreparationSpec,
    workers: WorkerPool,
    show_progress: ProgressCallback,
    print_line: PrintLine = print_nothing,
) -> SpooledRows:
    """Read sources into a spool folder. The workers parse several batches in advance.

    Raises:
        UserError: A source cannot be read, or there are too many distinct labels.
    """
    collected = SpooledRows(folder, sources)
    label_index: dict[str, int] = {}
    total = sum(source.bytes for source in sources)
    max_labels = MAX_CLASSES if spec.label_kind == SINGLE_LABEL else MAX_LABEL_SETS
    with ExitStack() as stack:
        rows, group_values = (stack.enter_context((folder / name).open("wb")) for name in (ROWS, GROUP_VALUES))
        invalid_rows = stack.enter_context((folder / INVALID_ROWS).open("w", encoding="utf-8"))
        # The arguments are pickled with each batch. They exclude the corrections in ``spec``, which may be large.
        work = partial(read_batch, folder, spec.read_options)
        for batch in workers.map_in_order(work, _iter_tasks(sources, spec, collected.files, print_line)):
            entry, name = collected.files[batch.file], sources[batch.file].name
            for row in batch.invalid:
                record = {"file": name, "source": batch.file, **row._asdict()}
                record["reason"] = excerpt(row.reason, MAX_REASON)
                invalid_rows.write(json.dumps(record, ensure_ascii=False) + "\n")
                entry["bad"] += row.lines
                collected.invalid += row.lines
            for label in batch.labels:
                label_index.setdefault(label, len(label_index))
            entry["rows"] += len(batch.rows)
            collected.valid.update(batch.labels)
            collected.defects.update(batch.defects)
            if len(label_index) > max_labels:
                what = "labels" if max_labels == MAX_CLASSES else "sets of labels"
                raise UserError(
                    f"more than {max_labels:,} different {what} in {name}",
                    f"the columns are {entry['reads'][:200]}; the last label is {list(label_index)[-1][:40]!r}",
                    "if this is not a label, name the label column with --label COLUMN, by name or by number (from 1)",
                )
            if batch.texts not in collected.texts:
                collected.texts.append(batch.texts)
            if len(batch.rows):
                batch.rows["label"] = np.array([label_index[label] for label in batch.labels], np.int32)[
                    batch.rows["label"]
                ]
                batch.rows["texts"] = collected.texts.index(batch.texts)
                rows.write(batch.rows.tobytes())
                if spec.read_options.columns.groups:
                    group_values.write(batch.groups.tobytes())
            show_progress("reading", sum(entry["bytes"] for entry in collected.files.values()), total)
    collected.labels = list(label_index)
    return collected


def _iter_tasks(
    sources: Sequence[Source], spec: PreparationSpec, files: dict[int, dict[str, Any]], print_line: PrintLine
) -> Iterator[Task]:
    """Open the sources one after another, add an entry for each source to ``files``, and yield the batches.

    Unlabelled texts are read with the columns of the first training file. If several sources have the same description,
    it is printed only for the first of them.
    """
    first = next((source for source in sources if source.split == "train"), sources[0])
    read_options = unlabelled_options = spec.read_options
    described: set[str] = set()
    for file, source in enumerate(sources):
        opened = open_source(source, unlabelled_options if source.split == UNLABELLED else read_options)
        if source is first:  # Unlabelled sources come last, so the columns are known before the first one is opened.
            unlabelled_options = read_options_for_unlabelled(read_options, opened)
        if (description := _describe_source(source, opened)) not in described:
            described.add(description)
            remaining = f" (and {len(sources) - file - 1:,} more)" if file + 1 < len(sources) else ""
            print_line(f"reads {source.name}{remaining}: {description}")
            if opened.hint and source.split != UNLABELLED:
                print_line(opened.hint)
        entry = files[file] = {
            "format": opened.format, "reads": opened.columns_description,
            "label": opened.label, "texts": list(opened.texts),
            "encoding": opened.file.encoding, "rows": 0, "bad": 0, "bytes": 0, "sha256": "",
        }  # fmt: skip
        for batch in opened.iter_checked():
            entry["bytes"] = opened.file.position
            yield file, source.split, opened.parse, batch
        entry |= {"sha256": opened.file.sha256(), "bytes": opened.file.position, "doubt": opened.file.encoding_warning}
        opened.file.close()


def _describe_source(source: Source, opened: OpenFile) -> str:
    """Describe how a source is read: the columns, the format and the encoding."""
    label = "label: the name, " if source.label is not None and source.split != UNLABELLED else ""
    encoding = f" in {opened.file.encoding}" if opened.file.encoding else ""
    prefix = "without labels, " if source.split == UNLABELLED else ""
    return f"{prefix}{label}{opened.columns_description or 'text'}; {opened.format}{encoding}"


def read_batch(folder: Path, options: ReadOptions, task: Task) -> BatchRows:
    """Parse and check one batch, and append its texts to the text file of this process. Runs in a worker."""
    file, split, parse, batch = task
    parsed = parse(batch)
    invalid = [*batch.invalid, *parsed.invalid]
    rows: list[Row] = []
    row_labels: list[str] = []
    texts: list[bytes] = []
    weights: list[float] = []
    name = partial(parse_class_name, class_names=options.class_names)
    for row in parsed.rows:
        if options.strip_html:
            row = row._replace(text=without_tags(row.text))
        try:
            label, text = _check_row(row, options, name, is_unlabelled=split == UNLABELLED)
            weights.append(_parse_weight(row))
        except ValueError as error:
            invalid.append(InvalidRow(row.line, str(error), excerpt(row.text)))
        else:
            rows.append(row)
            row_labels.append(label)
            texts.append(text)
    invalid.sort(key=lambda row: row.line)
    records = np.zeros(len(rows), dtype=ROW)
    records["file"] = file
    records["line"] = [row.line for row in rows]
    labels = Counter(row_labels)
    label_index = {label: index for index, label in enumerate(labels)}
    records["label"] = [label_index[label] for label in row_labels]
    records["weight"] = weights
    ids = [row.id[:MAX_ID].encode("utf-8", "replace") for row in rows]
    records["id"] = list(map(len, ids))
    groups, values = _encode_groups(rows, len(options.columns.groups))
    text_file, start = append_texts(folder, list(map(b"".join, zip(texts, ids, values))))
    _fill_records(records, rows, texts, start, groups["bytes"])
    defects = Counter(what for row in rows for what in _find_defects(row.text))
    return BatchRows(records, labels, invalid, defects, file, text_file, groups)


def _encode_groups(rows: Sequence[Row], columns: int) -> tuple[Rows, list[bytes]]:
    """Return the group values of rows as an array of ``spool.group_record``, and as byte strings.

    Values are compared without the spaces around them. The byte strings contain at most ``MAX_ID`` bytes of each
    value. A row of a source without these columns has no values.
    """
    records = np.zeros(len(rows), group_record(columns))
    if columns == 0 or not rows:
        return records, [b""] * len(rows)
    absent = FIELD_SEPARATOR * (columns - 1)
    cells = FIELD_SEPARATOR.join([row.groups or absent for row in rows]).split(FIELD_SEPARATOR)
    values = [cell.strip().encode("utf-8", "surrogatepass") for cell in cells]
    is_present = np.fromiter(map(len, values), np.int64) > 0
    records["hashes"] = np.where(is_present, hash_texts(values), np.uint64(0)).reshape(len(rows), columns)
    values = [value[:MAX_ID] for value in values]
    if columns > 1:
        values = list(map(FIELD_SEPARATOR.encode().join, zip(*(values[column::columns] for column in range(columns)))))
    records["bytes"] = list(map(len, values))
    return records, values


def _find_defects(text: str) -> Iterator[str]:
    """Yield the defects of a text, from ``DEFECTS``."""
    if "<" in text and TAG.search(text):
        yield HTML
    if not text.isascii() and MOJIBAKE.search(text):
        yield GARBLED


def _check_row(row: Row, options: ReadOptions, name: ParseClassName, *, is_unlabelled: bool) -> tuple[str, bytes]:
    """Return the label string of a row, or ``ABSENT`` for an unlabelled row, and the text in UTF-8.

    Raises:
        ValueError: The row is invalid.
    """
    text, cell = check_text(row.text), row.label.strip()
    label_format = options.labelling
    if is_unlabelled:
        return ABSENT, text
    if label_format.kind == SINGLE_LABEL or not cell:
        return name(cell), text
    return label_format.parse(cell, name), text


def parse_class_name(label: str, class_names: Sequence[str] | None) -> str:
    """Convert a label in a file to a class name.

    Args:
        label: Class name. If ``class_names`` is given, it may also be the number of a class, starting with 1.
        class_names: Names of all classes. If it is ``None``, every label is a class name.

    Raises:
        ValueError: The label is empty, too long, not UTF-8, or unknown.
    """
    label = label.strip()
    try:
        label.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(NOT_UTF_8) from None
    if not label:
        raise ValueError(NO_LABEL)
    if class_names is not None and (label.isdecimal() or label not in class_names):
        if not label.isdecimal() or not 1 <= int(label) <= len(class_names):
            raise ValueError(f"{UNKNOWN_LABEL}: {label!r:.40} is not a number from 1 to {len(class_names)}")
        return class_names[int(label) - 1]
    if len(label) > MAX_LABEL:
        raise ValueError(f"label longer than {MAX_LABEL} characters")
    return label


def _parse_weight(row: Row) -> float:
    """Return the weight of a row, or 1 if the rows have no weights.

    Raises:
        ValueError: The weight is not a number from 0 to ``MAX_WEIGHT``.
    """
    if row.weight is None:
        return 1.0
    weight = parse_number(row.weight)
    if weight is None or not 0 <= weight <= MAX_WEIGHT:
        raise ValueError(f"unusable weight: {row.weight!r:.40} is not a number from 0 to {MAX_WEIGHT:g}")
    return weight


def _fill_records(records: Rows, rows: Sequence[Row], texts: Sequence[bytes], start: int, group_bytes: Rows) -> None:
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    records["bytes"] = lengths
    sizes = lengths + records["id"] + group_bytes
    records["offset"] = start + np.cumsum(sizes) - sizes
    records["exact"] = hash_texts(texts)
    keys = [_normalize_text(row.text, text) for row, text in zip(rows, texts)]
    records["near"] = hash_texts([key or text for key, text in zip(keys, texts)])
    records["characters"] = [len(row.text) for row in rows]


def _normalize_text(text: str, data: bytes) -> bytes:
    """Reduce a text to its letters and digits, in lower case and Unicode compatibility form.

    Texts with the same result are near duplicates.
    """
    if text.isascii():
        return data.translate(_LOWER, _NOT_ALPHANUMERIC)
    return _NOT_WORDS.sub("", unicodedata.normalize("NFKC", text).casefold()).encode("utf-8")
