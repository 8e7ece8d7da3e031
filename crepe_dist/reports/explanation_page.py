"""Explanations: `page` for the browser, `show` for a terminal with colours, `marked` for plain text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from crepe_dist import wording
from crepe_dist.errors import shown, visible
from crepe_dist.predicting.occlusion import Explanation, Word
from crepe_dist.reports.colours import BLUE, ORANGE
from crepe_dist.reports.page import render
from crepe_dist.version import __version__

MOST = 100  # texts in a page
LEVELS = 4  # strengths of colour
QUIET = 0.1  # a score that rounding alone may reach; where none is larger, nothing is marked strongly
WORDS = 5  # that are told
NOTABLE = 0.25  # of the largest score: a word with less is not marked in plain text
UNREAD = 200  # characters that are shown of what is not read
FAINT = 0.2  # of the largest score: a character with less is not coloured
LEGEND = "Blue speaks for the class, orange against it, the fuller the more; grey is not read."


class Run(NamedTuple):
    """Neighbouring characters that look alike.

    Args:
        level: from -LEVELS, against the class, to LEVELS, for it; ``None``: not read.
    """

    text: str
    level: int | None


@dataclass(frozen=True)
class Item:
    """One text of a page.

    Args:
        name: what it is called: its line.
        true: its class, if that is known.
    """

    name: str
    explanation: Explanation
    true: str | None = None


def runs(explanation: Explanation) -> Iterator[Run]:
    """The text in runs; of what is not read, what stands next to what is."""
    text, start, stop = explanation.text, explanation.start, explanation.stop
    if start:
        yield Run(("…" if start > UNREAD else "") + text[max(0, start - UNREAD) : start], None)
    largest = max(QUIET, *map(abs, explanation.scores), 0)
    levels = [_level(score / largest) for score in explanation.scores[start:stop]]
    for level, places in groupby(range(start, stop), lambda place: levels[place - start]):
        yield Run("".join(text[place] for place in places), level)
    if stop < len(text):
        yield Run(text[stop : stop + UNREAD] + ("…" if len(text) - stop > UNREAD else ""), None)


def strongest(explanation: Explanation, sign: int) -> list[Word]:
    """The words that speak most for the class (sign 1), or against it (-1)."""
    words = [word for word in explanation.words if word.score * sign >= QUIET]
    return sorted(words, key=lambda word: -word.score * sign)[:WORDS]


def marked(explanation: Explanation) -> str:
    """One line of plain text in which the words that count have their scores behind them."""
    largest = max((abs(word.score) for word in explanation.words), default=0.0)
    line, end = "", explanation.start
    for word in explanation.words:
        if abs(word.score) >= max(QUIET, NOTABLE * largest):
            line += f"{_on_a_line(explanation.text[end : word.stop])}[{word.score:+.1f}]"
            end = word.stop
    line += _on_a_line(explanation.text[end : explanation.stop])
    before, after = explanation.start, len(explanation.text) - explanation.stop
    return (f"[{_unread(before)}] " if before else "") + line + (f" [{_unread(after)}]" if after else "")


def show(explanation: Explanation, console: Console) -> None:
    """The text in colours, and the words that count most."""
    line = Text()
    for text, level in runs(explanation):
        line.append(_on_a_line(text), _style(level))
    console.print(Padding(line, (0, 0, 0, 2)), highlight=False)
    told = [f"{name}: {_told(words)}" for name, words in _both(explanation) if words]
    if told:
        console.print(Padding(Text(f"{explanation.label}, {'; '.join(told)}", "dim"), (0, 0, 0, 2)), highlight=False)


def page(items: Sequence[Item], left_out: int = 0) -> str:
    """Explanations as HTML that needs no other file; their texts may hold anything.

    Args:
        left_out: texts that were classified but are not in ``items``.
    """
    return render(
        "explanation.html",
        version=__version__,
        left_out=left_out,
        levels=LEVELS,
        quiet=QUIET,
        items=[
            {
                "name": item.name,
                "true": None if item.true is None else wording.visible(item.true),
                "label": wording.visible(item.explanation.label),
                "ranking": [(wording.visible(name), share) for name, share in item.explanation.prediction.ranking],
                "runs": [(visible(text), _css(level)) for text, level in runs(item.explanation)],
                "words": [(name, _told(words)) for name, words in _both(item.explanation) if words],
                "unread": len(item.explanation.text) - item.explanation.stop + item.explanation.start,
            }
            for item in items
        ],
    )


def _both(explanation: Explanation) -> list[tuple[str, list[Word]]]:
    return [("for it", strongest(explanation, 1)), ("against it", strongest(explanation, -1))]


def _told(words: list[Word]) -> str:
    return ", ".join(f"{wording.visible(word.text, 40)} {word.score:+.1f}" for word in words)


def _unread(count: int) -> str:
    return f"{wording.counted(count, 'character')} not read"


def _on_a_line(text: str) -> str:
    return text if text.isprintable() else "".join(map(shown, text))


def _level(share: float) -> int:
    """Of a score as a share of the largest, -1 to 1."""
    size = max(0.0, abs(share) - FAINT) / (1 - FAINT)
    return math.ceil(size * LEVELS) * (1 if share > 0 else -1)


def _style(level: int | None) -> str:
    """For a terminal whose background is not known: letters in a colour that is seen on both, then a background."""
    if level is None:
        return "bright_black"
    if level == 0:
        return ""
    colour, on_it = (BLUE, "white") if level > 0 else (ORANGE, "black")
    return (colour, f"bold underline {colour}", f"{on_it} on {colour}", f"bold {on_it} on {colour}")[abs(level) - 1]


def _css(level: int | None) -> str:
    return "unread" if level is None else "" if level == 0 else f"{'for' if level > 0 else 'against'}{abs(level)}"
