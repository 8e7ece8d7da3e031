"""Workbooks of Excel: the first sheet, read in bounded memory."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Generator, Iterator
from itertools import chain, islice
from pathlib import Path

import openpyxl

from crepe_dist import files
from crepe_dist.errors import UserError
from crepe_dist.preparing.formats.rows import LOOK_AT, Batch

MAX_ROWS = 1 << 20  # of a sheet in Excel; openpyxl yields a blank row for each number that is missing
ROWS = 256  # in a batch
MOST = 1 << 29  # bytes after decompression; openpyxl keeps all strings of a workbook in memory
REMEDY = "save the sheet as CSV UTF-8"


class Sheet:
    """Reader of the first sheet of a workbook.

    Attributes:
        first: the first rows that are not empty, each with its number.
        sheets: number of sheets in the workbook.

    Raises:
        UserError: It is no workbook, is damaged, or expands too much.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self.sheets = 0
        self._rows = self._read()
        self.first = list(islice(self._rows, LOOK_AT))
        self.position = path.stat().st_size

    def sha256(self) -> str:
        return files.sha256(self._path)

    def close(self) -> None:
        self._rows.close()

    def skip_lines(self, last: int) -> None:
        """Skip the rows up to a number."""
        self.first = [row for row in self.first if row[0] > last]

    def __iter__(self) -> Iterator[Batch]:
        rows = chain(self.first, self._rows)
        while content := list(islice(rows, ROWS)):
            yield Batch(content[0][0], content, 0)

    def _read(self) -> Generator[tuple[int, list[str]], None, None]:
        try:
            with zipfile.ZipFile(self._path) as archive:  # which never yields more than these sizes
                size = sum(member.file_size for member in archive.infolist())
            if size > MOST:
                raise UserError(f"{self._name} expands to {size:,} bytes, and the limit is {MOST:,}", remedy=REMEDY)
            with self._path.open("rb") as stream:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # about styles
                    book = openpyxl.load_workbook(stream, read_only=True, data_only=True, keep_links=False)
                self.sheets = len(book.worksheets)
                sheet = book.worksheets[0]
                sheet.reset_dimensions()  # which may be wrong
                for number, row in enumerate(sheet.iter_rows(values_only=True), 1):
                    if number > MAX_ROWS:
                        raise ValueError(f"it has more than {MAX_ROWS:,} rows")
                    cells = ["" if cell is None else str(cell) for cell in row]
                    while cells and not cells[-1]:
                        cells.pop()
                    if cells:
                        yield number, cells
        except UserError:
            raise
        except Exception as error:  # openpyxl may raise anything
            why = f"{type(error).__name__}: {error}"[:300]
            raise UserError(f"{self._name} cannot be read as a workbook", why, REMEDY) from error
