"""Opening of a source: its format and columns are detected from its first bytes, unless the user gave them."""

from __future__ import annotations

from dataclasses import replace

from crepe_dist import extras
from crepe_dist.data.dataset import SAMPLE, UNLABELLED
from crepe_dist.data.targets import ONE, SEVERAL
from crepe_dist.errors import UserError
from crepe_dist.preparing.formats.columns import Columns
from crepe_dist.preparing.formats.documents import open_documents
from crepe_dist.preparing.formats.json_lines import open_amazon, open_json_lines
from crepe_dist.preparing.formats.lines import LineCutter
from crepe_dist.preparing.formats.rows import OpenFile
from crepe_dist.preparing.formats.stream import Stream
from crepe_dist.preparing.formats.tables import Table, open_table
from crepe_dist.preparing.formats.text_lines import open_fasttext, open_lines
from crepe_dist.preparing.labelling import FASTTEXT
from crepe_dist.preparing.sources import FORMATS, LINES, Reading, Source

PARQUET = b"PAR1"  # first bytes of a Parquet file


def open_source(source: Source, reading: Reading, *, keep: bool = False, live: bool = False) -> OpenFile:
    """Open a source, and detect its format and columns from its first bytes unless ``reading`` gives them.

    Args:
        keep: keep the values of all columns in ``Row.cells``.
        live: pass rows from a pipe on as soon as they arrive.
    """
    label, kind_of_labels = source.label, reading.labelling.kind
    is_unlabelled = source.part == UNLABELLED
    if is_unlabelled:  # no label is read, so any will do
        label, kind_of_labels = "", SEVERAL
    if source.part != "train":  # scores do not use weights
        reading = replace(reading, columns=replace(reading.columns, weight=None))
    if source.format == "folder":
        _check_no_columns(source, reading)
        assert source.path is not None
        assert label is not None
        return open_documents(source.path, label, reading.encoding)
    if source.format in ("parquet", "xlsx") and source.path is None:
        raise UserError(f"{source.format} cannot be read from a pipe", remedy="name the file")
    if source.format == "parquet":
        assert source.path is not None
        extras.require("parquet", source.name)
        from crepe_dist.preparing.formats.parquet import open_parquet  # PyArrow takes 0.2 s to import

        return open_parquet(source.path, source.name, reading.columns, label, keep=keep, nested=kind_of_labels != ONE)
    if source.format == "xlsx":
        assert source.path is not None
        extras.require("excel", source.name)
        from crepe_dist.preparing.formats.workbook import Sheet  # openpyxl takes 0.2 s to import

        sheet = Sheet(source.path, source.name)
        opened = open_table("xlsx", LineCutter(sheet), source.name, reading.columns, reading.header, label, keep=keep)
        return opened._replace(reads=opened.reads + f", the first of {sheet.sheets} sheets" * (sheet.sheets > 1))
    cutter = LineCutter(Stream(source.path, reading.encoding), live=live)
    if source.format == SAMPLE:
        _check_no_columns(source, reading)
        cutter.skip_lines(1)
        table = Table("tsv", Columns(("id", "score", "text"), None, (2,)), label, "\t")
        return OpenFile(table.parse, cutter, "tsv")
    kind = source.format or _kind_of(cutter.head, source.name, is_unlabelled)
    if kind in (LINES, "amazon", "fasttext"):
        _check_no_columns(source, reading)
    if kind == LINES:
        return open_lines(cutter, keep=keep, strict=is_unlabelled)
    if kind == "amazon":
        assert label is not None
        return open_amazon(cutter, label)
    if kind == "jsonl":
        nested = kind_of_labels != ONE
        return open_json_lines(cutter, source.name, reading.columns, label, keep=keep, nested=nested)
    if kind == "fasttext":
        opened = open_fasttext(cutter, kind_of_labels)
        return opened._replace(reads="text: other words, ignored: words with __label__") if is_unlabelled else opened
    if kind == "parquet":
        cutter.close()
        return open_source(replace(source, format=kind), reading, keep=keep)
    return open_table(kind, cutter, source.name, reading.columns, reading.header, label, keep=keep)


def _check_no_columns(source: Source, reading: Reading) -> None:
    for flag, column in (("weight", reading.columns.weight), ("id", reading.columns.id)):
        if column is not None and (flag != "id" or reading.columns.needs_id):
            raise UserError(
                f"{source.name} has no column {column!r}",
                f"rows have {flag}s only in files with columns",
                f"leave --{flag} out, or give a table",
            )


def reading_like(reading: Reading, opened: OpenFile) -> Reading:
    """Return the options to read unlabelled texts with: their columns are those of the training file, if it has any.

    Their own label is not read, and an id is optional.
    """
    wanted = replace(reading.columns, labels=(), weight=None, needs_id=False)
    if opened.columns is not None:
        wanted = replace(wanted, texts=(), title=None, remembered=opened.texts, like=opened.columns)
    return replace(reading, columns=wanted)


def _kind_of(head: bytes, name: str, is_unlabelled: bool) -> str:
    if head.startswith(PARQUET):
        return "parquet"
    line = head.lstrip().split(b"\n", 1)[0]
    if line.startswith(b'{"' if is_unlabelled else (b"{", b"[")):
        return "jsonl"
    if line.startswith(FASTTEXT.encode()):
        return "fasttext"
    if is_unlabelled:
        return LINES
    if b"\t" in line:
        return "tsv"
    if b"," in line or not line:
        return "csv"
    raise UserError(
        f"{name}: the format is unknown",
        "its name does not give it, and its first line is not JSON and has no commas or tabs",
        f"give --input-format {' or '.join(FORMATS)}",
    )
