"""Composition of a document's text: columns joined in order, and HTML tags removed.

The removal must give the same text in training and prediction under every version of Python. ``html.parser`` does not:
security releases of 2025 changed how it ends a tag that is not closed. It also takes quadratic time for such tags.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

SEPARATOR = " | "
INLINE = "a abbr b bdi bdo big cite code em font i ins kbd mark q s samp small span strike strong sub sup tt u var"
INLINE_NAMES = frozenset(INLINE.split())
OTHERS = (
    "address article aside blockquote body br button caption center col dd del div dl dt embed figcaption figure "
    "footer form frame h1 h2 h3 h4 h5 h6 head header hr html iframe img input label legend li link main map meta nav "
    "noscript object ol option p param pre script section select source style svg table tbody td textarea tfoot th "
    "thead title tr ul video"
)
# Only tags of HTML: <name@example.com> is text. The match stops at the next "<", so that it takes linear time.
NAMES = "|".join(f"{INLINE} {OTHERS}".split())
TAG = re.compile(rf"<(/?)({NAMES})(?:[\s/][^<>]*)?>|<!(?:--|doctype)[^<>]*>", re.I)
HIDDEN = ("script", "style")


def join(columns: Sequence[str]) -> str:
    """Join the text columns of a row as ``title | text``, as the notebook does, except for blank ones."""
    return columns[0] if len(columns) == 1 else SEPARATOR.join(column for column in columns if column.strip())


@dataclass(frozen=True)
class Composition:
    """Composition of the texts of a data set, and of all texts that its models read.

    Args:
        columns: names of the columns that are joined, in order; empty if the rows had no named columns.
        strip_html: remove HTML tags and resolve character references such as ``&amp;``.
    """

    columns: tuple[str, ...] = ()
    strip_html: bool = False

    def text(self, text: str) -> str:
        """Return a joined text as the network reads it."""
        return without_tags(text) if self.strip_html else text

    def to_dict(self) -> dict[str, Any]:
        """Return the composition as JSON-like data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Composition:
        """Restore a composition from ``to_dict``'s result."""
        return cls(tuple(map(str, saved["columns"])), bool(saved["strip_html"]))


def without_tags(text: str) -> str:
    """Remove tags, comments, scripts and styles, resolve character references, and join lines, as a browser does."""
    if "<" not in text and "&" not in text:
        return text
    pieces: list[str] = []
    end, hidden = 0, -1
    for tag in TAG.finditer(text):
        pieces.append(text[end : tag.start()])
        end, name = tag.end(), (tag[2] or "").lower()
        if name in HIDDEN:
            if tag[1] and hidden >= 0:
                del pieces[hidden:]
            hidden = -1 if tag[1] else len(pieces)
        pieces.append("" if name in INLINE_NAMES else " ")
    pieces.append(text[end:])
    return " ".join(html.unescape("".join(pieces)).split())
