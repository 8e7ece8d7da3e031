"""Comparison of several runs in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crepe_dist import invocation
from crepe_dist.reports.uncertainty import interval, mcnemar, paired_interval
from crepe_dist.runs.checkpoint import AnyScores
from crepe_dist.runs.run_record import RunRecord
from crepe_dist.runs.scores import Counts, Scores
from crepe_dist.wording import cells, clean, cut, duration, excerpt, number, percent


class Row(NamedTuple):
    """Row of a table with one cell per run; ``best`` has the indices of the best ones."""

    label: str
    cells: list[str]
    best: frozenset[int] = frozenset()


SIGNIFICANCE = 0.05  # p-value below which a difference counts as significant
MAX_CLASSES = 30
MAX_CONFUSIONS = 10
HALF_CELLS = 24  # width of a class name in a confusion
NAME_CELLS = 40  # width of a class name
MAX_PATH_CHARS = 300
COLUMN_CELLS = 26  # width of a run's column in the terminal
UNKNOWN = "–"


def show(records: Sequence[RunRecord], console: Console) -> None:
    """Print the comparison in the terminal."""
    marks = [f"#{number}" for number in range(1, len(records) + 1)]
    for mark, name in zip(marks, _names(records)):
        console.print(Text.assemble((f"{mark:<4}", "bold"), name), soft_wrap=True)
    console.print()
    tables = (
        ("", results(records)),
        ("settings", settings(records)),
        ("F1", per_class(records)),
        ("confusions: true → predicted", confusions(records)),
    )
    for title, rows in tables:
        rows = [_with_stars(row) for row in rows]
        for group in _side_by_side(rows, console.width):
            table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
            table.add_column(Text(title))
            for index in group:
                table.add_column(Text(marks[index], "bold"), max_width=COLUMN_CELLS)
            for row in rows:
                shown = (
                    Text(row.cells[index], "bold green" if index in row.best else "", overflow="fold")
                    for index in group
                )
                table.add_row(Text(row.label, overflow="fold"), *shown)
            console.print(table)
            console.print()
    if any(row.best for _, rows in tables for row in rows):
        console.print("* the best of its row")
    for warning in warnings(records):
        console.print(Text(f"! {warning}", "bold yellow"), soft_wrap=True)
    for sentence in [*verdicts(records), caution(records)]:
        console.print(Text(sentence), soft_wrap=True)


def _with_stars(row: Row) -> Row:
    """Mark the best cells of a row, which colour alone would not in a pipe."""
    return row._replace(cells=[f"{cell} *" if i in row.best else cell for i, cell in enumerate(row.cells)])


def _side_by_side(rows: list[Row], width: int) -> list[list[int]]:
    """Group the indices of the runs so that the columns of one group fit into the terminal."""
    if not rows:
        return []
    space = 2
    labels = max(cells(row.label) for row in rows) + space
    groups: list[list[int]] = []
    left = 0
    for index in range(len(rows[0].cells)):
        column = min(COLUMN_CELLS, max(cells(row.cells[index]) for row in rows)) + space
        if column > left:
            groups.append([])
            left = width - labels
        groups[-1].append(index)
        left -= column
    return groups


def results(records: Sequence[RunRecord]) -> list[Row]:
    """Tabulate the results: one row per figure, one cell per run."""
    table = [
        _measured(records, f"test {_measure(records)}", "test_accuracy", percent, higher=True),
        Row("95 % interval", [_interval(record) for record in records]),
        _measured(records, "test loss", "test_loss", "{:.4f}".format, higher=False),
        _measured(records, f"validation {_measure(records)}", "validation_accuracy", percent, higher=True),
        _measured(records, "macro F1", "test_macro_f1", "{:.3f}".format, higher=True),
        _measured(records, "mean average precision", "test_mean_average_precision", "{:.3f}".format, higher=True),
        _measured(records, "calibration error", "test_calibration_error", percent, higher=False),
        _measured(records, "train loss", "train_loss", "{:.4f}".format, higher=None),
        Row("reported epoch", [str(run.epoch) + ("" if run.result else " (not finished)") for run in records]),
        Row("chosen by", [str((run.result or {}).get("chosen_by", UNKNOWN)) for run in records]),
        Row("epochs", [number(len(run.history.epochs)) for run in records]),
        Row("training time", [duration(run.history.seconds) if run.history.epochs else UNKNOWN for run in records]),
        Row("parameters", [_provenance(run, "parameters") for run in records]),
        Row("processes", [_provenance(run, "processes") for run in records]),
        Row("precision", [_provenance(run, "computes").partition(" (")[0] for run in records]),
        Row("data", [run.about["data"]["name"] for run in records]),
    ]
    rows = [row._replace(cells=[excerpt(cell) for cell in row.cells]) for row in table]
    return [row for row in rows if set(row.cells) != {UNKNOWN}]


def settings(records: Sequence[RunRecord]) -> list[Row]:
    """Tabulate the settings that differ between the runs."""
    names = list(dict.fromkeys(name for record in records for name in record.settings))
    rows = []
    for name in names:
        values = [record.settings.get(name, UNKNOWN) for record in records]
        if any(value != values[0] for value in values):
            rows.append(Row(excerpt(name), [excerpt("none" if value is None else str(value)) for value in values]))
    return rows


def per_class(records: Sequence[RunRecord]) -> list[Row]:
    """Tabulate F1 by class, largest differences first; empty if the runs have different classes."""
    scores = _scores(records)
    if not scores:
        return []
    f1, tested = (np.array(values) for values in zip(*((score.f1, score.tested) for score in scores)))
    order = np.argsort(-(f1.max(axis=0) - f1.min(axis=0)), kind="stable")[:MAX_CLASSES].tolist()
    classes = clean(records[0].classes)
    rows = []
    for index in order:
        values = [float(value) if has else None for value, has in zip(f1[:, index], tested[:, index])]
        cells = [UNKNOWN if value is None else f"{value:.3f}" for value in values]
        rows.append(Row(cut(classes[index], NAME_CELLS), cells, _best(records, values)))
    return rows


def confusions(records: Sequence[RunRecord]) -> list[Row]:
    """Tabulate the confusions whose counts differ most; empty if the test texts or the classes differ."""
    matrices = _confusions(records)
    if not matrices:
        return []
    counts = np.array(matrices)
    spread = counts.max(axis=0) - counts.min(axis=0)
    np.fill_diagonal(spread, 0)
    classes = clean(records[0].classes)
    rows = []
    for cell in np.argsort(-spread, axis=None, kind="stable")[:MAX_CONFUSIONS].tolist():
        true, predicted = divmod(cell, len(classes))
        if spread[true, predicted]:
            texts = counts[:, true, predicted].tolist()
            label = f"{cut(classes[true], HALF_CELLS)} → {cut(classes[predicted], HALF_CELLS)}"
            rows.append(Row(label, [number(count) for count in texts], _best(records, [-count for count in texts])))
    return rows


def _scores(records: Sequence[RunRecord]) -> list[AnyScores]:
    """Return the test scores of runs with the same classes; empty if the classes differ or scores are missing."""
    tested = [record.scores if record.scores else record.label_scores for record in records]
    same = all(record.classes == records[0].classes for record in records) and len({*map(type, tested)}) == 1
    return [scores["test"] for scores in tested] if same and all("test" in scores for scores in tested) else []


def _confusions(records: Sequence[RunRecord]) -> list[Counts]:
    """Return the confusion matrices of runs that were tested on the same texts of one class each; else nothing."""
    scores = _scores(records) if _is_comparable(records) else []
    return [score.confusion for score in scores if isinstance(score, Scores)]


def _measure(records: Sequence[RunRecord]) -> str:
    """Name what the runs call accuracy."""
    return " or ".join(dict.fromkeys(record.measure for record in records))


def _is_comparable(records: Sequence[RunRecord]) -> bool:
    return all(record.is_tested_like(records[0]) for record in records)


def _measured(
    records: Sequence[RunRecord], label: str, name: str, form: Callable[[float], str], *, higher: bool | None
) -> Row:
    """Make the row of a metric; ``higher`` or lower is better, or neither (``None``)."""
    values = [record.metrics.get(name) for record in records]
    texts = [UNKNOWN if value is None else form(value) for value in values]
    if higher is None:
        return Row(label, texts)
    return Row(label, texts, _best(records, [value if higher or value is None else -value for value in values]))


def _best(records: Sequence[RunRecord], values: Sequence[float | None]) -> frozenset[int]:
    """Return the indices of the highest values; none if all are equal or the runs had different test texts."""
    known = {value for value in values if value is not None}
    if len(known) < 2 or not _is_comparable(records):
        return frozenset()
    return frozenset(index for index, value in enumerate(values) if value == max(known))


def warnings(records: Sequence[RunRecord]) -> list[str]:
    """Return the reasons why the figures may not be comparable."""
    first, (first_name, *names) = records[0], _names(records)
    sentences = []
    for name, record in zip(names, records[1:]):
        if not record.is_tested_like(first):
            sentences.append(
                f"{name} was tested on different documents or labels than {first_name}: the scores cannot be compared; "
                f"score both on one data set: {invocation.typed('evaluate')} RUN --data DIR"
            )
        elif record.measure != first.measure:
            sentences.append(
                f"{name} gives several labels or {first_name} does, but not both: the scores are not comparable"
            )
        elif record.fingerprint != first.fingerprint:
            sentences.append(
                f"{name} was trained on different data than {first_name}, but tested on the same documents"
            )
    return sentences


def verdicts(records: Sequence[RunRecord]) -> list[str]:
    """Say for each run whether its accuracy differs significantly from the accuracy of the first."""
    names = _names(records)
    return [_verdict(names[0], records[0], name, record) for name, record in list(zip(names, records))[1:]]


def caution(records: Sequence[RunRecord]) -> str:
    """Name the sources of chance that the verdicts do not account for."""
    text = "The intervals only account for the choice of test documents. The random seed changes the result, too: "
    text += "train each configuration with several seeds (--seed) before you trust a small difference."
    if len(records) > 2:
        text += " Among many comparisons, about 1 in 20 pairs of equally good models looks different."
    return text


def _verdict(name: str, first: RunRecord, second_name: str, second: RunRecord) -> str:
    difference = second.metrics["test_accuracy"] - first.metrics["test_accuracy"]
    how = "higher" if difference > 0 else "lower"
    verdict = f"The test {first.measure} of {second_name} is " + (
        f"{100 * abs(difference):.2f} points {how} than that of {name}" if difference else f"that of {name}"
    )
    if not second.is_tested_like(first):
        return f"{verdict}, but the test documents or their labels differ, so this says nothing about the models."
    scores = _scores([first, second])
    first_hits, second_hits = (score.right for score in scores) if scores else (None, None)
    if first_hits is None or second_hits is None or len(first_hits) != len(second_hits):
        return f"{verdict}; the significance is unknown, because there are no scores by document."
    only_first, only_second = int((first_hits & ~second_hits).sum()), int((second_hits & ~first_hits).sum())
    documents = f"{number(len(first_hits))} test documents"
    if not only_first and not only_second:
        return f"{verdict}: both classify the same of the {documents} correctly."
    p = mcnemar(only_first, only_second)
    test = f"(McNemar's test: p {_p(p)}): the difference {'is significant' if p < SIGNIFICANCE else 'may be chance'}."
    if first.label_scores:  # right are documents with all their labels and no other
        return (
            f"{verdict}. Of the same {documents}, only {second_name} gives all labels of {number(only_second)} and no "
            f"other, and only {name} of {number(only_first)} {test}"
        )
    low, high = paired_interval(only_first, only_second, len(first_hits))
    return (
        f"{verdict} (95 % interval of the difference: {100 * low:+.2f} to {100 * high:+.2f}). Of the same {documents}, "
        f"only {second_name} classifies {number(only_second)} correctly and only {name} {number(only_first)} {test}"
    )


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _interval(record: RunRecord) -> str:
    scores = record.scores.get("test")
    if scores is None:
        return UNKNOWN
    low, high = interval(round(scores.accuracy * scores.documents), scores.documents)
    return f"{percent(low)} – {percent(high)}"


def _provenance(record: RunRecord, name: str) -> str:
    value = record.made.get(name)
    return UNKNOWN if value is None else number(value) if type(value) is int else str(value)


def _names(records: Sequence[RunRecord]) -> list[str]:
    """Return the names of the runs, with the path of each whose name is not unique."""
    names = [record.name for record in records]
    paths = [f"{record.given_name} ({record.path})" if record.given_name else str(record.path) for record in records]
    return [excerpt(name if names.count(name) == 1 else path, MAX_PATH_CHARS) for name, path in zip(names, paths)]
