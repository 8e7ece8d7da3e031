"""Report of a run, ``report.html``, with its training curves.

This module also writes the model card, which ``model_card.py`` renders. ``score_page.py`` computes the section
"Scores". The sentences and the warnings are in ``findings.py``, because the model card and the terminal also show them.
"""

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from crepe_dist.data.dataset import REPORT_NUMBERS, Dataset
from crepe_dist.errors import UserError
from crepe_dist.files.atomic_write import write_text
from crepe_dist.files.json_file import read_json
from crepe_dist.formatting import duration, escape_nested, excerpt, percent, pluralize, size
from crepe_dist.reports import data_page, drawing, findings
from crepe_dist.reports.model_card import CARD, MAX_COMMAND_CHARS, render_model_card
from crepe_dist.reports.page import render
from crepe_dist.reports.score_page import QuotedRow, Tile, quote_rows, summary_tiles, template_values
from crepe_dist.runs.checkpoint import CONFIG, RESULT
from crepe_dist.runs.metrics import History
from crepe_dist.runs.record import RunRecord, open_run
from crepe_dist.runs.run_dir import RunDir, disk_usage
from crepe_dist.runs.scores import AnyScores
from crepe_dist.version import __version__

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REPORT = "report.html"
# Exceptions that reading a damaged summary of the data set can raise.
MALFORMED = (OSError, ValueError, KeyError, TypeError, AttributeError)
FILES = (
    ("checkpoints/", "parameters and scores of the selected epoch and, without a refit, of the last epoch"),
    ("state/", "resume state of an unfinished run"),
    ("supervised/", "supervised model, which was trained only on the labelled texts"),
    ("pseudo_labels/", "pseudo labels of the unlabelled texts"),
    ("metrics.jsonl", "metrics of every step and every epoch"),
    ("tensorboard/", "metrics for TensorBoard"),
    ("mlflow.id", "id of the run in MLflow"),
    ("wandb.id", "id of the run in Weights & Biases"),
    ("wandb/", "records for Weights & Biases"),
    ("config.yaml", "settings"),
    ("result.json", "selected epoch, its scores and its provenance"),
)
MARKERS = {"validation": "s", "test": "o"}  # Markers of the points of a split's curve.
MIN_SMOOTHED = 20  # A curve with fewer points than this is not smoothed.
SPAN = 15  # On each side of a point, the moving average includes 1 / SPAN of all points.
MIN_SPAN = 0.04  # Minimum range of an accuracy axis, so that random differences look small.
NEARLY_ZERO = 0.25  # If an accuracy axis would start below this value, it starts at 0.


def write_for(folder: RunDir, data: Dataset, say: Callable[[str], None]) -> Iterator[None]:
    """Write the report of a finished run, and print its warnings.

    If the report is already newer than the result and the settings, it is not written again. The generator yields
    between its steps, so that the caller can do other work.

    Args:
        folder: Run folder.
        data: Training data.
        say: Function that prints a message.
    """
    if _is_current(folder):
        return
    try:
        record = open_run(folder.path)
        for warning in findings.warnings(record, data.classes):
            say(UserError(warning["what"], warning["why"]).format_lines("note"))
        yield from _write_report(record, data)
    except Exception as error:
        say(
            f"the report could not be written ({type(error).__name__}: {error}); the run itself is complete\n"
            "  do:  run the same command again"
        )
    else:
        say(str(folder.path / REPORT))


def _is_current(folder: RunDir) -> bool:
    sources = [folder.path / name for name in (RESULT, CONFIG)]
    changed = max(path.stat().st_mtime_ns for path in sources if path.is_file())
    pages = [folder.path / name for name in (REPORT, CARD)]
    return all(page.is_file() and page.stat().st_mtime_ns >= changed for page in pages)


