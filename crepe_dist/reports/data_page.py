"""Report of a prepared data set: ``page`` for the browser, ``show`` for the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console

from crepe_dist import extras, wording
from crepe_dist.reports import data_figures, data_sentences, data_terminal
from crepe_dist.reports.page import render

MAX_COMMAND_CHARS = 20_000
MAX_TERMINAL_CHARS = 300  # of one text
MAX_SHOWN = {"table": 2000, "examples": 50, "open": 6, "files": 20, "reasons": 20}


def page(summary: dict[str, Any]) -> str:
    """Render the report as a self-contained HTML page.

    Args:
        summary: JSON-able summary made by ``python -m crepe_dist.prepare``. Its texts are untrusted.
    """
    # The command is long, but a truncated one could not be repeated.
    clean = {**wording.clean(summary), "command": wording.excerpt(summary["command"], MAX_COMMAND_CHARS)}
    return render(
        "data.html",
        summary=clean,
        sentences=data_sentences,
        most=MAX_SHOWN,
        splits=data_sentences.splits(clean),
        totals=data_sentences.totals(clean),
        rows=data_sentences.shown_classes(clean, MAX_SHOWN["table"]),
        bars=data_figures.MAX_BARS,
        symbols=_symbols(summary),
        reasons=_by_count(clean["quarantine"]["reasons"]),
        figures={
            "rows": data_figures.rows(clean),
            "classes": data_figures.classes(clean),
            "lengths": data_figures.lengths(clean),
        },
    )


def optional_page() -> Callable[[dict[str, Any]], str] | None:
    """Return ``page``, or ``None`` if its libraries are not installed."""
    return None if extras.missing("reports") else page


def show(summary: dict[str, Any], console: Console, folder: str) -> None:
    """Print a short version of the report; ``folder`` contains the full one as ``report.html``, if it was written."""
    report = extras.left_out("reports", "page") or f"{wording.excerpt(folder).rstrip('/')}/report.html"
    clean = wording.clean(summary, MAX_TERMINAL_CHARS)
    reasons = _by_count(clean["quarantine"]["reasons"])
    data_terminal.show(clean, _symbols(summary), reasons, report, console)


def _symbols(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Describe the most frequent characters outside the alphabet."""
    symbols = []
    for symbol, count in summary["characters"]["top"]:
        shown, point, name = wording.character(symbol)
        symbols.append({"shown": shown, "point": point, "name": name, "count": count})
    return symbols


def _by_count(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
