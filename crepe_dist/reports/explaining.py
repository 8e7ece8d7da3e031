"""Explanations beside the answers of ``predict``, and on a page."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

from rich.console import Console

from crepe_dist.files import write_text
from crepe_dist.predicting.answers import EXPLAINED
from crepe_dist.predicting.occlusion import Explanation
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.reports import explanation_page


class Explaining:
    """Explanations of every text (``--explain``), and of the first texts for a page (``--html``)."""

    def __init__(self, predictor: Predictor, each: bool, page: Path | None) -> None:
        self._predictor = predictor
        self._each = each
        self._page = page
        self._items: list[explanation_page.Item] = []
        self._left_out = 0
        self._has_shown = False

    def explain(self, text: str, name: str, true: str | None = None) -> Explanation | None:
        """Explain a text if the flags ask for it; return the explanation to print beside the answer."""
        room = self._page is not None and len(self._items) < EXPLAINED
        self._left_out += not room
        if not (self._each or room):
            return None
        explanation = self._predictor.explain(text)
        if room:
            self._items.append(explanation_page.Item(name, explanation, true))
        return explanation if self._each else None

    def show(self, explanation: Explanation, stream: TextIO) -> None:
        """Print an explanation, in colour if the terminal supports it."""
        console = Console(file=stream)
        if console.color_system is None or console.no_color:
            stream.write(f"  {explanation_page.marked(explanation)}\n")
        else:
            if not self._has_shown:
                console.print(explanation_page.LEGEND, style="dim")
            explanation_page.show(explanation, console)
            self._has_shown = True

    def finish(self) -> None:
        if self._page is not None:
            write_text(self._page, explanation_page.page(self._items, self._left_out))