def _write_report(record: RunRecord, data: Dataset) -> Iterator[None]:
    """Write the report and the model card into the run folder. Yield before each of the two files."""
    texts: list[QuotedRow | None] = []
    warnings: list[dict[str, str]] = []
    facts_for_users: list[str] = []
    if (scores := record.multiclass_test_scores) is not None:
        texts = quote_rows(data, "test", [mistake.row for mistake in scores.mistakes])
    with suppress(*MALFORMED):
        summary = read_json(data.folder / REPORT_NUMBERS, follow=False)
        warnings = [{key: str(warning[key]) for key in ("what", "why", "do")} for warning in summary["warnings"]]
        facts = data_page.facts(summary)
        facts_for_users = [*facts["characters"], *facts["lengths"]]
    yield
    write_text(record.path / REPORT, page(record, texts, warnings))
    yield
    data_problems = [f"{warning['what']} ({warning['why']})" for warning in warnings]
    write_text(record.path / CARD, render_model_card(record, [*facts_for_users, *data_problems]))


def page(
    record: RunRecord,
    quotes: Sequence[QuotedRow | None],
    data_warnings: Sequence[dict[str, str]] = (),
) -> str:
    """Render the report of a run as a self-contained HTML page.

    Args:
        record: Record of the run.
        quotes: Texts of the worst mistakes on the test split.
        data_warnings: Warnings of ``prepare`` about the data set.
    """
    classes, encoding = escape_nested(record.classes), escape_nested(record.metadata["encoding"])
    scores = record.test_scores
    about_data = [{**warning, "what": f"data: {warning['what']}"} for warning in data_warnings]
    return render(
        "run.html",
        name=excerpt(record.name),
        version=__version__,
        headline=_headline(record, classes, scores),
        choice=findings.describe_selection(record),
        training=excerpt(findings.training(record)),
        unlabelled=escape_nested(record.provenance.get("unlabelled")),
        network=excerpt(findings.network(record)),
        warnings=escape_nested([*findings.warnings(record, classes), *about_data]),
        history=record.history,
        scores=template_values(scores, classes, quotes, encoding) if scores else None,
        measure=record.score_name,
        has_validation="validation_accuracy" in record.metrics,
        figures=_curves(record.history, record.epoch, record.score_name),
        changed=_settings(record.non_default_settings()),
        settings=_settings(record.settings),
        provenance=escape_nested(record.provenance),
        data={"name": excerpt(record.metadata["data"]["name"]), "folder": excerpt(str(record.data_folder)),
              "fingerprint": excerpt(record.fingerprint)},
        splits=[(excerpt(name), count) for name, count in findings.split_sizes(record).items()],
        classes=classes,
        encoding=encoding,
        command=excerpt(findings.command(record), MAX_COMMAND_CHARS),
        digest=record.metadata["sha256"],
        reproducible=findings.reproducible(record),
        checkpoint=excerpt(record.checkpoint.name),
        folder=excerpt(shlex.quote(str(record.path))),
        files=[(name, size(disk_usage(path)), text) for name, text in FILES if (path := record.path / name).exists()],
        limits=findings.describe_limits(record, classes),
    )  # fmt: skip


def _headline(record: RunRecord, classes: list[str], scores: AnyScores | None) -> list[Tile]:
    """Return the tiles at the top of the report."""
    history, provenance = record.history, record.provenance
    tiles: list[Tile] = [("test accuracy", percent(record.metrics["test_accuracy"]), [])]
    if scores:
        tiles = summary_tiles(scores, classes, "test", findings.training_rows(record))
    notes = [pluralize(len(history.epochs), "epoch")]
    if provenance:
        processes = pluralize(provenance["processes"], "process", "processes")
        notes.append(excerpt(f"{processes} on {provenance['device']}"))
    return [*tiles, ("training time", duration(history.seconds), notes)] if history.epochs else tiles


def _settings(settings: dict[str, Any]) -> list[tuple[str, str]]:
    return [(excerpt(str(name)), excerpt("none" if value is None else str(value))) for name, value in settings.items()]


def _curves(history: History, reported: int, measure: str) -> dict[str, str]:
    """Draw the training curves. Return the SVG of each curve by name. Empty if the run has no step or no epoch."""
    if not history.points or not history.epochs:
        return {}
    return {"loss": _loss_curves(history, reported), "accuracy": accuracy_curves(history, reported, measure)}


