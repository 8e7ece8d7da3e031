"""Runs side by side: `page` for the browser, `show` for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crepe_dist.reports import run_figures as figures
from crepe_dist.reports import run_findings
from crepe_dist.reports.page import render
from crepe_dist.reports.uncertainty import interval, mcnemar, paired_interval
from crepe_dist.runs.run_record import RunRecord
from crepe_dist.version import __version__
from crepe_dist.wording import cells, clean, cut, number, percent, visible

Row = tuple[str, list[str]]
NOISE = 0.05  # of a p-value
MOST_CLASSES = 30
NAME = 40  # cells
WIDEST = 26  # column of a run in the terminal
UNKNOWN = "–"


def page(records: Sequence[RunRecord]) -> str:
    """The comparison as HTML that needs no other file. The first run is the one that the others are compared with."""
    names = _names(records)
    histories = [(name, record.history) for name, record in zip(names, records)]
    return render(
        "compare.html",
        version=__version__,
        names=names,
        warnings=warnings(records),
        verdicts=verdicts(records),
        caution=caution(records),
        results=results(records),
        settings=settings(records),
        classes=per_class(records),
        figures={
            "accuracy": figures.compared(histories, "test_accuracy", "right in the test part"),
            "test": figures.compared(histories, "test_loss", "test loss"),
            "train": figures.compared(histories, "train_loss", "train loss"),
        },
    )


def show(records: Sequence[RunRecord], console: Console) -> None:
    """The comparison in the terminal."""

    def text(value: str, style: str = "") -> Text:
        encoding = console.encoding
        return Text(value.encode(encoding, "backslashreplace").decode(encoding), style, overflow="fold")

    short = [f"#{place}" for place in range(1, len(records) + 1)]
    for mark, name in zip(short, _names(records)):
        console.print(Text.assemble((f"{mark:<4}", "bold"), text(name)), soft_wrap=True)
    console.print()
    for title, rows in (("", results(records)), ("settings", settings(records)), ("F1", per_class(records))):
        for places in _side_by_side(rows, console.width):
            table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
            table.add_column(text(title))
            for place in places:
                table.add_column(text(short[place], "bold"), max_width=WIDEST)
            for label, told in rows:
                table.add_row(text(label), *(text(told[place]) for place in places))
            console.print(table)
            console.print()
    for warning in warnings(records):
        console.print(text(f"! {warning}", "bold yellow"), soft_wrap=True)
    for verdict in verdicts(records):
        console.print(text(verdict), soft_wrap=True)
    console.print(text(caution(records)), soft_wrap=True)


def _side_by_side(rows: list[Row], width: int) -> list[list[int]]:
    """The runs in groups whose columns have room beside each other in a terminal."""
    if not rows:
        return []
    space = 2
    labels = max(cells(label) for label, _ in rows) + space
    groups: list[list[int]] = []
    left = 0
    for place in range(len(rows[0][1])):
        column = min(WIDEST, max(cells(told[place]) for _, told in rows)) + space
        if column > left:
            groups.append([])
            left = width - labels
        groups[-1].append(place)
        left -= column
    return groups


def results(records: Sequence[RunRecord]) -> list[Row]:
    """What came out, a row for each figure and a cell for each run."""
    rows: list[tuple[str, Callable[[RunRecord], str]]] = [
        ("test accuracy", lambda run: percent(run.metrics["test_accuracy"])),
        ("95 % interval", _interval),
        ("test loss", lambda run: f"{run.metrics['test_loss']:.4f}"),
        ("validation accuracy", lambda run: _metric(run, "validation_accuracy", percent)),
        ("mean F1", lambda run: _metric(run, "test_macro_f1", "{:.3f}".format)),
        ("calibration error", lambda run: _metric(run, "test_calibration_error", percent)),
        ("train loss", lambda run: f"{run.metrics['train_loss']:.4f}"),
        ("reported epoch", lambda run: f"{run.epoch}" + ("" if run.result else " (not finished)")),
        ("chosen by", lambda run: str((run.result or {}).get("chosen_by", UNKNOWN))),
        ("epochs", lambda run: number(len(run.history.epochs))),
        ("training time", lambda run: run_findings.duration(run.history.seconds) if run.history.epochs else UNKNOWN),
        ("parameters", lambda run: _made(run, "parameters")),
        ("processes", lambda run: _made(run, "processes")),
        ("computes in", lambda run: _made(run, "computes").partition(" (")[0]),
        ("data", lambda run: run.about["data"]["name"]),
    ]
    made = [(label, [visible(of(record)) for record in records]) for label, of in rows]
    return [(label, cells) for label, cells in made if set(cells) != {UNKNOWN}]


def settings(records: Sequence[RunRecord]) -> list[Row]:
    """The settings that are not the same in all runs."""
    names = list(dict.fromkeys(name for record in records for name in record.settings))
    rows = []
    for name in names:
        values = [record.settings.get(name, UNKNOWN) for record in records]
        if any(value != values[0] for value in values):
            rows.append((visible(name), [visible("none" if value is None else str(value)) for value in values]))
    return rows


def per_class(records: Sequence[RunRecord]) -> list[Row]:
    """F1 of each class, those that differ most first; none if the classes are not the same."""
    scores = [record.scores.get("test") for record in records]
    if any(score is None for score in scores) or any(record.classes != records[0].classes for record in records):
        return []
    values = np.array([score.f1 for score in scores if score is not None])
    order = np.argsort(-(values.max(axis=0) - values.min(axis=0)), kind="stable")[:MOST_CLASSES].tolist()
    classes = clean(records[0].classes)
    tested = [score.confusion.any(axis=1) for score in scores if score is not None]
    return [
        (
            cut(classes[index], NAME),
            [f"{value:.3f}" if has[index] else UNKNOWN for value, has in zip(values[:, index], tested)],
        )
        for index in order
    ]


def warnings(records: Sequence[RunRecord]) -> list[str]:
    """Why the figures may not be comparable."""
    first, (first_name, *names) = records[0], _names(records)
    found = []
    for name, record in zip(names, records[1:]):
        if not record.is_tested_like(first):
            found.append(f"{name} was tested on other documents than {first_name}: the scores do not compare")
        elif record.fingerprint != first.fingerprint:
            found.append(f"{name} was trained on other data than {first_name}, and tested on the same documents")
    return found


def verdicts(records: Sequence[RunRecord]) -> list[str]:
    """Of each run beside the first, whether the difference of their accuracies is more than noise."""
    names = _names(records)
    return [_verdict(names[0], records[0], name, record) for name, record in list(zip(names, records))[1:]]


def caution(records: Sequence[RunRecord]) -> str:
    says = "That is the chance that lies in the choice of test documents. Another seed gives another result, too: "
    says += "train each with several (--training.seed) before a small difference is believed."
    if len(records) > 2:
        says += " Where many are compared, about one pair of equals in 20 looks different."
    return says


def _verdict(name: str, first: RunRecord, other_name: str, other: RunRecord) -> str:
    difference = other.metrics["test_accuracy"] - first.metrics["test_accuracy"]
    how = "equal to" if not difference else "better than" if difference > 0 else "worse than"
    says = f"{other_name} is {how} {name}" + (f" by {100 * abs(difference):.2f} points" if difference else "")
    if not other.is_tested_like(first):
        return f"{says}, but on other test documents: that says nothing of the models."
    mine, theirs = first.scores.get("test"), other.scores.get("test")
    if mine is None or theirs is None:
        return f"{says}; an older version trained one of them and did not count how much of that may be chance."
    if mine.right is None or theirs.right is None or len(mine.right) != len(theirs.right):
        (low, high), (their_low, their_high) = (
            interval(round(each.accuracy * each.documents), each.documents) for each in (mine, theirs)
        )
        apart = high < their_low or their_high < low
        return f"{says}; " + (
            "the 95 % intervals do not overlap: more than noise."
            if apart
            else "the 95 % intervals overlap: that may be noise."
        )
    only_first, only_other = int((mine.right & ~theirs.right).sum()), int((theirs.right & ~mine.right).sum())
    p = mcnemar(only_first, only_other)
    low, high = paired_interval(only_first, only_other, len(mine.right))
    return (
        f"{says} (95 % interval of the difference: {100 * low:+.2f} to {100 * high:+.2f}). Of the same "
        f"{number(len(mine.right))} test documents, {number(only_other)} are right in {other_name} alone and "
        f"{number(only_first)} in {name} alone (McNemar's test: p {_p(p)}): "
        + ("more than noise." if p < NOISE else "that may be noise.")
    )


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _interval(record: RunRecord) -> str:
    scores = record.scores.get("test")
    if scores is None:
        return UNKNOWN
    low, high = interval(round(scores.accuracy * scores.documents), scores.documents)
    return f"{percent(low)} – {percent(high)}"


def _metric(record: RunRecord, name: str, form: Callable[[float], str]) -> str:
    return form(record.metrics[name]) if name in record.metrics else UNKNOWN


def _made(record: RunRecord, name: str) -> str:
    value = record.made.get(name)
    return UNKNOWN if value is None else number(value) if type(value) is int else str(value)


def _names(records: Sequence[RunRecord]) -> list[str]:
    """What to call the runs: the names of their folders, or their paths where two are called alike."""
    names = [record.name for record in records]
    paths = names if len(set(names)) == len(names) else [str(record.path) for record in records]
    return [visible(name, 80) for name in paths]
