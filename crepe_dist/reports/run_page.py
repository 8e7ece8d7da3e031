"""``report.html`` and ``model_card.md`` of a run, and the page of the scores of a checkpoint."""

from __future__ import annotations

import importlib
import re
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from markupsafe import Markup

from crepe_dist import invocation
from crepe_dist.data.dataset import REPORT_NUMBERS, Dataset
from crepe_dist.errors import UserError
from crepe_dist.files import read_json, sha256, write_text
from crepe_dist.formatting import clean, counted, duration, excerpt, percent, size
from crepe_dist.model.weights_io import shape_class
from crepe_dist.reports import data_page, findings, run_figures, score_tables
from crepe_dist.reports.page import render
from crepe_dist.runs.checkpoint import CONFIG, RESULT
from crepe_dist.runs.run_folder import RunFolder
from crepe_dist.runs.run_folder import size as disk_space
from crepe_dist.runs.run_record import Quote, RunRecord, open_run, quotes
from crepe_dist.runs.scores import AnyScores, Scores
from crepe_dist.version import __version__

REPORT, CARD = "report.html", "model_card.md"
MAX_COMMAND_CHARS = 4000
MAX_CLASSES = 300  # in the model card
# The first group has a meaning in every Markdown dialect and is escaped by a backslash; the second only has one in some
# dialects, which may not support the backslash.
SPECIAL = re.compile(r"([\\`*_\[\]{}#!])|([<>&|~$@]|:(?=/)|(?<=www)\.)", re.IGNORECASE)
MALFORMED = (OSError, ValueError, KeyError, TypeError, AttributeError)  # raised by a damaged summary of the data
FILES = (
    ("checkpoints/", "parameters of the reported epoch, and of the last one if there was no refit, with scores"),
    ("state/", "saved state, from which an unfinished run resumes"),
    ("first/", "the network that was trained on the labelled texts alone"),
    ("lesson/", "soft labels of the unlabelled texts"),
    ("metrics.jsonl", "metrics of every step and every epoch"),
    ("tensorboard/", "the same metrics for TensorBoard"),
    ("config.yaml", "settings"),
    ("result.json", "the reported epoch, its scores and its provenance"),
)
_importing = threading.Lock()


def write_for(folder: RunFolder, data: Dataset, say: Callable[[str], None]) -> Iterator[None]:
    """Write the report of a finished run, and print its warnings; do nothing if it is newer than the
    result and the settings."""
    if _is_current(folder):
        return
    load()
    try:
        record = open_run(folder.path)
        for warning in findings.warnings(record, data.classes):
            say(UserError(warning["what"], warning["why"], warning["do"]).described("note"))
        yield from write_report(record, data)
    except Exception as error:
        say(
            f"the report could not be written ({type(error).__name__}: {error}); the run itself is complete\n"
            f"  do:  {invocation.typed('report')} {folder.path}"
        )
    else:
        say(str(folder.path / REPORT))


def load() -> None:
    """Import the libraries that draw a report; if one cannot be imported, the report says so."""
    with _importing, suppress(Exception):  # in one thread at a time: matplotlib's modules import each other
        for name in ("matplotlib.backends.backend_svg", "matplotlib.figure", "jinja2"):
            importlib.import_module(name)


def _is_current(folder: RunFolder) -> bool:
    sources = [folder.path / name for name in (RESULT, CONFIG)]
    changed = max(path.stat().st_mtime_ns for path in sources if path.is_file())
    pages = [folder.path / name for name in (REPORT, CARD)]
    return all(page.is_file() and page.stat().st_mtime_ns >= changed for page in pages)


def write_report(record: RunRecord, data: Dataset | UserError) -> Iterator[None]:
    """Write the report and the model card into the run's folder, yielding before each."""
    quoted: dict[str, list[Quote | None]] = {}
    warnings: list[dict[str, str]] = []
    unseen: list[str] = []
    if isinstance(data, Dataset):
        for name, scores in record.scores.items():
            quoted[name] = quotes(data, name, [mistake.row for mistake in scores.mistakes])
        with suppress(*MALFORMED):
            summary = read_json(data.folder / REPORT_NUMBERS, follow=False)
            warnings = [{key: str(warning[key]) for key in ("what", "why", "do")} for warning in summary["warnings"]]
            facts = data_page.facts(summary)
            unseen = [*facts["characters"], *facts["lengths"]]
    yield
    missing = "" if isinstance(data, Dataset) else str(data.what)
    write_text(record.path / REPORT, page(record, quoted, missing, warnings))
    yield
    flaws = [f"{warning['what']} ({warning['why']})" for warning in warnings]
    write_text(record.path / CARD, card(record, [*unseen, *flaws]))


