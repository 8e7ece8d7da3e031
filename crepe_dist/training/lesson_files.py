"""Files of the soft labels of the unlabelled texts, in the folder ``lesson`` of a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from crepe_dist.data.dataset import UNLABELLED
from crepe_dist.data.targets import Targets, described, file_of, kind_and_most, open_targets
from crepe_dist.data.writing import write_array
from crepe_dist.errors import unreadable
from crepe_dist.files import identity, integer, read_json, write_json

FORMAT = 1
LESSON = "lesson.json"


def is_written(folder: Path) -> bool:
    """Return whether a folder holds soft labels; its manifest is written last."""
    return (folder / LESSON).is_file()


def write(folder: Path, targets: Targets, figures: dict[str, Any]) -> None:
    """Write the soft labels of all unlabelled texts.

    Args:
        figures: figures about the labels, as JSON values.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files = write_array(folder, file_of(UNLABELLED), targets.pairs)
    about = {"format": FORMAT, "rows": len(targets.pairs), "labels": described(targets.kind, targets.most)}
    write_json(folder / LESSON, {**about, "figures": figures, "files": files})


def read(folder: Path, documents: int, classes: int) -> tuple[Targets, dict[str, Any]]:
    """Read the labels, and the figures about these.

    Args:
        documents: number of unlabelled texts.

    Raises:
        UserError: the files are damaged, or those of other texts.
    """
    path = folder / LESSON
    try:
        about = read_json(path, follow=False)
        if about["format"] != FORMAT:
            raise ValueError(f"it has format {str(about['format'])[:40]}; this version reads format {FORMAT}")
        if identity(folder / file_of(UNLABELLED)) != about["files"][file_of(UNLABELLED)]:
            raise ValueError(f"{file_of(UNLABELLED)} does not match its checksum")
        rows = integer(about["rows"], documents, documents, "rows")
        kind, most = kind_and_most(about)
        return open_targets(folder, UNLABELLED, rows, kind, most, classes, is_graded=True), about["figures"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        remedy = f"delete {folder}, and run the same command again: it labels the texts anew"
        raise unreadable(path, error, remedy) from error
