"""Report of a data set in the terminal."""

from __future__ import annotations

from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crepe_dist.reports import data_sentences
from crepe_dist.wording import counted, cut, first, listed, number, percent, size

MAX_CLASSES = 20
MAX_FILES = 3
MAX_WARNINGS = 10
MAX_SYMBOLS = 4
MAX_REASONS = 4
LABEL_CELLS = 32
BAR_CELLS = 30
GAP = 2  # cells between two columns


class Lines:
    """Printer of the report. Clean the summary with ``wording.clean`` first."""

    def __init__(self, summary: dict[str, Any], console: Console) -> None:
        self.summary = summary
        self.console = console

    def show(self, symbols: list[dict[str, Any]], reasons: list[tuple[str, int]], folder: str) -> None:
        summary = self.summary
        self._print(self._text(summary["name"], "bold"))
        self._print(self._text(data_sentences.overview(summary)))
        self._print(Text())
        self._warnings()
        self._print(Text())
        self._classes()
        self._print(Text())
        table = self._grid()
        rest = {
            "rows": [data_sentences.flow(summary)],
            "lengths": [data_sentences.lengths(summary), data_sentences.cutting(summary)],
            "characters": [data_sentences.characters(summary), self._symbols(symbols)],
            "duplicates": [*data_sentences.duplicates(summary), *data_sentences.overlaps(summary)],
            "unusable": [self._reasons(reasons)],
            "sources": [self._sources()],
            "encoding": [f"{summary['encoding']['mode']}.", *data_sentences.encoding(summary)],
            "report": [f"{folder.rstrip('/')}/report.html"],
        }
        for name, sentences in rest.items():
            if text := " ".join(filter(None, sentences)):
                table.add_row(self._text(name, "bold"), self._text(text))
        self._print(table)

    def _warnings(self) -> None:
        if not self.summary["warnings"]:
            self._print(self._text("No warnings.", "green"))
        for warning in self.summary["warnings"][:MAX_WARNINGS]:
            self._print(self._text(f"! {warning['what']}", "bold yellow"))
            table = self._grid()
            for name, key in (("  why", "why"), ("  do", "do")):
                if warning[key]:
                    table.add_row(self._text(name), self._text(warning[key]))
            self._print(table)
        more = len(self.summary["warnings"]) - MAX_WARNINGS
        if more > 0:
            self._print(self._text(f"! {counted(more, 'more warning')} in the report"))

    def _classes(self) -> None:
        summary = self.summary
        splits, totals = data_sentences.splits(summary), data_sentences.totals(summary)
        shown = data_sentences.shown_classes(summary, MAX_CLASSES)
        columns = [["class", *(cut(summary["classes"][index], LABEL_CELLS) for index in shown)]]
        columns += [
            [split, *(number(summary["parts"][split]["classes"][index]) for index in shown)] for split in splits
        ]
        columns.append(["share", *(percent(totals[index], data_sentences.all_labels(summary)) for index in shown)])
        used = sum(max(map(cell_len, column)) + GAP for column in columns)
        room = min(BAR_CELLS, self.console.width - used)
        largest = max([1, *(totals[index] for index in shown)])
        if room >= 8:
            columns.append(["", *(self._bar(totals[index] / largest, room) for index in shown)])
        table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
        for place, (heading, *_) in enumerate(columns):
            right = 0 < place <= len(splits) + 1
            table.add_column(self._text(heading), justify="right" if right else "left", no_wrap=right)
        for row in zip(*(column[1:] for column in columns)):
            table.add_row(*(self._text(cell) for cell in row))
        self._print(table)
        more = len(summary["classes"]) - len(shown)
        if more:
            self._print(self._text(f"{number(more)} more, none larger than these"))
        for sentence in (
            each(summary) for each in (data_sentences.labels, data_sentences.balance, data_sentences.baseline)
        ):
            if sentence:
                self._print(self._text(sentence))

    def _bar(self, share: float, room: int) -> str:
        full = "█" if self._text("█").plain == "█" else "#"
        return full * max(round(share * room), 1 if share else 0)

    def _symbols(self, symbols: list[dict[str, Any]]) -> str:
        some = [f"{each['shown']} ({number(each['count'])})" for each in symbols[:MAX_SYMBOLS]]
        return f"The most frequent: {listed(some)}." if some else ""

    def _reasons(self, reasons: list[tuple[str, int]]) -> str:
        rows = self.summary["quarantine"]["rows"]
        if not rows:
            return "Every row could be used."
        some = [f"{cut(reason, 200)} ({number(count)})" for reason, count in first(reasons, MAX_REASONS)]
        if len(reasons) > len(some):
            some.append(counted(len(reasons) - len(some), "more reason"))
        return f"{counted(rows, 'row')}, in quarantine.jsonl{': ' if some else ''}{listed(some)}."

    def _sources(self) -> str:
        sources = self.summary["sources"]
        some = [
            f"{cut(each['file'], 100)} ({counted(each['rows'], 'row')}, {size(each['bytes'])}; "
            f"{cut(each['reads'], 100)})"
            for each in first(sources, MAX_FILES)
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
        """Make a ``Text``, in which rich reads no markup, and escape characters that the output cannot encode."""
        encoding = self.console.encoding
        return Text(text.encode(encoding, "backslashreplace").decode(encoding), style, overflow="fold")

    def _print(self, content: Text | Table) -> None:
        """Print without trailing spaces, which would wrap when the window is made narrower."""
        for line in self.console.render_lines(content, pad=False):
            text = Text.assemble(*((segment.text, segment.style or "") for segment in line))
            text.rstrip()
            self.console.print(text, highlight=False, soft_wrap=True)
