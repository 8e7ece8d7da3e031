"""Display of explanations, in colour on terminals or as plain text; and the web page of the HTTP service."""

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

BARS = 12  # Maximum number of classes on the page. If there are more, the most probable classes are shown.
LEVELS = 4  # Number of intensities of a colour.
NOISE = 0.1  # Rounding errors alone can cause scores up to this size, in nats.
MAX_WORDS = 5  # Maximum number of words that are listed as evidence for a class, and as evidence against it.
WORD_THRESHOLD = 0.25  # In plain text, a word is marked if its score is at least this fraction of the largest score.
UNREAD_CHARS = 200  # Maximum number of truncated characters that are shown at either end of the truncated range.
COLOUR_THRESHOLD = 0.2  # A character is coloured if its score exceeds this fraction of the largest score.
LEGEND = "Blue supports the class, orange contradicts it. Strong colours are strong evidence. Grey text is not read."


def runs(explanation: Explanation) -> Iterator[tuple[str, int | None]]:
    """Split a text into runs of adjacent characters with the same colour. Yield each run with its level.

    A level is a number from -LEVELS (against the class) to LEVELS (for the class). The level of truncated characters is
    ``None``. A long truncated range is shortened to ``UNREAD_CHARS`` characters at each end that adjoins read text.
    """
    text, truncated = explanation.text, explanation.truncated
    largest = max(NOISE, *map(abs, explanation.scores), 0)
    levels = [_level(score / largest) for score in explanation.scores]

    def coloured(start: int, stop: int) -> Iterator[tuple[str, int | None]]:
        for level, indices in groupby(range(start, stop), levels.__getitem__):
            yield "".join(text[index] for index in indices), level

    start, stop = truncated.start, truncated.stop
    yield from coloured(0, start)
    if truncated:
        first = start + (UNREAD_CHARS if start else 0)
        last = stop - (UNREAD_CHARS if stop < len(text) else 0)
        yield f"{text[start:first]}…{text[last:stop]}" if first < last else text[start:stop], None
    yield from coloured(stop, len(text))


def strongest(explanation: Explanation, sign: int) -> list[Word]:
    """Return the words with the strongest evidence for the class (sign 1) or against it (sign -1)."""
    words = [word for word in explanation.words if word.score * sign >= NOISE]
    return sorted(words, key=lambda word: -word.score * sign)[:MAX_WORDS]


def marked(explanation: Explanation) -> str:
    """Return the text on one line. The score of each word that is strong evidence follows the word in brackets."""
    largest = max((abs(word.score) for word in explanation.words), default=0.0)
    strong_words = [word for word in explanation.words if abs(word.score) >= max(NOISE, WORD_THRESHOLD * largest)]
    text, truncated = explanation.text, explanation.truncated

    def line(start: int, stop: int) -> Iterator[str]:
        for word in strong_words:
            if start < word.stop <= stop:
                yield f"{escape_to_one_line(text[start : word.stop])}[{word.score:+.1f}]"
                start = word.stop
        yield escape_to_one_line(text[start:stop])

    unread = f"[{formatting.pluralize(len(truncated), 'character')} not read]" if truncated else ""
    parts = ("".join(line(0, truncated.start)), unread, "".join(line(truncated.stop, len(text))))
    return " ".join(filter(None, parts))


def show(explanation: Explanation, console: Console) -> None:
    """Print the text in colour, and the words with the strongest evidence."""
    line = Text()
    for text, level in runs(explanation):
        line.append(escape_to_one_line(text), _style(level))
    console.print(Padding(line, (0, 0, 0, 2)), highlight=False)
    sides = (("for it", strongest(explanation, 1)), ("against it", strongest(explanation, -1)))
    lists = [f"{name}: {_listed(words)}" for name, words in sides if words]
    if lists:
        console.print(Padding(Text(f"{explanation.label}, {'; '.join(lists)}", "dim"), (0, 0, 0, 2)), highlight=False)


def write(explanation: Explanation, stream: TextIO, *, legend: bool) -> None:
    """Print an explanation. The explanation is coloured if the terminal supports colours.

    Args:
        legend: True to print the meaning of the colours.
    """
    console = Console(file=stream)
    if console.color_system is None or console.no_color:
        stream.write(f"  {marked(explanation)}\n")
        return
    if legend:
        console.print(LEGEND, style="dim")
    show(explanation, console)


def _listed(words: list[Word]) -> str:
    return ", ".join(f"{formatting.excerpt(word.text, 40)} {word.score:+.1f}" for word in words)


def _level(fraction: float) -> int:
    """Map a score to a level. ``fraction`` is the ratio of the score to the largest absolute score, from -1 to 1."""
    size = max(0.0, abs(fraction) - COLOUR_THRESHOLD) / (1 - COLOUR_THRESHOLD)
    return math.ceil(size * LEVELS) * (1 if fraction > 0 else -1)


def _style(level: int | None) -> str:
    """Return a style of Rich that is legible on dark and light terminals.

    Weak levels are coloured text. Strong levels are text on a coloured background.
    """
    if level is None:
        return "bright_black"
    if level == 0:
        return ""
    colour, on_it = (FOR, "white") if level > 0 else (PALETTE["orange"][1], "black")
    return (colour, f"bold underline {colour}", f"{on_it} on {colour}", f"bold {on_it} on {colour}")[abs(level) - 1]


def serve_page(model: Predictor, options: ServiceOptions) -> tuple[str, str]:
    """Return the page of the HTTP service, and its Content-Security-Policy."""
    html = render(
        "serve.html",
        model=model,
        bars=min(len(model.classes), BARS),
        rejected=REJECTED,
        max_chars=options.max_chars,
        marked={"levels": LEVELS, "threshold": COLOUR_THRESHOLD, "noise": NOISE},
        version=__version__,
    )
    return html, content_security_policy(html, connect_src="'self'", frame_ancestors="'none'")