def page(
    record: RunRecord,
    quotes: Mapping[str, Sequence[Quote | None]],
    no_texts: str,
    data_warnings: Sequence[dict[str, str]] = (),
) -> str:
    """Render the report of a run as a self-contained HTML page.

    Args:
        quotes: texts of the worst mistakes, by split.
        no_texts: reason why ``quotes`` is empty; empty if it is not.
    """
    classes, encoding = clean(record.classes), clean(record.description["encoding"])
    scores = record.scores.get("test") or record.label_scores.get("test")
    about_data = [{**warning, "what": f"data: {warning['what']}"} for warning in data_warnings]
    return render(
        "run.html",
        name=excerpt(record.name),
        version=__version__,
        headline=_headline(record, classes, scores),
        choice=findings.choice(record),
        training=excerpt(findings.training(record)),
        unlabelled=clean(record.provenance.get("unlabelled")),
        network=excerpt(findings.network(record)),
        warnings=clean([*findings.warnings(record, classes), *about_data]),
        history=record.history,
        scores=score_tables.view(scores, classes, quotes.get("test"), encoding) if scores else None,
        measure=record.measure,
        chooses="validation_accuracy" in record.metrics,
        no_texts=excerpt(no_texts),
        figures=run_figures.curves(record.history, record.epoch, record.measure),
        changed=_settings(record.changed()),
        settings=_settings(record.settings),
        made=clean(record.provenance),
        data={"name": excerpt(record.description["data"]["name"]), "folder": excerpt(str(record.data_folder)),
              "fingerprint": excerpt(record.fingerprint)},
        splits=[(excerpt(name), count) for name, count in findings.split_sizes(record).items()],
        classes=classes,
        encoding=encoding,
        command=excerpt(findings.command(record), MAX_COMMAND_CHARS),
        digest=record.description["sha256"],
        reproducible=findings.reproducible(record),
        checkpoint=excerpt(record.checkpoint.name),
        folder=excerpt(shlex.quote(str(record.path))),
        files=[(name, size(disk_space(path)), what) for name, what in FILES if (path := record.path / name).exists()],
        limits=findings.limits(record, classes),
    )  # fmt: skip


def score_page(scores: AnyScores, classes: list[str], quotes: Sequence[Quote | None], about: dict[str, Any]) -> str:
    """Render the page of ``python -m crepe_dist evaluate --html``."""
    classes, about = clean(classes), clean(about)
    headline = score_tables.tiles(scores, classes, about["split"])
    if isinstance(scores, Scores):
        notes = ["mean cross-entropy, in nats"]
        if scores.calibration.temperature != 1:
            notes.append(f"before the temperature: {scores.uncalibrated_loss:.4f}")
        headline.append(("loss", f"{scores.loss:.4f}", notes))
    values = score_tables.view(scores, classes, quotes, about["encoding"])
    return render("evaluation.html", version=__version__, about=about, headline=headline, no_texts="", scores=values)


def _headline(record: RunRecord, classes: list[str], scores: AnyScores | None) -> list[score_tables.Tile]:
    """Return the tiles at the top of the report."""
    history, made = record.history, record.provenance
    tiles: list[score_tables.Tile] = [("test accuracy", percent(record.metrics["test_accuracy"]), [])]
    if scores:
        tiles = score_tables.tiles(scores, classes, "test", findings.training_rows(record))
    notes = [counted(len(history.epochs), "epoch")]
    if made:
        notes.append(excerpt(f"{counted(made['processes'], 'process', 'processes')} on {made['device']}"))
    return [*tiles, ("training time", duration(history.seconds), notes)] if history.epochs else tiles


def _settings(settings: dict[str, Any]) -> list[tuple[str, str]]:
    return [(excerpt(str(name)), excerpt("none" if value is None else str(value))) for name, value in settings.items()]


def escaped(text: str) -> Markup:
    """Escape text for Markdown, so that it is shown literally anywhere outside a code block."""
    return Markup(
        SPECIAL.sub(lambda sign: f"\\{sign[1]}" if sign[1] else f"&#{ord(sign[2])};", excerpt(text, MAX_COMMAND_CHARS))
    )


def card(record: RunRecord, flaws: list[str]) -> str:
    """Render the model card (Mitchell et al. 2019, arXiv:1810.03993) of a run's reported checkpoint as Markdown.

    Args:
        flaws: warnings about its data.
    """
    classes = clean(record.classes)
    limits = [*findings.limits(record, classes), *(f"Its data: {flaw}." for flaw in flaws)]
    scores = record.scores.get("test") or record.label_scores.get("test")
    provenance = record.provenance
    return render(
        "model_card.md",
        name=escaped(record.name),
        version=__version__,
        result=escaped(findings.result(record, classes)),
        choice=findings.choice(record),
        network=escaped(findings.network(record)),
        kind=shape_class(record.description["network"]).kind,
        data={"name": escaped(record.description["data"]["name"]), "fingerprint": escaped(record.fingerprint)},
        splits=[(escaped(name), count) for name, count in findings.split_sizes(record).items()],
        classes=[escaped(name) for name in record.classes[:MAX_CLASSES]],
        count=len(classes),
        rows=_class_rows(scores, classes) if scores else [],
        macro_f1=scores.macro_f1 if scores else 0.0,
        several="labels" in record.description,
        limits=[escaped(sentence) for sentence in limits],
        encoding=record.description["encoding"],
        checkpoint=_code(shlex.quote(record.checkpoint.name)),
        literal=_code(repr(record.checkpoint.name)),
        environment=[
            (escaped(str(name)), escaped(str(value))) for name, value in provenance.get("environment", {}).items()
        ],
        command=_code(findings.command(record)),
        digest=sha256(record.checkpoint),
        reproducible=findings.reproducible(record),
    )


def _class_rows(scores: AnyScores, classes: list[str]) -> list[dict[str, Any]]:
    rows = score_tables.table(scores, classes)[:MAX_CLASSES]
    return [{**row, "name": escaped(row["name"]), "taken": escaped(row.get("taken", ""))} for row in rows]


def _code(text: str) -> Markup:
    """Make one line for a code block; it cannot end the block and needs no escaping."""
    return Markup(excerpt(text, MAX_COMMAND_CHARS))
