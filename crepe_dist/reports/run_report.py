"""``report.html`` and ``model_card.md``: made of a run's folder, and of the data set where it is still there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from crepe_dist.data.dataset import REPORT_NUMBERS, Dataset
from crepe_dist.errors import UserError
from crepe_dist.files import read_json, write_text
from crepe_dist.reports import model_card, run_page
from crepe_dist.reports.run_findings import warnings
from crepe_dist.runs.run_folder import RunFolder
from crepe_dist.runs.run_record import RunRecord, open_run, texts

REPORT = "report.html"
CARD = "model_card.md"


def write_for(folder: RunFolder, data: Dataset, say: Callable[[str], None]) -> Iterator[None]:
    """Write the report of a run that has just finished, and tell what deserves a second look.

    The run is complete without the report, so nothing that goes wrong here may end it in another way.

    Args:
        data: what the run was trained on.
    """
    try:
        record = open_run(folder.path)
        for each in warnings(record, data.classes):
            say(f"note: {each['what']}\n  why: {each['why']}\n  do:  {each['do']}")
        yield from write_report(record, data)
    except Exception as error:
        say(
            f"the report could not be written ({type(error).__name__}: {error}); "
            f"all else is there, and python -m crepe_dist.report {folder.path} writes it later"
        )
    else:
        say(str(folder.path / REPORT))


def write_report(record: RunRecord, data: Dataset | UserError) -> Iterator[None]:
    """Write report and model card into the run's folder, yielding between the two.

    Args:
        data: what the run was trained on, or why that is not to be had.

    Raises:
        OSError: there is no room.
    """
    quotes: dict[str, list[str | None]] = {}
    about_data: dict[str, Any] | None = None
    if isinstance(data, Dataset):
        for name, scores in record.scores.items():
            quotes[name] = texts(data.parts.get(name), [each.row for each in scores.mistakes], data.encoding)
        about_data = _numbers(data)
    yield
    missing = "" if isinstance(data, Dataset) else str(data.what)
    write_text(record.path / REPORT, run_page.page(record, quotes, missing))
    yield
    write_text(record.path / CARD, model_card.card(record, about_data))


def _numbers(data: Dataset) -> dict[str, Any] | None:
    """What the data's own report counted, if it is there."""
    try:
        numbers = read_json(data.folder / REPORT_NUMBERS, follow=False)
    except (OSError, ValueError):
        return None
    return numbers if isinstance(numbers, dict) else None
