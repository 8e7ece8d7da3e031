"""Explanations, ``show`` for a colour terminal and ``marked`` for plain text, and the page of the HTTP service."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby
from typing import TextIO

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from crepe_dist import formatting
from crepe_dist.errors import escape_to_one_line
from crepe_dist.predicting.occlusion import Explanation, Word
from crepe_dist.predicting.prediction import REJECTED
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.reports.drawing import FOR, PALETTE
from crepe_dist.reports.page import content_security_policy, render
from crepe_dist.settings.options import ServiceOptions
from crepe_dist.version import __version__

MAX_OFFERED = 500  # values of a column to choose from
BARS = 12  # on the page; with more classes, only the most probable ones are shown
LEVELS = 4  # strengths of colour
NOISE = 0.1  # rounding alone may produce scores up to this
MAX_WORDS = 5  # words listed for a class, and against it
WORD_THRESHOLD = 0.25  # share of the largest score from which a word is marked in plain text
UNREAD_CHARS = 200  # characters shown on either side of the part that the network does not read
COLOUR_THRESHOLD = 0.2  # share of the largest score from which a character is coloured
LEGEND = "Blue supports the class, orange contradicts it, strong colours count most; grey text is not read."


def runs(explanation: Explanation) -> Iterator[tuple[str, int | None]]:
    """Split a text into runs of adjacent characters with the same colour, and yield each with its level.

    That is from -LEVELS (against the class) to LEVELS (for it), or ``None`` for characters that the network does not
    read, of which there are at most ``UNREAD_CHARS`` beside those that are read.
    """
    text, cut = explanation.text, explanation.truncated
    largest = max(NOISE, *map(abs, explanation.scores), 0)
    levels = [_level(score / largest) for score in explanation.scores]

    def coloured(start: int, stop: int) -> Iterator[tuple[str, int | None]]:
        for level, indices in groupby(range(start, stop), levels.__getitem__):
            yield "".join(text[index] for index in indices), level

    yield from coloured(0, cut.start)
    if cut:
        first = cut.start + (UNREAD_CHARS if cut.start else 0)
        last = cut.stop - (UNREAD_CHARS if cut.stop < len(text) else 0)
        unread = text[cut.start : cut.stop]
        yield f"{text[cut.start : first]}…{text[last : cut.stop]}" if first < last else unread, None
    yield from coloured(cut.stop, len(text))


def strongest(explanation: Explanation, sign: int) -> list[Word]:
    """Return the words with the strongest evidence for the class (sign 1) or against it (sign -1)."""
    words = [word for word in explanation.words if word.score * sign >= NOISE]
    return sorted(words, key=lambda word: -word.score * sign)[:MAX_WORDS]


def marked(explanation: Explanation) -> str:
    """Return the text on one line, with the score after each word that counts."""
    largest = max((abs(word.score) for word in explanation.words), default=0.0)
    telling = [word for word in explanation.words if abs(word.score) >= max(NOISE, WORD_THRESHOLD * largest)]
    text, cut = explanation.text, explanation.truncated

    def line(start: int, stop: int) -> Iterator[str]:
        for word in telling:
            if start < word.stop <= stop:
                yield f"{escape_to_one_line(text[start : word.stop])}[{word.score:+.1f}]"
                start = word.stop
        yield escape_to_one_line(text[start:stop])

    unread = f"[{formatting.pluralize(len(cut), 'character')} not read]" if cut else ""
    parts = ("".join(line(0, cut.start)), unread, "".join(line(cut.stop, len(text))))
    return " ".join(filter(None, parts))


def show(explanation: Explanation, console: Console) -> None:
    """Print the text in colour, and the words that count most."""
    line = Text()
    for text, level in runs(explanation):
        line.append(escape_to_one_line(text), _style(level))
    console.print(Padding(line, (0, 0, 0, 2)), highlight=False)
    sides = (("for it", strongest(explanation, 1)), ("against it", strongest(explanation, -1)))
    lists = [f"{name}: {_listed(words)}" for name, words in sides if words]
    if lists:
        console.print(Padding(Text(f"{explanation.label}, {'; '.join(lists)}", "dim"), (0, 0, 0, 2)), highlight=False)


def write(explanation: Explanation, stream: TextIO, *, legend: bool) -> None:
    """Print an explanation, in colour and, if wanted, with a legend where the terminal supports it."""
    console = Console(file=stream)
    if console.color_system is None or console.no_color:
        stream.write(f"  {marked(explanation)}\n")
        return
    if legend:
        console.print(LEGEND, style="dim")
    show(explanation, console)


def _listed(words: list[Word]) -> str:
    return ", ".join(f"{formatting.excerpt(word.text, 40)} {word.score:+.1f}" for word in words)


def _level(share: float) -> int:
    """Map a score, as a share of the largest one (-1 to 1), to a level."""
    size = max(0.0, abs(share) - COLOUR_THRESHOLD) / (1 - COLOUR_THRESHOLD)
    return math.ceil(size * LEVELS) * (1 if share > 0 else -1)


def _style(level: int | None) -> str:
    """Choose a rich style that is legible on dark and light terminals: coloured text, then a coloured background."""
    if level is None:
        return "bright_black"
    if level == 0:
        return ""
    colour, on_it = (FOR, "white") if level > 0 else (PALETTE["orange"][1], "black")
    return (colour, f"bold underline {colour}", f"{on_it} on {colour}", f"bold {on_it} on {colour}")[abs(level) - 1]


def serve_page(model: Predictor, options: ServiceOptions) -> tuple[str, str]:
    """Return the page of the HTTP service, and a Content-Security-Policy that allows only its own style and script."""
    html = render(
        "serve.html",
        model=model,
        bars=min(len(model.classes), BARS),
        rejected=REJECTED,
        max_chars=options.max_chars,
        offered=MAX_OFFERED,
        marked={"levels": LEVELS, "threshold": COLOUR_THRESHOLD, "noise": NOISE},
        version=__version__,
    )
    return html, content_security_policy(html, connect_src="'self'", frame_ancestors="'none'")
