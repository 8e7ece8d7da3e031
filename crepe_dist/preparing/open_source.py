"""Opening of sources. Formats and columns that the user does not specify are detected from the first bytes."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from crepe_dist import extras
from crepe_dist.data.dataset import SAMPLE, UNLABELLED
from crepe_dist.data.targets import MULTILABEL, SINGLE_LABEL
from crepe_dist.data.text_preprocessing import EMPTY
from crepe_dist.errors import UserError
from crepe_dist.files.safe_read import sha256
from crepe_dist.preparing.formats import (
    BATCH_BYTES,
    DETECTION_ROWS,
    MAX_RECORD,
    NOT_UTF_8,
    TOO_LONG,
    OpenFile,
    Parsed,
    RawBatch,
    Row,
    parse_rows,
)
from crepe_dist.preparing.formats.columns import ResolvedColumns
from crepe_dist.preparing.formats.json_lines import open_json_lines
from crepe_dist.preparing.formats.lines import JSON_STARTS, LineReader, is_fasttext, open_fasttext, open_lines
from crepe_dist.preparing.formats.tables import ExcelReader, open_table, parse_table
from crepe_dist.preparing.sources import LINES, ReadOptions, Source, list_documents
from crepe_dist.settings.fields import FORMATS
from crepe_dist.settings.flags import UTF_8

# Maximum number of documents in a batch.
BATCH_FILES = 256
# First bytes of a Parquet file.
PARQUET_MAGIC = b"PAR1"


def open_source(source: Source, options: ReadOptions, *, keep_cells: bool = False, live: bool = False) -> OpenFile:
    """Open a source. If ``options`` does not specify the format and columns, detect them from the first bytes.

    Args:
        keep_cells: If True, ``Row.cells`` contains the values of all columns.
        live: If True, rows from a pipe are returned as soon as they arrive.

    Raises:
        UserError: The source cannot be read, or its format or columns cannot be detected.
    """
    name, label, label_kind = source.name, source.label, options.labelling.kind
    is_unlabelled = source.split == UNLABELLED
    if is_unlabelled:  # If the label is given, no label column is detected.
        label, label_kind = "", MULTILABEL
    if source.split != "train":  # Only training uses weights, and only labelled texts have groups.
        groups = () if is_unlabelled else options.columns.groups
        chosen = replace(options.columns, weight=None, groups=groups, groups_required=False)
        options = replace(options, columns=chosen)
    spec, nested, encoding = options.columns, label_kind != SINGLE_LABEL, options.encoding or options.default_encoding
    if source.format in ("folder", "parquet", "xlsx"):
        if source.path is None:
            raise UserError(f"{source.format} cannot be read from a pipe", remedy="name the file or folder")
        if source.format == "folder":
            _check_no_columns(source, options)
            folder = DocumentFolder(source.path, encoding)
            parse = partial(_parse_documents, source.path, label or "", encoding)
            return OpenFile(name, folder, folder, parse, "folder", "text: whole files")
        extras.require("parquet" if source.format == "parquet" else "excel", name)
        if source.format == "parquet":
            from crepe_dist.preparing.formats.parquet import open_parquet  # Importing PyArrow takes 0.2 s.

            return open_parquet(source.path, name, spec, label, keep_cells=keep_cells, nested=nested)
        sheet = ExcelReader(source.path, name)
        return open_table("xlsx", sheet, name, spec, label)
    json_encoding = options.encoding or UTF_8
    if source.format == "jsonl":
        encoding = json_encoding
    elif (source.format or options.default_format) not in (None, "jsonl"):
        json_encoding = encoding  # Text in other formats may start with a brace, but it is not JSON.
    lines = LineReader(source.path, encoding, json_encoding=json_encoding, live=live)
    if source.format == SAMPLE:
        _check_no_columns(source, options)
        lines.skip_lines(1)
        columns = ResolvedColumns(("id", "score", "text"), None, (2,))
        parse = partial(parse_table, "tsv", columns, label, "\t", False, False)
        return OpenFile(name, lines, lines, parse, "tsv")
    format = source.format or _detect_format(lines.head, name, options.default_format, is_unlabelled)
    if format in (LINES, "fasttext"):
        _check_no_columns(source, options)
    if format == LINES:
        return open_lines(lines, name, keep_cells=keep_cells, strict=is_unlabelled)
    if format == "jsonl":
        return open_json_lines(lines, name, spec, label, keep_cells=keep_cells, nested=nested)
    if format == "fasttext":
        if label is None:
            return open_fasttext(lines, name, label_kind)
        opened = open_fasttext(lines, name, MULTILABEL)
        return opened._replace(columns_description="text: other words, ignored: words with __label__")
    if format in ("parquet", "xlsx"):
        lines.close()
        return open_source(replace(source, format=format), options)
    return open_table(format, lines, name, spec, label, keep_cells=keep_cells)


def _check_no_columns(source: Source, options: ReadOptions) -> None:
    """Refuse column options for a source without columns. If the columns come from a model, they may be missing."""
    spec = options.columns
    groups = (("group", name) for name in spec.groups if spec.groups_required)
    for flag, column in (("weight", spec.weight), ("id", spec.id), *groups):
        if column is not None and (flag != "id" or spec.id_required):
            raise UserError(
                f"{source.name} has no column {column!r}",
                "the rows of this format have no columns",
                f"leave out --{flag}",
            )


def read_options_for_unlabelled(options: ReadOptions, opened: OpenFile) -> ReadOptions:
    """Return the options for reading unlabelled texts.

    If the training file ``opened`` has columns, the unlabelled texts are expected to have the same columns. Labels are
    not read, and the id column is optional.
    """
    spec = replace(options.columns, labels=(), weight=None, id_required=False, groups=())
    if opened.columns is not None:
        spec = replace(spec, texts=(), preferred_texts=opened.texts, reference_columns=opened.columns)
    return replace(options, columns=spec)


def _detect_format(head: bytes, name: str, default: str | None, is_unlabelled: bool) -> str:
    if is_fasttext(head):
        return "fasttext"
    if default is not None and default != "folder":
        return default
    if head.startswith(PARQUET_MAGIC):
        return "parquet"
    line = head.lstrip().split(b"\n", 1)[0]
    if line.startswith(b'{"' if is_unlabelled else JSON_STARTS):
        return "jsonl"
    if is_unlabelled:
        return LINES
    if b"\t" in line:
        return "tsv"
    if b"," in line or not line:
        return "csv"
    raise UserError(
        f"the format of {name} is unknown",
        "the suffix of the name is unknown, and the first line is not JSON and has no commas or tabs",
        f"pass --input-format {' or '.join(FORMATS)}",
    )


def _parse_documents(folder: Path, label: str, encoding: str, batch: RawBatch) -> Parsed:
    def row(number: int, name: str) -> Row:
        return Row(number, label, _read_document(folder / name, encoding), id=name)

    return parse_rows(enumerate(batch.content, start=batch.line), row)


class DocumentFolder:
    """Folder that contains one document per file.

    A document's line number is the position of its file in the sorted list of files, from 1. The workers read the
    files. ``position`` is the total size in bytes of the files whose batches have been yielded so far.
    """

    def __init__(self, folder: Path, encoding: str) -> None:
        self.position = 0
        self.encoding = encoding
        self._folder = folder
        self._names = list_documents(folder)
        # The encoding is checked here, because otherwise every worker would print the warning.
        first = () if encoding == UTF_8 else self._names[:DETECTION_ROWS]
        self.encoding_warning = next(filter(None, (_encoding_warning(folder / name, encoding) for name in first)), "")

    def __iter__(self) -> Iterator[RawBatch]:
        start = size = 0
        for end, name in enumerate(self._names, start=1):
            size += (self._folder / name).stat().st_size
            if end - start == BATCH_FILES or size >= BATCH_BYTES or end == len(self._names):
                self.position += size
                yield RawBatch(start + 1, self._names[start:end], size)
                start, size = end, 0

    def sha256(self) -> str:
        """Return the SHA-256 of the names and contents of all files."""
        digest = hashlib.sha256()
        for name in self._names:
            digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
            try:
                digest.update(bytes.fromhex(sha256(self._folder / name)))
            except (OSError, ValueError):  # The quarantine already lists this file.
                digest.update(b"not readable")
        return digest.hexdigest()

    def close(self) -> None:
        pass


def _encoding_warning(path: Path, encoding: str) -> str:
    """Return ``LineReader.encoding_warning`` for the start of a document. Return "" if the document cannot be read."""
    try:
        lines = LineReader(path, encoding)
    except UserError:
        return ""
    lines.close()
    return lines.encoding_warning


def _read_document(path: Path, encoding: str) -> str:
    try:
        lines = LineReader(path, encoding)
        data = lines.read(MAX_RECORD + 1)
    except UserError as error:
        raise ValueError(f"unreadable: it {error.what.removeprefix(str(path)).strip()}") from None
    lines.close()
    if len(data) > MAX_RECORD:
        raise ValueError(TOO_LONG)
    if lines.problem:
        raise ValueError(lines.problem)
    try:
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError(NOT_UTF_8) from None
    if not text:
        raise ValueError(EMPTY)
    return text
