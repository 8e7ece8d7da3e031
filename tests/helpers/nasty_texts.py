"""Texts on which encoders of capital letters disagree if one of them has a mistake."""

import random

from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.data.characters import CAPITAL, CAPITALS, frequent_alphabet

PIECES = [
    "", " ", "a", "word ", "Word ", "WORD", "aB", "Ab", "ABC", "iPhone", "U.S.A. ", "X", "Q1", "NASA's",
    CAPITAL, CAPITALS, f"{CAPITAL}A", f"A{CAPITALS}B",  # Marks in the text itself.
    "\0", "A\0B", "\r\n", "A\r\nB", "\t", "A\tB", "\x1c", "\x85", "\u3000", "\u2028",
    "\ud800", "A\ud800B", "\ufffd", "\ufeff", "\u202eA", "\u200bA",
    "e\u0301", "E\u0301", "A\u0308B\u0308", "É", "ÉÀ", "Ñandú ",  # Combining characters and accents.
    "ß", "ẞ", "STRAẞE", "Straße", "İ", "I", "ı", "İSTANBUL", "ſ", "ŉ", "ǰ", "Æ", "æ", "ÆØ", "Ærø ", "Þ", "Œ", "ĸ",
    "ǅ", "ǆ", "Ǆ", "ǅep", "ǈǋ", "ᾈ", "ᾼ",  # Title case.
    "Σ", "σ", "ς", "ΟΔΥΣΣΕΥΣ", "Οδυσσεύς ", "Ω", "\u2126", "\u212a", "\u212b", "µ", "Μ",
    "ﬁ", "ﬃ", "ﬅ", "Ж", "ЖЗ", "Жж", "ё", "Ё", "МОСКВА", "Ա", "ԱԲ", "Աբ", "և", "Ⴀ", "ა", "Ა", "ᲐᲑ", "Ꭰ", "ꭰ",
    "\U00010400", "\U00010428", "\U00010400\U00010401\U00010428",  # Deseret.
    "Ａ", "ａ", "ＡＢ", "Ⓐ", "ⓐ", "Ⅷ", "ⅷ", "\U0001d400", "ℂ", "ª", "º",
    "😀", "A😀B", "👨\u200d👩\u200d👧", "🇩🇪", "日本", "A語B", "한국", "กข", "中",
    "<b>", "</b>", "&amp;", "&Eacute;", "<P>A</P>B", "A<br>B", "&#14;", "&#xF;", "<", "&",
    "0", "9", ",", "!", "-",
]  # fmt: skip
# Letters of a learned alphabet, and rare letters, which have two ids if there are enough other characters.
_LETTERS = "ЖЗЁМОСКВАԱԲΣΟΔΥΕςΩßÆØéÉǅＡⒶⅧİıᾳ\U0001d400\U00010400日本"
_RARE = "".join(map(chr, (*range(0x4E00, 0x4F90), *range(0x10D0, 0x10F0), *range(0x10429, 0x10440), 0xFF42, 0x1C6)))
_COMMON = {ord(letter): 9 for letter in f"abcdefghijklmnopqrstuvwxyz0123456789 ,.!-'{_LETTERS}"}


def marked_encoders(length: int) -> dict[str, CharEncoder]:
    """Return encoders that mark capital letters, by name."""
    learned = frequent_alphabet(_COMMON, "keep")
    paired = frequent_alphabet({**_COMMON, **{ord(letter): 5 for letter in _RARE}}, "keep")
    return {
        "standard": CharEncoder("keep", length),
        "accents": CharEncoder("keep", length + 1, False),
        "learned": CharEncoder("keep", length, None, *learned),
        "folded": CharEncoder("keep", length, True, *learned),
        "two ids": CharEncoder("keep", length, None, *paired),
        "two ids, folded": CharEncoder("keep", length, True, *paired),
    }


def nasty_texts(count: int, length: int, seed: int = 0) -> list[str]:
    """Return texts for an encoder of ``length`` ids. The first texts are the same for each count and seed.

    Many texts have nearly ``length`` or 2 × ``length`` characters or ids, so that the cut is near a run of capital
    letters. No text contains a surrogate pair, which JavaScript would read as one character.
    """
    draw, texts = random.Random(seed), [*PIECES, "A" * 5 * length, "a" * length + "B" * 5 * length, "Ab" * 3 * length]
    while len(texts) < count:
        kind = draw.randrange(5)
        pieces = PIECES if kind else draw.sample(PIECES, 3)
        size = (draw.randint(0, 20), length // 2, length, 2 * length, draw.randint(0, 4 * length))[draw.randrange(5)]
        text = ""
        while len(text) < size:
            text += draw.choice(pieces)
        if kind == 1:
            text = text.upper()
        elif kind == 2:  # A run of capital letters across each cut.
            start, end = draw.randint(0, 4), draw.randint(0, 4)
            middle = "Z" * draw.choice((1, 2, 9, length, 2 * length))
            text = f"{text[: length // 2 - start]}{middle}{text[end - length // 2 :]}"
        elif kind == 3:
            text = text[: max(0, size + draw.randint(-3, 3))]
        texts.append(text)
    return texts[:count]