def _loss_curves(history: History, reported: int) -> str:
    """Plot the raw and the smoothed training loss by step, and the validation and test loss by epoch."""
    with drawing.style():
        figure, axes = _axes("loss", history)
        steps = [point.step for point in history.points]
        means = [point.mean for point in history.points]
        if history.steps_per_point > 1:
            lows, highs = [point.low for point in history.points], [point.high for point in history.points]
            axes.fill_between(steps, lows, highs, color=drawing.SKY, alpha=0.25, linewidth=0)
        if len(means) >= MIN_SMOOTHED:
            axes.plot(steps, means, color=drawing.SKY, linewidth=0.9, alpha=0.5)
        axes.plot(steps, _smoothed(means), color=drawing.BLUE, linewidth=1.6, label="train")
        _epochs(axes, history, "loss", reported)
        _marks(axes, history)
        axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
        # The losses of the first steps are often much higher than the others. The axis clips them, so that the rest of
        # the curve is legible.
        ordered = sorted(means)
        top = 2 * ordered[int(0.9 * (len(ordered) - 1))]
        if means[0] > top:
            axes.set_ylim(top=top)
            axes.set_ylabel(f"loss (clipped, highest {ordered[-1]:.2f})")
        _legend(axes)
        return drawing.svg(figure, "Train loss by step, validation and test loss by epoch")


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return the moving average of the values. If there are fewer than ``MIN_SMOOTHED``, return them unchanged."""
    if len(values) < MIN_SMOOTHED:
        return list(values)
    window = np.hanning(2 * (len(values) // SPAN) + 3)
    counts = np.convolve(np.ones(len(values)), window, "same")
    return [float(mean) for mean in np.convolve(values, window, "same") / counts]


def accuracy_curves(history: History, reported: int | None = None, measure: str = "accuracy") -> str:
    """Plot the validation and test accuracy by epoch."""
    with drawing.style():
        figure, axes = _axes(measure, history)
        _epochs(axes, history, "accuracy", reported)
        _marks(axes, history)
        low, high = axes.dataLim.intervaly
        start = 0.0 if low < NEARLY_ZERO else min(math.floor(50 * low) / 50, 1 - MIN_SPAN)
        axes.set_ylim(start, min(1.005, max(high + 0.05 * (high - start), start + MIN_SPAN)))
        axes.yaxis.set_major_locator(drawing.locator(4, integer=False))
        drawing.label_with_percents(axes.yaxis)
        if start:
            axes.set_ylabel(f"{measure} (axis from {100 * start:.3g} %)")
        _legend(axes)
        return drawing.svg(figure, f"Validation and test {measure} by epoch")


def _axes(label: str, history: History) -> tuple["Figure", "Axes"]:
    """Create axes over steps, with space for a legend above them."""
    top = 0.5 if history.resume_steps else 0.3
    figure, axes = drawing.blank(2.2 + top, left=0.75, right=0.1, top=top, bottom=0.45)
    axes.set_ylabel(label)
    axes.set_xlabel("steps", loc="right")
    axes.grid(axis="y")
    axes.set_xlim(0, 1.02 * history.points[-1].step)
    axes.xaxis.set_major_locator(drawing.locator(6))
    drawing.label_with_counts(axes.xaxis)
    return figure, axes


def _epochs(axes: "Axes", history: History, score: str, reported: int | None) -> None:
    for split, marker in MARKERS.items():
        key = f"{split}_{score}"
        points = [(epoch["step"], epoch[key]) for epoch in history.epochs if key in epoch]
        if points:
            colour, _ = drawing.PALETTE[drawing.SPLIT_COLOURS[split]]
            axes.plot(*zip(*points), color=colour, marker=marker, markersize=3.5, linewidth=1.3, label=split)
    steps = [record["step"] for record in history.epochs if record["epoch"] == reported]
    if steps:
        axes.axvline(steps[-1], color=drawing.GREY, linestyle="--", linewidth=1, label="selected")


def _marks(axes: "Axes", history: History) -> None:
    """Mark the steps where the run was resumed."""
    for index, step in enumerate(history.resume_steps):
        axes.axvline(step, color=drawing.GREY, linestyle=":", linewidth=1, label="resumed" if not index else None)


def _legend(axes: "Axes") -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderpad=0, borderaxespad=0.4, handlelength=1.4,
                columnspacing=1.2)  # fmt: skip
