"""The report of a data set in the terminal."""

from __future__ import annotations

from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crepe_dist.reports import data_sentences as facts
from crepe_dist.wording import counted, cut, first, listed, number, percent, size

MOST_CLASSES = 20
MOST_FILES = 3
MOST_WARNINGS = 10
MOST_OF_A_KIND = 4  # characters, reasons
LABEL = 32  # cells
BAR = 30
GAP = 2


class Lines:
    """Prints; texts of the summary must be visible already."""

    def __init__(self, summary: dict[str, Any], console: Console) -> None:
        self.summary = summary
        self.console = console

    def show(self, symbols: list[dict[str, Any]], reasons: list[tuple[str, int]], folder: str) -> None:
        summary = self.summary
        self._print(self._text(summary["name"], "bold"))
        self._print(self._text(facts.overview(summary)))
        self._print(Text())
        self._warnings()
        self._print(Text())
        self._classes()
        self._print(Text())
        table = self._grid()
        rest = {
            "rows": [facts.flow(summary)],
            "lengths": [facts.lengths(summary), facts.cutting(summary)],
            "characters": [facts.characters(summary), self._symbols(symbols)],
            "duplicates": [*facts.duplicates(summary), *facts.overlaps(summary)],
            "not usable": [self._reasons(reasons)],
            "sources": [self._sources()],
            "encoding": [f"{summary['encoding']['mode']}.", *facts.encoding(summary)],
            "report": [f"{folder.rstrip('/')}/report.html"],
        }
        for name, sentences in rest.items():
            if text := " ".join(filter(None, sentences)):
                table.add_row(self._text(name, "bold"), self._text(text))
        self._print(table)

    def _warnings(self) -> None:
        if not self.summary["warnings"]:
            self._print(self._text("Nothing stands out.", "green"))
        for warning in self.summary["warnings"][:MOST_WARNINGS]:
            self._print(self._text(f"! {warning['what']}", "bold yellow"))
            table = self._grid()
            for name, key in (("  why", "why"), ("  do", "do")):
                if warning[key]:
                    table.add_row(self._text(name), self._text(warning[key]))
            self._print(table)
        more = len(self.summary["warnings"]) - MOST_WARNINGS
        if more > 0:
            self._print(self._text(f"! and {counted(more, 'more warning')}, in the report"))

    def _classes(self) -> None:
        summary, parts, totals = self.summary, facts.parts(self.summary), facts.totals(self.summary)
        shown = facts.shown_classes(summary, MOST_CLASSES)
        columns = [["class", *(cut(summary["classes"][index], LABEL) for index in shown)]]
        columns += [[part, *(number(summary["parts"][part]["classes"][index]) for index in shown)] for part in parts]
        columns.append(["share", *(percent(totals[index], sum(totals)) for index in shown)])
        used = sum(max(map(cell_len, column)) + GAP for column in columns)
        room = min(BAR, self.console.width - used)
        largest = max([1, *(totals[index] for index in shown)])
        if room >= 8:
            columns.append(["", *(self._bar(totals[index] / largest, room) for index in shown)])
        table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
        for place, (heading, *_) in enumerate(columns):
            right = 0 < place <= len(parts) + 1
            table.add_column(self._text(heading), justify="right" if right else "left", no_wrap=right)
        for row in zip(*(column[1:] for column in columns)):
            table.add_row(*(self._text(cell) for cell in row))
        self._print(table)
        more = len(summary["classes"]) - len(shown)
        if more:
            self._print(self._text(f"and {number(more)} more, none larger than these"))
        for sentence in (facts.balance(summary), facts.baseline(summary)):
            if sentence:
                self._print(self._text(sentence))

    def _bar(self, share: float, room: int) -> str:
        full = "█" if self._text("█").plain == "█" else "#"
        return full * max(round(share * room), 1 if share else 0)

    def _symbols(self, symbols: list[dict[str, Any]]) -> str:
        some = [f"{each['shown']} ({number(each['count'])})" for each in symbols[:MOST_OF_A_KIND]]
        return f"The most frequent: {listed(some)}." if some else ""

    def _reasons(self, reasons: list[tuple[str, int]]) -> str:
        rows = self.summary["quarantine"]["rows"]
        if not rows:
            return "Every row could be used."
        some = [f"{cut(reason, 200)} ({number(count)})" for reason, count in first(reasons, MOST_OF_A_KIND)]
        if len(reasons) > len(some):
            some.append(counted(len(reasons) - len(some), "more reason"))
        return f"{counted(rows, 'row')}, in quarantine.jsonl{': ' if some else ''}{listed(some)}."

    def _sources(self) -> str:
        sources = self.summary["sources"]
        some = [
            f"{cut(each['file'], 100)} ({counted(each['rows'], 'row')}, {size(each['bytes'])}; "
            f"{cut(each['reads'], 100)})"
            for each in first(sources, MOST_FILES)
        ]
        if len(sources) > len(some):
            some.append(counted(len(sources) - len(some), "more file"))
        return listed(some)

    def _grid(self) -> Table:
        table = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
        table.add_column(no_wrap=True, min_width=10)
        table.add_column(ratio=1)
        return table

    def _text(self, text: str, style: str = "") -> Text:
        """``Text``, because rich takes "[bold]" in a string for its own; and no letter that the output cannot hold."""
        encoding = self.console.encoding
        return Text(text.encode(encoding, "backslashreplace").decode(encoding), style, overflow="fold")

    def _print(self, what: Text | Table) -> None:
        """Lines end with their last letter, or they would break anew in a window that is made smaller."""
        for line in self.console.render_lines(what, pad=False):
            text = Text.assemble(*((segment.text, segment.style or "") for segment in line))
            text.rstrip()
            self.console.print(text, highlight=False, soft_wrap=True)
