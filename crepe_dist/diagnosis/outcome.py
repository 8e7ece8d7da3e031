"""Results of checks, and their output: a table on a terminal, plain lines otherwise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from crepe_dist.errors import one_line

Level = Literal["ok", "note", "problem"]
STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}
NAME_WIDTH = 14


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes:
        name: name of the checked subject, in a word or two.
        level: ``ok``; ``note`` if training works, but not as well as it could; ``problem`` if training does not work.
        what, why, remedy: explanation of a note or problem, as in ``crepe_dist.errors.UserError``.
    """

    name: str
    shows: str
    level: Level = "ok"
    what: str = ""
    why: str = ""
    remedy: str = ""

    def note(self, what: str, why: str = "", remedy: str = "") -> Check:
        return replace(self, level="note", what=what, why=why, remedy=remedy)

    def problem(self, what: str, why: str, remedy: str) -> Check:
        return replace(self, level="problem", what=what, why=why, remedy=remedy)


def show(checks: Iterable[Check], console: Console) -> None:
    """Print one line per check: its level, name and facts."""
    if not console.is_terminal:
        for check in checks:
            plain(f"{check.level:<8} {check.name:<{NAME_WIDTH}} {check.shows}", console)
        return
    table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True, min_width=len("problem"))
    table.add_column(min_width=NAME_WIDTH)
    table.add_column(ratio=1)
    for check in checks:
        table.add_row(Text(check.level, STYLES[check.level]), _text(check.name, console), _text(check.shows, console))
    console.print(table)


def explain(checks: Iterable[Check], console: Console) -> None:
    """Explain every note and problem; problems come last, where they are seen first."""
    for level in ("note", "problem"):
        for check in checks:
            if check.level == level:
                console.print()
                plain(f"{level}: {check.what}", console, STYLES[level])
                for word, text in (("why:", check.why), ("do:", check.remedy)):
                    if text:
                        plain(f"  {word:<4} {text}", console)


def plain(line: str, console: Console, style: str = "") -> None:
    """Print a line without wrapping it."""
    text = _text(line, console)
    text.stylize(style)
    console.print(text, soft_wrap=True, highlight=False)


def _text(text: str, console: Console) -> Text:
    """Escape control characters, and characters that the terminal cannot encode."""
    encoding = console.encoding
    return Text(one_line(text).encode(encoding, "backslashreplace").decode(encoding))
