"""``report.html`` and ``model_card.md`` of a run, made from its folder and, if it still exists, its data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from crepe_dist import invocation
from crepe_dist.data.dataset import REPORT_NUMBERS, Dataset
from crepe_dist.errors import UserError
from crepe_dist.files import read_json, write_text
from crepe_dist.reports import data_sentences, model_card, run_page
from crepe_dist.reports.run_findings import warnings
from crepe_dist.runs.checkpoint import CONFIG, RESULT
from crepe_dist.runs.run_folder import RunFolder
from crepe_dist.runs.run_record import Quote, RunRecord, open_run, quotes

REPORT = "report.html"
CARD = "model_card.md"
MAX_EXAMPLES = 6
MALFORMED = (OSError, ValueError, KeyError, TypeError, AttributeError)  # raised by a damaged summary of the data


def write_for(folder: RunFolder, data: Dataset, say: Callable[[str], None]) -> Iterator[None]:
    """Write the report of a finished run, and print its warnings; do nothing if it is newer than the
    result and the settings."""
    if _is_current(folder):
        return
    try:
        record = open_run(folder.path)
        for warning in warnings(record, data.classes):
            say(f"note: {warning['what']}\n  why: {warning['why']}\n  do:  {warning['do']}")
        yield from write_report(record, data)
    except Exception as error:
        say(
            f"the report could not be written ({type(error).__name__}: {error}); the run itself is complete\n"
            f"  do:  {invocation.typed('report')} {folder.path}"
        )
    else:
        say(str(folder.path / REPORT))


def write_report(record: RunRecord, data: Dataset | UserError) -> Iterator[None]:
    """Write the report and the model card into the run's folder, yielding before each."""
    quoted: dict[str, list[Quote | None]] = {}
    data_warnings: list[dict[str, str]] = []
    unseen = ""
    if isinstance(data, Dataset):
        for name, scores in record.scores.items():
            quoted[name] = quotes(data, name, [mistake.row for mistake in scores.mistakes])
        with suppress(*MALFORMED):
            summary = read_json(data.folder / REPORT_NUMBERS, follow=False)
            data_warnings = [
                {key: str(warning[key]) for key in ("what", "why", "do")} for warning in summary["warnings"]
            ]
            unseen = f"{data_sentences.characters(summary)} {data_sentences.cutting(summary)}"
    yield
    missing = "" if isinstance(data, Dataset) else str(data.what)
    write_text(record.path / REPORT, run_page.page(record, quoted, missing, data_warnings))
    yield
    write_text(record.path / CARD, model_card.card(record, data_warnings, unseen))


def examples(checkpoint: Path) -> list[str]:
    """Return texts of the data set that a checkpoint was trained on, one per class; empty if they are not available."""
    with suppress(UserError, *MALFORMED):
        data = open_run(checkpoint.absolute().parent.parent, checkpoint).dataset(None)
        texts = [
            texts[0] for texts in read_json(data.folder / REPORT_NUMBERS, follow=False)["examples"].values() if texts
        ]
        return [text for text in texts if text.strip()][:MAX_EXAMPLES]
    return []


def _is_current(folder: RunFolder) -> bool:
    sources = [folder.path / name for name in (RESULT, CONFIG)]
    changed = max(path.stat().st_mtime_ns for path in sources if path.is_file())
    pages = [folder.path / name for name in (REPORT, CARD)]
    return all(page.is_file() and page.stat().st_mtime_ns >= changed for page in pages)
