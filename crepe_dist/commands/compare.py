"""Command that compares runs in one table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from crepe_dist import invocation
from crepe_dist.errors import UserError
from crepe_dist.formatting import duration, excerpt, percent
from crepe_dist.reports.score_page import accuracy_interval, paired_half_width
from crepe_dist.runs.record import RunRecord, open_run
from crepe_dist.settings.fields import PATH_ARGUMENT, Repeated, setting
from crepe_dist.settings.flags import Command

UNKNOWN = "–"  # Cell of an unknown value.
MAX_VALUE_CHARS = 40  # Maximum length of a setting's value in the table, in characters.


@dataclass
class Compare(Command):
    """Compare the test scores and the settings of runs in a table, with 95 % intervals.

    The first run is the baseline of the differences.
    """

    usage = """
        crepe compare runs/reviews-1f2e3d4c5b runs/reviews-6a7b8c9d0e
        crepe compare runs/reviews-*
        """

    folders: tuple[Path, ...] = setting((), "Run folders, at least two.", Repeated(PATH_ARGUMENT), positional="+")

    def run(self) -> None:
        if len(self.folders) < 2:
            raise UserError("one run cannot be compared", remedy="name at least two runs")
        show([open_run(path) for path in self.folders], Console(highlight=False))


def show(records: Sequence[RunRecord], console: Console) -> None:
    """Print the comparison. The first run is the baseline."""
    measures = " or ".join(dict.fromkeys(record.score_name for record in records))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("run", f"test {measures}", "95 %", "difference", "macro F1", "loss", "time"):
        table.add_column(Text(heading), overflow="fold", no_wrap=heading != "run")
    for record in records:
        table.add_row(*(Text(cell, overflow="fold") for cell in row(record, records[0])))
    console.print(table)
    notes = [f"{excerpt(record.name)}: {differences(record, records[0])}" for record in records[1:]]
    if not all(record.has_same_test_split(records[0]) for record in records):
        notes.append(
            "! the runs were tested on different texts or labels: score them on one data set, "
            f"{invocation.command_line('evaluate')} RUN --data DIR"
        )
    if any((scores := record.multiclass_test_scores) and scores.num_groups for record in records):
        notes.append("The 95 % intervals of runs on data with groups are over groups of texts, not over texts.")
    notes.append(
        "Differences are from the first run, in points. The 95 % intervals account for the choice of test texts, not "
        "for the random seed."
    )
    for note in notes:
        console.print(note, soft_wrap=True, markup=False)


def row(record: RunRecord, baseline: RunRecord) -> list[str]:
    """Return the cells of a run's row in the table."""
    scores, metrics = record.multiclass_test_scores, record.metrics
    bounds = accuracy_interval(scores) if scores else None
    macro_f1, seconds = metrics.get("test_macro_f1"), record.history.seconds
    return [
        excerpt(record.name) + ("" if record.result else " (not finished)"),
        percent(metrics["test_accuracy"]),
        f"{100 * bounds[0]:.1f}–{100 * bounds[1]:.1f}" if bounds else UNKNOWN,
        UNKNOWN if record is baseline else _difference(record, baseline),
        UNKNOWN if macro_f1 is None else f"{macro_f1:.3f}",
        f"{metrics['test_loss']:.4f}",
        duration(seconds) if seconds else UNKNOWN,
    ]


def differences(record: RunRecord, baseline: RunRecord) -> str:
    """List the settings of a run that differ from the settings of the baseline."""
    names = dict.fromkeys([*baseline.settings, *record.settings])
    pairs = [(name, record.settings.get(name), baseline.settings.get(name)) for name in names]
    different = [f"{name} {excerpt(str(value), MAX_VALUE_CHARS)}" for name, value, first in pairs if value != first]
    return ", ".join(different) or "the same settings"


def _difference(record: RunRecord, baseline: RunRecord) -> str:
    """Format the difference between the accuracies of two runs, in percentage points.

    If the predictions of both runs are stored, half the width of the 95 % confidence interval follows the difference.
    If the texts have groups, it is left out, because it would need the group of each text.
    If the runs were tested on different texts, return ``UNKNOWN``.
    """
    if not record.has_same_test_split(baseline) or record.score_name != baseline.score_name:
        return UNKNOWN
    points = f"{100 * (record.metrics['test_accuracy'] - baseline.metrics['test_accuracy']):+.2f}"
    scores = baseline.multiclass_test_scores, record.multiclass_test_scores
    has_groups = any(split_scores and split_scores.num_groups is not None for split_scores in scores)
    first, second = (None if split_scores is None else split_scores.is_correct for split_scores in scores)
    if first is None or second is None or has_groups:
        return points
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    return f"{points} ± {100 * paired_half_width(only_first, only_second, len(second)):.2f}"
