"""Removal of HTML from texts. Exports for other runtimes contain the source of this module.

The removal must give the same text in training and prediction under every version of Python. ``html.parser`` does not:
security releases of 2025 changed how it ends a tag that is not closed. ``html.parser`` also takes quadratic time for
such tags.
"""

import html
import re

INLINE = "a abbr b bdi bdo big cite code em font i ins kbd mark q s samp small span strike strong sub sup tt u var"
INLINE_NAMES = frozenset(INLINE.split())
OTHERS = (
    "address article aside blockquote body br button caption center col dd del div dl dt embed figcaption figure "
    "footer form frame h1 h2 h3 h4 h5 h6 head header hr html iframe img input label legend li link main map meta nav "
    "noscript object ol option p param pre script section select source style svg table tbody td textarea tfoot th "
    "thead title tr ul video"
)
# Only tags of HTML match, because <name@example.com> is text. The match stops at the next "<", so the time is linear.
NAMES = "|".join(f"{INLINE} {OTHERS}".split())
TAG = re.compile(rf"<(/?)({NAMES})(?:[\s/][^<>]*)?>|<!(?:--|doctype)[^<>]*>", re.I)
HIDDEN = ("script", "style")


def without_tags(text: str) -> str:
    """Remove tags, comments, scripts and styles, resolve character references, and collapse white space, like a
    browser."""
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
