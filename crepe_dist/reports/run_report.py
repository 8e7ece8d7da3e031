"""``report.html`` and ``model_card.md`` of a run, made from its folder and, if it still exists, its data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from crepe_dist import invocation
from crepe_dist.data.dataset import REPORT_NUMBERS, Dataset
from crepe_dist.errors import UserError
from crepe_dist.files import read_json, write_text
from crepe_dist.reports import model_card, run_page
from crepe_dist.reports.run_findings import warnings
from crepe_dist.runs.checkpoint import CONFIG, RESULT
from crepe_dist.runs.run_folder import RunFolder
from crepe_dist.runs.run_record import Quote, RunRecord, open_run, quotes

REPORT = "report.html"
CARD = "model_card.md"
MAX_EXAMPLES = 6


def write_for(folder: RunFolder, data: Dataset, say: Callable[[str], None]) -> Iterator[None]:
    """Write the report of a finished run, and print its warnings; do nothing if it is newer than the
    result and the settings.

    The run is complete without the report, so errors are reported and not raised.

    Args:
        data: data set that the run was trained on.
        say: function that prints a message.
    """
    if _is_current(folder):
        return
    try:
        record = open_run(folder.path)
        for each in warnings(record, data.classes):
            say(f"note: {each['what']}\n  why: {each['why']}\n  do:  {each['do']}")
        yield from write_report(record, data)
    except Exception as error:
        say(
            f"the report could not be written ({type(error).__name__}: {error}); the run itself is complete\n"
            f"  do:  {invocation.typed('report')} {folder.path}"
        )
    else:
        say(str(folder.path / REPORT))


def write_report(record: RunRecord, data: Dataset | UserError) -> Iterator[None]:
    """Write the report and the model card into the run's folder, yielding before each.

    Args:
        data: data set that the run was trained on, or the error met when opening it.

    Raises:
        OSError: a file cannot be written, for example because the disk is full.
    """
    quoted: dict[str, list[Quote | None]] = {}
    summary: dict[str, Any] | None = None
    if isinstance(data, Dataset):
        for name, scores in record.scores.items():
            quoted[name] = quotes(data, name, [each.row for each in scores.mistakes])
        summary = _summary(data)
    yield
    missing = "" if isinstance(data, Dataset) else str(data.what)
    write_text(record.path / REPORT, run_page.page(record, quoted, missing, summary))
    yield
    write_text(record.path / CARD, model_card.card(record, summary))


def examples(checkpoint: Path) -> list[str]:
    """Return texts of the data set that a checkpoint was trained on, one per class; empty if they are not available."""
    try:
        summary = _summary(open_run(checkpoint.absolute().parent.parent, checkpoint).dataset(None)) or {}
    except UserError:
        return []
    found = summary.get("examples")
    lists = found.values() if isinstance(found, dict) else []
    texts = [each[0] for each in lists if isinstance(each, list) and each]
    return [text for text in texts if isinstance(text, str) and text.strip()][:MAX_EXAMPLES]


def _is_current(folder: RunFolder) -> bool:
    sources = [folder.path / name for name in (RESULT, CONFIG)]
    changed = max(path.stat().st_mtime_ns for path in sources if path.is_file())
    pages = [folder.path / name for name in (REPORT, CARD)]
    return all(page.is_file() and page.stat().st_mtime_ns >= changed for page in pages)


def _summary(data: Dataset) -> dict[str, Any] | None:
    """Read the summary that ``prepare`` wrote, if it exists."""
    try:
        numbers = read_json(data.folder / REPORT_NUMBERS, follow=False)
    except (OSError, ValueError):
        return None
    return numbers if isinstance(numbers, dict) else None
