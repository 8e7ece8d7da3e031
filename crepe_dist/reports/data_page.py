"""The report of a prepared data set: `page` for the browser, `show` for the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from crepe_dist import wording
from crepe_dist.reports import data_figures as figures
from crepe_dist.reports import data_sentences as facts
from crepe_dist.reports.data_terminal import Lines
from crepe_dist.reports.page import render

LONGEST_COMMAND = 20_000
LONGEST_LINE = 300  # characters of a text in the terminal
MOST = {"table": 2000, "examples": 50, "open": 6, "files": 20, "reasons": 20}


def page(summary: dict[str, Any]) -> str:
    """The report as HTML that needs no other file.

    Args:
        summary: what the preparation found; JSON-able. Its texts may hold anything.
    """
    # A command that was cut could not be repeated.
    clean = {**wording.clean(summary), "command": wording.visible(summary["command"], LONGEST_COMMAND)}
    return render(
        "data.html",
        summary=clean,
        facts=facts,
        most=MOST,
        parts=facts.parts(clean),
        totals=facts.totals(clean),
        rows=facts.shown_classes(clean, MOST["table"]),
        bars=figures.MOST_BARS,
        symbols=_symbols(summary),
        reasons=_by_count(clean["quarantine"]["reasons"]),
        figures={
            "rows": figures.rows(clean),
            "classes": figures.classes(clean),
            "lengths": figures.lengths(clean),
        },
    )


def show(summary: dict[str, Any], console: Console, folder: str) -> None:
    """The report in the terminal, in brief; ``folder`` holds the whole of it as ``report.html``."""
    clean = wording.clean(summary, LONGEST_LINE)
    reasons = _by_count(clean["quarantine"]["reasons"])
    Lines(clean, console).show(_symbols(summary), reasons, wording.visible(folder))


def _symbols(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The most frequent characters outside the alphabet, with what is known of them."""
    symbols = []
    for symbol, count in summary["characters"]["top"]:
        shown, point, name = wording.character(symbol)
        symbols.append({"shown": shown, "point": point, "name": name, "count": count})
    return symbols


def _by_count(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda each: (-each[1], each[0]))
