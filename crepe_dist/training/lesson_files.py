"""Files of the soft labels of a part of the data, in the folder ``lesson`` of a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.arrays import map_array
from crepe_dist.data.targets import Targets, described, file_of, kind_and_most, open_targets
from crepe_dist.data.writing import write_array
from crepe_dist.errors import unreadable
from crepe_dist.files import identity, integer, read_json, write_json

FORMAT = 1
LESSON = "lesson.json"
Rows = npt.NDArray[np.int64]


def is_written(folder: Path) -> bool:
    """Return whether a folder holds soft labels; its manifest is written last."""
    return (folder / LESSON).is_file()


def write(folder: Path, part: str, rows: Rows, targets: Targets, figures: dict[str, Any]) -> None:
    """Write the soft labels of rows of a part.

    Args:
        figures: figures about the labels, as JSON values.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files = write_array(folder, file_of(part), targets.pairs) | write_array(folder, _rows_of(part), rows)
    about = {"format": FORMAT, "rows": len(rows), "labels": described(targets.kind, targets.most)}
    write_json(folder / LESSON, {**about, "figures": figures, "files": files})


def read(folder: Path, part: str, documents: int, classes: int) -> tuple[Rows, Targets, dict[str, Any]]:
    """Read the rows, ascending, their labels, and the figures about these.

    Args:
        documents: number of documents of the part.

    Raises:
        UserError: the files are damaged, or those of another part.
    """
    path = folder / LESSON
    try:
        about = read_json(path, follow=False)
        if about["format"] != FORMAT:
            raise ValueError(f"it has format {str(about['format'])[:40]}; this version reads format {FORMAT}")
        for name in (file_of(part), _rows_of(part)):
            if identity(folder / name) != about["files"][name]:
                raise ValueError(f"{name} does not match its checksum")
        count = integer(about["rows"], 1, documents, "rows")
        kind, most = kind_and_most(about)
        targets = open_targets(folder, part, count, kind, most, classes, is_graded=True)
        rows = np.asarray(map_array(folder / _rows_of(part), np.int64, (count,)))
        if not (rows[0] >= 0 and rows[-1] < documents and (np.diff(rows) > 0).all()):
            raise ValueError(f"{_rows_of(part)} does not ascend")
        return rows, targets, about["figures"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        remedy = f"delete {folder}, and run the same command again: it labels the texts anew"
        raise unreadable(path, error, remedy) from error


def _rows_of(part: str) -> str:
    return f"{part}.rows.npy"
