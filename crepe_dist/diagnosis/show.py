"""The lines of a diagnosis: a table on a terminal, plain lines where something else reads them."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from crepe_dist.diagnosis.outcome import Check
from crepe_dist.errors import shown

STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}
NAME_WIDTH = 14


def lines(checks: Iterable[Check], console: Console) -> None:
    """Name, level and what is there."""
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


def explanations(checks: Iterable[Check], console: Console) -> None:
    """What, why and what to do, of every note and problem; problems last, where they are read first."""
    for level in ("note", "problem"):
        for check in checks:
            if check.level == level:
                console.print()
                told = [f"{level}: {check.what}"]
                told += [f"  {word:<4} {text}" for word, text in (("why:", check.why), ("do:", check.remedy)) if text]
                plain(told[0], console, STYLES[level])
                for line in told[1:]:
                    plain(line, console)


def plain(line: str, console: Console, style: str = "") -> None:
    """One line, however long."""
    text = _text(line, console)
    text.stylize(style)
    console.print(text, soft_wrap=True, highlight=False)


def _text(text: str, console: Console) -> Text:
    """What a terminal would act on is shown, and what its encoding lacks is spelled out."""
    encoding = console.encoding
    return Text("".join(map(shown, text)).encode(encoding, "backslashreplace").decode(encoding))
