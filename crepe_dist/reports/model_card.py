"""Escaping of untrusted names of classes and data sets in Markdown, for the model card of the Hub."""

import re

from markupsafe import Markup

from crepe_dist.formatting import excerpt

MAX_CHARS = 4000  # Maximum length of an escaped text.
MAX_CARD_CLASSES = 300
# Characters that Markdown interprets. The first group is special in every dialect, and is escaped with a backslash. The
# second group is special only in some dialects, which may not support the backslash. This group is escaped with an HTML
# entity.
SPECIAL = re.compile(r"([\\`*_\[\]{}#!])|([<>&|~$@]|:(?=/)|(?<=www)\.)", re.IGNORECASE)


def escaped(text: str) -> Markup:
    """Escape text for Markdown, so that it is displayed literally outside code blocks."""
    return Markup(
        SPECIAL.sub(lambda sign: f"\\{sign[1]}" if sign[1] else f"&#{ord(sign[2])};", excerpt(text, MAX_CHARS))
    )
