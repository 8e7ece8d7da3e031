"""Mapping of characters to ids. White space is read as a space, and an accented letter as a letter without its accent.

``frequent_alphabet`` builds alphabets for other scripts. If a script has more characters than there are ids, each rare
character is encoded as two ids. No other character uses these ids.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from functools import cache

import numpy as np
import numpy.typing as npt

from crepe_dist.errors import UserError
from crepe_dist.native.constants import BLANK
from crepe_dist.settings.fields import Case

CODE_POINTS = 0x110000  # Number of Unicode code points.
# Maximum number of ids of an alphabet. Ids are bytes; one value is BLANK, and one marks the start and end of a text.
MAX_CHARACTERS = 254
MIN_COUNT = 5  # Minimum number of occurrences of a character in a generated alphabet.
# Unicode categories of invisible characters: controls, direction marks, private use, surrogates, separators.
INVISIBLE = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")
# Maximum number of rare characters. They take 2 × 96 ids, so 61 other characters and the space have an id of their own.
MAX_RARE_CHARACTERS = 96**2
# First of the private code points that represent the ids of rare characters during encoding.
SYMBOLS = 0x10FF00
# Marks of the case ``keep``. They are the ASCII controls "shift out" and "shift in", which do not occur in texts.
# CAPITAL marks a single capital letter, and CAPITALS marks two or more capital letters in a row.
CAPITAL, CAPITALS = "\x0e", "\x0f"
# Code points from this one on never fold to a letter of a standard alphabet by lower-casing or decomposition.
LATIN_END = 0x2200
# Code points from here on have no lower case and no decomposition.
FOLDING_END = 0x30000
# Scripts without spaces between words: Thai, Lao, Tibetan, Myanmar, Khmer, Chinese and Japanese.
UNSEPARATED = (
    range(0x0E00, 0x10A0), range(0x1780, 0x1800), range(0x2E80, 0x3130), range(0x3190, 0xA4D0), range(0xF900, 0xFB00),
    range(0xFF66, 0xFFA0), range(0x20000, 0x40000),
)  # fmt: skip

WHITE_SPACE = "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B)))
# White space: Unicode's property White_Space, and the separators of ASCII.
WHITE_SPACE += "\u2028\u2029\u202f\u205f\u3000"
# Letters of Latin-1 and Latin Extended-A without a decomposition, with the replacements of CLDR's Latin-ASCII.
LETTERS = {
    "ß": "ss", "æ": "ae", "œ": "oe", "þ": "th", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "ı": "i", "ĸ": "q",
    "ŋ": "n", "ŧ": "t",
}  # fmt: skip


def frequent_alphabet(counts: Mapping[int, int], case: Case) -> tuple[str, str]:
    """Build an alphabet of the most frequent characters, and list the rare ones. Both are sorted by ``sort_alphabet``.

    Characters are counted in lower case. The alphabet always contains a space, and in the case ``keep`` also the two
    marks. Invisible characters are omitted. If the space and the characters that occur at least ``MIN_COUNT`` times are
    at most ``MAX_CHARACTERS`` characters, they form the alphabet, and all other characters are omitted. Otherwise, as
    many of the most frequent characters as possible get an id of their own, and up to ``MAX_RARE_CHARACTERS`` of the
    next most frequent characters are encoded as two ids. Ties are broken by code point.

    Args:
        counts: Number of occurrences of each code point.
        case: Case of the encoder.

    Returns:
        The alphabet, and the rare characters (``CharEncoder.two_id_characters``).
    """
    always = [" ", CAPITAL, CAPITALS] if case == "keep" else [" "]
    occurrences: Counter[str] = Counter({" ": 0})
    for point, count in counts.items():
        for character in fold_character(chr(point), case, fold_accents=False):
            occurrences[character] += count
    del occurrences[" "]
    visible = [character for character in occurrences if unicodedata.category(character) not in INVISIBLE]
    visible.sort(key=lambda character: (-occurrences[character], character))
    frequent = [character for character in visible if occurrences[character] >= MIN_COUNT]
    num_ids = MAX_CHARACTERS - len(always)
    if len(frequent) <= num_ids:
        return sort_alphabet([*always, *frequent]), ""
    own, rare = split_frequent_and_rare(visible, num_ids)
    return sort_alphabet([*always, *own]), sort_alphabet(rare)


def split_frequent_and_rare(characters: Sequence[str], num_ids: int) -> tuple[Sequence[str], Sequence[str]]:
    """Divide characters into characters with one id and characters with two ids. The remaining characters are omitted.

    Args:
        characters: Characters in the order of descending frequency.
        num_ids: Number of ids.

    Returns:
        The characters with one id, and the characters with two ids.
    """
    own = min(len(characters), num_ids)
    while own and _max_rare(num_ids - own) < min(len(characters) - own, MAX_RARE_CHARACTERS):
        own -= 1
    return characters[:own], characters[own : own + _max_rare(num_ids - own)]


def _max_rare(num_ids: int) -> int:
    """Return the maximum number of characters that this number of ids can encode with two ids each."""
    return min((num_ids // 2) ** 2, MAX_RARE_CHARACTERS)


def is_in_words(character: str) -> bool:
    """Return True if a character is a part of a word.

    Such a character is a letter, digit or mark of a script that separates words with spaces.
    """
    return unicodedata.category(character)[0] in "LNM" and not any(ord(character) in points for points in UNSEPARATED)


def sort_alphabet(alphabet: Iterable[str]) -> str:
    """Join the characters of an alphabet: word characters first, each group sorted by code point."""
    return "".join(sorted(alphabet, key=lambda character: (not is_in_words(character), character)))


def pair_base(rare: Sized) -> int:
    """Return the number of ids for the first half of a rare character. The second half has the same number of ids."""
    return math.isqrt(max(0, len(rare) - 1)) + bool(rare)


def check_alphabet(alphabet: str, rare: str) -> None:
    """Raise ``UserError`` if ``frequent_alphabet`` cannot have returned this alphabet and these rare characters."""
    is_sorted = all(text == sort_alphabet(set(text)) for text in (alphabet, rare))
    visible = [c for c in alphabet + rare if c not in (CAPITAL, CAPITALS)]
    is_visible = not any(unicodedata.category(character) in INVISIBLE for character in visible)
    fits = len(alphabet) + 2 * pair_base(rare) <= MAX_CHARACTERS and set(rare).isdisjoint(alphabet)
    if not (is_sorted and is_visible and fits and " " in alphabet):
        raise UserError(
            "the alphabet cannot be used",
            f"it needs a space, visible characters in their order, each once, and at most {MAX_CHARACTERS} ids",
            "prepare the data again with --alphabet auto",
        )


def fold_character(character: str, case: Case, fold_accents: bool) -> str:
    """Return the character or characters that the encoder reads instead of ``character``.

    White space becomes a space. Letters may lose their accent, become lower case, or be replaced with two letters.
    Other characters stay unchanged. The case ``notebook`` changes no character.
    """
    if case == "notebook":
        return character
    if character in WHITE_SPACE:
        return " "
    if fold_accents and character.isalpha():
        parts = unicodedata.normalize("NFD", character)
        # A Korean syllable decomposes into several letters; the first is not the syllable without an accent.
        if parts[0].isalpha() and not any(map(str.isalpha, parts[1:])):
            character = parts[0]
        small = character.lower()
        if small in LETTERS:
            character = LETTERS[small] if character == small else LETTERS[small].upper()
    lower = character.lower()
    return lower if len(lower) == len(character) else character


@cache
def id_table(case: Case, fold_accents: bool, alphabet: str, rare: str, is_custom: bool) -> npt.NDArray[np.uint8]:
    """Return the id of every code point, uint8 [0x110000].

    The code points from ``SYMBOLS`` on have the ids that follow the ids of the alphabet.
    """
    table = np.full(CODE_POINTS, BLANK, dtype=np.uint8)
    ids = {character: code for code, character in enumerate(alphabet)}
    end = FOLDING_END if is_custom else LATIN_END
    for point in (*range(end), *map(ord, WHITE_SPACE + alphabet)):
        table[point] = ids.get(fold_character(chr(point), case, fold_accents), BLANK)
    symbols = 2 * pair_base(rare)
    table[SYMBOLS : SYMBOLS + symbols] = len(alphabet) + np.arange(symbols)
    return table


@cache
def spelling_table(case: Case, fold_accents: bool, alphabet: str, rare: str) -> dict[int, str]:
    """Return a table for ``str.translate`` that replaces characters with more than one id by characters with one id.

    A rare character is replaced by two symbols, which are code points from ``SYMBOLS`` on. A letter such as ß is
    replaced by the letters that it is read as. A symbol that already occurs in a text is read as an unknown character.
    """
    if not rare and not fold_accents:
        return {}
    side = pair_base(rare)
    spelt = {character: chr(SYMBOLS + n // side) + chr(SYMBOLS + side + n % side) for n, character in enumerate(rare)}
    known = {**dict(zip(alphabet, alphabet)), **spelt}
    points = (*range(FOLDING_END if rare else LATIN_END), *map(ord, rare))
    readings = ((point, fold_character(chr(point), case, fold_accents)) for point in points)
    spellings = {
        point: "".join(known[character] for character in letters)
        for point, letters in readings
        if (len(letters) > 1 or letters in spelt) and all(character in known for character in letters)
    }
    return {**spellings, **{SYMBOLS + number: "\0" for number in range(2 * side)}}


@cache
def id_counts(case: Case, fold_accents: bool, alphabet: str, rare: str) -> npt.NDArray[np.uint8]:
    """Return the number of ids of every code point, without marks of capital letters, uint8 [0x110000]."""
    counts = np.ones(CODE_POINTS, dtype=np.uint8)
    for point, symbols in spelling_table(case, fold_accents, alphabet, rare).items():
        counts[point] = len(symbols)
    return counts


@cache
def capital_letters(fold_accents: bool, alphabet: str, rare: str, is_custom: bool) -> npt.NDArray[np.bool_]:
    """Return a mask of the letters that the case ``keep`` marks, bool [0x110000].

    These are the letters that the encoder reads in lower case, except rare characters.
    """
    table = id_table("keep", fold_accents, alphabet, rare, is_custom)
    known = {*np.flatnonzero(table[:FOLDING_END] != BLANK).tolist()}
    known |= spelling_table("keep", fold_accents, alphabet, "").keys()
    is_capital = np.zeros(CODE_POINTS, dtype=np.bool_)
    is_capital[[point for point in known if chr(point).lower() != chr(point)]] = True
    return is_capital
