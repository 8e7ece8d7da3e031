"""Workbooks of Excel: the first sheet, read in bounded memory."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import openpyxl

from crepe_dist.errors import UserError
from crepe_dist.preparing.formats.stream import Stream

ROWS = 1 << 20  # of a sheet in Excel; openpyxl yields a blank row for each number that is missing
MOST = 1 << 29  # bytes after decompression; openpyxl keeps all strings of a workbook in memory


class Sheet(Stream):
    """Reader of the rows of a workbook's first sheet: a line for each, with a JSON list of its cells as text.

    Empty cells at the end of a row are left out.

    Attributes:
        sheets: number of sheets in the workbook.

    Raises:
        UserError: It is no workbook, is damaged, or expands too much.
    """

    refused = MappingProxyType({})

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path)
        self._sheet = name
        try:
            with zipfile.ZipFile(path) as archive:  # which never yields more than these sizes
                size = sum(member.file_size for member in archive.infolist())
            if size > MOST:
                raise UserError(
                    f"{name} expands to {size:,} bytes", f"the limit is {MOST:,}", "save the sheet as CSV UTF-8"
                )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about styles
                book = openpyxl.load_workbook(path.open("rb"), read_only=True, data_only=True, keep_links=False)
            self.sheets = len(book.worksheets)
            sheet = book.worksheets[0]
            sheet.reset_dimensions()  # which may be wrong
            rows: Iterator[tuple[Any, ...]] = sheet.iter_rows(values_only=True)
            self._rows = enumerate(rows, 1)
        except Exception as error:
            raise self._unreadable(error) from error

    def read_some(self, size: int) -> bytes:
        """Read a line of any size; nothing at the end."""
        try:
            number, row = next(self._rows, (0, ()))
            if number > ROWS:
                raise ValueError(f"it has more than {ROWS:,} rows")
        except Exception as error:
            raise self._unreadable(error) from error
        if not number:
            return b""
        cells = ["" if cell is None else str(cell) for cell in row]
        while cells and not cells[-1]:
            cells.pop()
        return (json.dumps(cells, ensure_ascii=False) if cells else "").encode("utf-8", "surrogatepass") + b"\n"

    def _unreadable(self, error: Exception) -> UserError:
        """Return the error for what openpyxl raises, which may be anything."""
        if isinstance(error, UserError):
            return error
        why = f"{type(error).__name__}: {error}"[:300]
        return UserError(f"{self._sheet} cannot be read as a workbook", why, "save the sheet as CSV UTF-8")
