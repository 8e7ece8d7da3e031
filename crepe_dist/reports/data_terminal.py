"""Report of a data set in the terminal."""

from __future__ import annotations

from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crepe_dist.reports import data_sentences
from crepe_dist.wording import counted, cut, listed, number, percent, size

MAX_CLASSES = 20
MAX_FILES = 3
MAX_WARNINGS = 10
MAX_SYMBOLS = 4
MAX_REASONS = 4
LABEL_CELLS = 32
BAR_CELLS = 30
GAP = 2  # cells between two columns
Summary = dict[str, Any]


def show(
    summary: Summary, symbols: list[dict[str, Any]], reasons: list[tuple[str, int]], report: str, console: Console
) -> None:
    """Print the report."""
    _print(console, summary["name"], "bold")
    _print(console, data_sentences.overview(summary))
    _print(console)
    _show_warnings(summary["warnings"], console)
    _print(console)
    _show_classes(summary, console)
    _print(console)
    grid = _grid()
    for name, sentences in (
        ("rows", [data_sentences.flow(summary)]),
        ("lengths", [data_sentences.lengths(summary), data_sentences.cutting(summary)]),
        ("characters", [data_sentences.characters(summary), _symbols(symbols)]),
        ("duplicates", [*data_sentences.duplicates(summary), *data_sentences.overlaps(summary)]),
        ("unusable", [_reasons(summary, reasons)]),
        ("sources", [_sources(summary["sources"])]),
        ("encoding", [f"{summary['encoding']['mode']}.", *data_sentences.encoding(summary)]),
        ("report", [report]),
    ):
        if text := " ".join(filter(None, sentences)):
            grid.add_row(Text(name, "bold"), Text(text, overflow="fold"))
    _print(console, grid)


def _show_warnings(warnings: list[dict[str, str]], console: Console) -> None:
    if not warnings:
        _print(console, "No warnings.", "green")
    for warning in warnings[:MAX_WARNINGS]:
        _print(console, f"! {warning['what']}", "bold yellow")
        grid = _grid()
        for name in ("why", "do"):
            if warning[name]:
                grid.add_row(f"  {name}", Text(warning[name], overflow="fold"))
        _print(console, grid)
    if len(warnings) > MAX_WARNINGS:
        _print(console, f"! {counted(len(warnings) - MAX_WARNINGS, 'more warning')} in the report")


def _show_classes(summary: Summary, console: Console) -> None:
    splits, totals = data_sentences.splits(summary), data_sentences.totals(summary)
    shown = data_sentences.shown_classes(summary, MAX_CLASSES)
    all_labels = data_sentences.all_labels(summary)
    columns = [["class", *(cut(summary["classes"][index], LABEL_CELLS) for index in shown)]]
    columns += [[split, *(number(summary["parts"][split]["classes"][index]) for index in shown)] for split in splits]
    columns.append(["share", *(percent(totals[index], all_labels) for index in shown)])
    room = min(BAR_CELLS, console.width - sum(max(map(cell_len, column)) + GAP for column in columns))
    if room >= 8:
        largest, full = max([1, *(totals[index] for index in shown)]), "█" if "utf" in console.encoding else "#"
        columns.append(["", *(full * max(round(totals[i] / largest * room), min(totals[i], 1)) for i in shown)])
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
    for index, (heading, *_) in enumerate(columns):
        is_number = 0 < index <= len(splits) + 1
        table.add_column(Text(heading), justify="right" if is_number else "left", no_wrap=is_number)
    for row in zip(*(column[1:] for column in columns)):
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    _print(console, table)
    if len(summary["classes"]) > len(shown):
        _print(console, f"{number(len(summary['classes']) - len(shown))} more, none larger than these")
    for describe in (data_sentences.labels, data_sentences.balance, data_sentences.baseline):
        if sentence := describe(summary):
            _print(console, sentence)


def _symbols(symbols: list[dict[str, Any]]) -> str:
    most = [f"{symbol['shown']} ({number(symbol['count'])})" for symbol in symbols[:MAX_SYMBOLS]]
    return f"The most frequent: {listed(most)}." if most else ""


def _reasons(summary: Summary, reasons: list[tuple[str, int]]) -> str:
    rows = summary["quarantine"]["rows"]
    if not rows:
        return "Every row could be used."
    most = [f"{cut(reason, 200)} ({number(count)})" for reason, count in reasons[:MAX_REASONS]]
    return (
        f"{counted(rows, 'row')}, in quarantine.jsonl{': ' if most else ''}{_and_more(most, len(reasons), 'reason')}."
    )


def _sources(sources: list[dict[str, Any]]) -> str:
    files = [
        f"{cut(source['file'], 100)} ({counted(source['rows'], 'row')}, {size(source['bytes'])}; "
        f"{cut(source['reads'], 100)})"
        for source in sources[:MAX_FILES]
    ]
    return _and_more(files, len(sources), "file")


def _and_more(shown: list[str], count: int, noun: str) -> str:
    rest = [counted(count - len(shown), f"more {noun}")] if count > len(shown) else []
    return listed([*shown, *rest])


def _grid() -> Table:
    table = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True, min_width=10)
    table.add_column(ratio=1)
    return table


def _print(console: Console, content: str | Table = "", style: str = "") -> None:
    """Print a text, in which rich reads no markup, or a table, without trailing spaces, which would wrap when the
    window is made narrower."""
    for line in console.render_lines(
        Text(content, style, overflow="fold") if isinstance(content, str) else content, pad=False
    ):
        text = Text.assemble(*((segment.text, segment.style or "") for segment in line))
        text.rstrip()
        console.print(text, highlight=False, soft_wrap=True)
