"""HTML pages of a run, and of the scores of a checkpoint."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crepe_dist.reports import run_figures, run_findings, score_tables
from crepe_dist.reports.page import render
from crepe_dist.runs.checkpoint import AnyScores
from crepe_dist.runs.disk_space import size as disk_space
from crepe_dist.runs.scores import Scores
from crepe_dist.version import __version__
from crepe_dist.wording import clean, counted, duration, excerpt, percent, size

if TYPE_CHECKING:
    from crepe_dist.runs.run_record import Quote, RunRecord

MAX_COMMAND_CHARS = 4000
MAX_UNLABELLED_CHARS = 2000
FILES = (
    ("checkpoints/", "parameters of the reported epoch and of the last, each with a description and scores"),
    ("state/", "saved state, from which an unfinished run resumes and a finished one can be verified"),
    ("first/", "the network that was trained on the labelled texts alone"),
    ("lesson/", "soft labels of the unlabelled texts"),
    ("metrics.jsonl", "metrics of every step and every epoch"),
    ("tensorboard/", "the same metrics for TensorBoard, with histograms of the parameters"),
    ("config.yaml", "settings"),
    ("result.json", "the reported epoch, its scores and its provenance"),
)


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
    classes, provenance, history = clean(record.classes), clean(record.made), record.history
    encoding = record.about["encoding"]
    split = "test" if "test" in record.scores else ""
    labels = record.label_scores.get("test")
    changed = record.changed()
    about_data = [{**warning, "what": f"data: {warning['what']}"} for warning in data_warnings]
    return render(
        "run.html",
        name=excerpt(record.name),
        version=__version__,
        headline=_headline(record, classes, split),
        choice=run_findings.choice(record),
        chooses="validation_accuracy" in record.metrics,
        training=excerpt(run_findings.training(record)),
        unlabelled=excerpt(run_findings.unlabelled(record), MAX_UNLABELLED_CHARS),
        network=excerpt(run_findings.network(record)),
        warnings=clean([*run_findings.warnings(record, classes), *about_data]),
        history=history,
        scores=score_tables.view(record.scores[split], classes, quotes.get(split), encoding) if split else None,
        labels=score_tables.label_view(labels, classes) if labels else None,
        measure=record.measure,
        no_texts=excerpt(no_texts),
        figures=_figures(record),
        smoothed=run_figures.is_smoothed(history),
        changed=_settings(changed),
        settings=_settings(record.settings),
        provenance=provenance,
        environment=[
            (excerpt(str(name)), excerpt(str(value))) for name, value in provenance.get("environment", {}).items()
        ],
        data={"name": excerpt(record.about["data"]["name"]), "folder": excerpt(str(record.data_folder)),
              "fingerprint": excerpt(record.fingerprint)},
        splits=[(excerpt(name), count) for name, count in run_findings.split_sizes(record)],
        classes=classes,
        encoding=clean(record.about["encoding"]),
        command=excerpt(run_findings.command(record), MAX_COMMAND_CHARS),
        digest=record.about["sha256"],
        reproducible=run_findings.reproducible(record),
        checkpoint=excerpt(record.checkpoint.name),
        folder=excerpt(shlex.quote(str(record.path))),
        files=_files(record.path),
        seed=record.settings.get("training.seed", "?"),
        limits=run_findings.limits(record, classes),
    )  # fmt: skip


def _files(run: Path) -> list[tuple[str, str, str]]:
    """List the files of a run: name, size and content; only those that are there before the report is written."""
    return [(name, size(disk_space(run / name)), what) for name, what in FILES if (run / name).exists()]


def score_page(scores: AnyScores, classes: list[str], quotes: Sequence[Quote | None], about: dict[str, Any]) -> str:
    """Render the page of ``python -m crepe_dist.evaluate --html``."""
    classes, about = clean(classes), clean(about)
    if isinstance(scores, Scores):
        headline = score_tables.tiles(scores, classes, about["split"])
        headline.append(("loss", f"{scores.loss:.4f}", ["mean cross-entropy, in nats"]))
        values = {"scores": score_tables.view(scores, classes, quotes, about["encoding"]), "labels": None}
    else:
        headline = score_tables.label_tiles(scores, about["split"])
        values = {"labels": score_tables.label_view(scores, classes)}
    return render("evaluation.html", version=__version__, about=about, headline=headline, no_texts="", **values)


def _headline(record: RunRecord, classes: list[str], split: str) -> list[score_tables.Tile]:
    """Return the tiles at the top of the report."""
    history, provenance = record.history, record.made
    if split:
        tiles = score_tables.tiles(record.scores[split], classes, split, run_findings.training_rows(record))
    elif labels := record.label_scores.get("test"):
        tiles = score_tables.label_tiles(labels, "test")
    else:
        tiles = [("test accuracy", percent(record.metrics["test_accuracy"]), [])]
    notes = [counted(len(history.epochs), "epoch")]
    if provenance:
        notes.append(excerpt(f"{counted(provenance['processes'], 'process', 'processes')} on {provenance['device']}"))
    return [*tiles, ("training time", duration(history.seconds), notes)] if history.epochs else tiles


def _figures(record: RunRecord) -> dict[str, str]:
    history = record.history
    if not history.points or not history.epochs:
        return {}
    return {
        "loss": run_figures.loss(history, record.epoch),
        "accuracy": run_figures.accuracy(history, record.epoch, record.measure),
        "rate": run_figures.measured(history, "learning_rate", "learning rate", "Learning rate by step"),
        "speed": run_figures.measured(history, "documents_per_second", "texts/s", "Throughput by step"),
    }


def _settings(settings: dict[str, Any]) -> list[tuple[str, str]]:
    return [(excerpt(str(name)), excerpt("none" if value is None else str(value))) for name, value in settings.items()]
