"""Encoding of texts as uint8 codes, by table look-up.

A character's code is its position in the alphabet. Unknown characters and padding have the code ``BLANK``, which
becomes an all-zero column of the one-hot matrix. The standard alphabet has the notebook's 69 characters: the paper's 70
contain "-" twice, and the notebook replaces the second one by a space. ``frequent_alphabet`` makes alphabets for other
scripts. If a script has more characters than there are codes, each rare one is read as two codes, which no other
character has.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.errors import UserError
from crepe_dist.native import library
from crepe_dist.settings.allowed_values import LONGEST_DOCUMENT, MODES, Mode

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789-,;.!?:'\"/\\|_@#$%^&*~`+ =<>()[]{}"
FULL_ALPHABET = ALPHABET + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BLANK = 255
UNREADABLE_SHARE = 0.1  # a text is unreadable if at most this share of its characters is in the alphabet
CODE_POINTS = 0x110000
MAX_CHARACTERS = 254  # codes of an alphabet: they are bytes, BLANK takes one, and the edges of a text another
MIN_COUNT = 5  # occurrences that a character needs to enter a generated alphabet
INVISIBLE = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")  # Unicode categories: controls, direction marks, line separators
MOST_PAIRED = 96**2  # rare characters at most, so that 61 others and the space keep a code of their own
SYMBOLS = 0x10FF00  # private code points that stand for the codes of rare characters while a text is encoded
# Code points from here on never fold to a letter of the standard alphabets, by lower case or decomposition.
LATIN_END = 0x2200
# Code points from here on have neither a lower case nor a decomposition.
FOLDING_END = 0x30000

STANDARD_ALPHABETS: dict[Mode, str] = {"paper": ALPHABET, "full": FULL_ALPHABET, "notebook": ALPHABET}
Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Encoding:
    """Parameters of the encoding of a text as ``feature_len`` codes: one per code point, or two of a rare one.

    Modes:
        ``paper``: lower case; the LAST ``feature_len`` codes in reversed order (the authors' ``train/data.lua``).
        ``full``: as ``paper``, with separate upper and lower case: 95 characters, the paper's "Full" alphabet.
        ``notebook``: the FIRST ``feature_len`` codes in reading order; upper case is unknown. The notebook's
            ``encode`` computes the lower-cased, reversed text but then loops over the original, and its published
            parameters depend on that.

    Args:
        mode: case, direction and standard alphabet; see above.
        feature_len: number of codes per document.
        fold_accents: replacement of an accented letter by the first letter of its canonical decomposition (NFD,
            é → e), a deviation from the paper. ``None`` means off in mode ``notebook`` and with a custom alphabet, on
            otherwise.
        alphabet: characters in the order of their codes. A custom alphabet contains a space and is sorted by code
            point. Empty means the standard alphabet of the mode.
        paired: rare characters, sorted by code point, for which a custom alphabet has no room. Number n is read as the
            codes ``len(alphabet)`` + n // k and ``len(alphabet)`` + k + n % k, where k² is the smallest square that
            is not below their number.

    Raises:
        UserError: The mode is unknown, ``feature_len`` is out of range, or the custom alphabet is invalid.
    """

    mode: Mode = "paper"
    feature_len: int = 1014
    fold_accents: bool | None = None
    alphabet: str = ""
    paired: str = ""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(
                f"encoding mode {str(self.mode)[:40]!r} does not exist", remedy=f"choose one of {', '.join(MODES)}"
            )
        if not 1 <= self.feature_len <= LONGEST_DOCUMENT:
            raise UserError(
                f"feature_len is {self.feature_len}",
                "it is the number of characters per document",
                f"give a number from 1 to {LONGEST_DOCUMENT:,}",
            )
        if not self.alphabet:
            object.__setattr__(self, "alphabet", STANDARD_ALPHABETS[self.mode])
        if self.is_custom or self.paired:
            _check_alphabet(self.alphabet, self.paired)
        if self.fold_accents is None:
            object.__setattr__(self, "fold_accents", self.mode != "notebook" and not self.is_custom)

    @property
    def is_custom(self) -> bool:
        """True if the alphabet differs from the mode's standard alphabet."""
        return self.alphabet != STANDARD_ALPHABETS[self.mode]

    @property
    def side(self) -> int:
        """Number of codes that are the first of a rare character, and of those that are the second."""
        return _side(self.paired)

    @property
    def codes(self) -> int:
        """Number of codes: those of the alphabet, and those of which rare characters have two."""
        return len(self.alphabet) + 2 * self.side

    @property
    def characters_known(self) -> int:
        """Number of characters that have codes."""
        return len(self.alphabet) + len(self.paired)

    def reads_as(self, other: Encoding) -> bool:
        """Return whether both map characters to the same codes, whether or not accents are folded."""
        return (self.mode, self.alphabet, self.paired) == (other.mode, other.alphabet, other.paired)

    @property
    def letters(self) -> Codes:
        """Codes that simulated typing errors produce, ascending, uint8 [n].

        These are a to z; with a custom alphabet its letters, or all its characters if it has no letters.
        """
        if not self.is_custom:
            return np.arange(26, dtype=np.uint8)
        codes = [code for code, character in enumerate(self.alphabet) if character.isalpha()]
        return np.array(codes or range(len(self.alphabet)), dtype=np.uint8)

    @property
    def _table(self) -> Codes:
        return _table(self.mode, bool(self.fold_accents), self.alphabet, self.paired)

    @property
    def _spelling(self) -> dict[int, str]:
        return _spelling(self.mode, bool(self.fold_accents), self.paired)

    def encode(self, texts: Sequence[str]) -> Codes:
        """Encode texts as uint8 [len(texts), feature_len], padded with ``BLANK``."""
        if self.paired:
            length, spelling = self.feature_len, self._spelling
            kept = (text[:length] if self.mode == "notebook" else text[-length:] for text in texts)
            texts = [text.translate(spelling) for text in kept]
        native, _ = library.find()
        return self._encode_native(native, texts) if native and len(texts) else self._encode_plain(texts)

    def _encode_native(self, native: library.Library, texts: Sequence[str]) -> Codes:
        length = self.feature_len
        in_reading_order = self.mode == "notebook"
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        if lengths.max() > length:
            texts = [text[:length] if in_reading_order else text[-length:] for text in texts]
            lengths = np.minimum(lengths, length)
        ends = np.cumsum(lengths)
        joined = "".join(texts)
        ascii_only = joined.isascii()
        points = joined.encode("ascii") if ascii_only else joined.encode("utf-32-le", "surrogatepass")
        table = self._table
        codes = np.empty((len(texts), length), dtype=np.uint8)
        native.functions.crepe_encode(
            points,
            1 if ascii_only else 4,
            ends.ctypes.data,
            len(texts),
            length,
            not in_reading_order,
            table.ctypes.data,
            codes.ctypes.data,
        )
        return codes

    def _encode_plain(self, texts: Sequence[str]) -> Codes:
        length = self.feature_len
        in_reading_order = self.mode == "notebook"
        table = self._table
        ascii_table = table[:128].tobytes().ljust(256, b"\xff")
        rows = []
        for text in texts:
            kept = text[:length] if in_reading_order else text[-length:]
            if kept.isascii():
                row = kept.encode("ascii").translate(ascii_table)
            else:
                points = np.frombuffer(kept.encode("utf-32-le", "surrogatepass"), dtype="<u4")
                row = table[points].tobytes()
            rows.append(row.ljust(length, b"\xff") if in_reading_order else row.rjust(length, b"\xff"))
        codes = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), length)
        return codes if in_reading_order else codes[:, ::-1]

    def lengths(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the number of codes of each whole text, int64 [n]."""
        spelling = self._spelling
        return np.array([len(text.translate(spelling) if spelling else text) for text in texts], np.int64)

    def positions(self, text: str) -> npt.NDArray[np.int64]:
        """Return the indices of the characters behind codes 0, 1, … of a text, int64 [n]."""
        in_order, spelling = self.mode == "notebook", self._spelling
        start = 0 if in_order else max(0, len(text) - self.feature_len)
        kept = text[start : start + self.feature_len]
        places = np.arange(start, start + len(kept))
        if spelling:
            places = np.repeat(places, [len(spelling.get(ord(each), " ")) for each in kept])
        return places[: self.feature_len] if in_order else places[::-1][: self.feature_len]

    def known(self, points: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """Tell which code points, uint32 [n], have codes, as bool [n]."""
        rare = np.array([ord(each) for each in self.pairs()], np.uint32)
        return np.asarray((self._table[points] != BLANK) & (points < SYMBOLS) | np.isin(points, rare))

    def characters(self) -> list[str]:
        """Return all characters that map to each code, in the order of the codes; none for codes of rare characters."""
        table = self._table[:SYMBOLS]
        return ["".join(map(chr, np.flatnonzero(table == code).tolist())) for code in range(self.codes)]

    def pairs(self) -> dict[str, list[int]]:
        """Return the two codes of each rare character, and of each that counts as one."""
        spelt = {chr(point): symbols for point, symbols in self._spelling.items() if len(symbols) == 2}
        return {each: [int(self._table[ord(symbol)]) for symbol in symbols] for each, symbols in spelt.items()}

    def listed(self) -> dict[str, Any]:
        """Return ``characters`` and ``pairs`` as exports have them, JSON-like."""
        return {"characters": self.characters(), "pairs": self.pairs()}

    def counted(self, codes: Codes) -> npt.NDArray[np.bool_]:
        """Tell which codes stand for a known character: not those of blanks, and of a pair's two only the first."""
        return np.asarray(codes < self.codes - self.side)

    def unreadable(self, codes: Codes, lengths: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Tell which texts are almost entirely blank to the network, as bool [n].

        A text is unreadable if the alphabet covers at most ``UNREADABLE_SHARE`` of its encoded characters, not counting
        spaces.

        Args:
            codes: encoded texts, uint8 [n, feature_len].
            lengths: number of characters in each text, int [n].
        """
        known = np.count_nonzero(self.counted(codes), axis=1)
        read = np.count_nonzero(codes != BLANK, axis=1)
        letters = known - np.count_nonzero(codes == self.alphabet.index(" "), axis=1)
        unknown = np.minimum(lengths + read - known, self.feature_len) - read
        return np.asarray((unknown > 0) & (letters <= UNREADABLE_SHARE * (letters + unknown)))

    def decode(self, codes: Codes) -> str:
        """Turn codes, uint8 [feature_len], back into text in reading order, with blanks as spaces and no padding."""
        text = [self.alphabet[code] if code < len(self.alphabet) else " " for code in codes.tolist()]
        is_pair, numbers = self.pairs_in(codes[None])
        for place, number in zip(np.flatnonzero(is_pair[0]).tolist(), numbers[is_pair].tolist()):
            text[place : place + 2] = self.paired[number] if number < len(self.paired) else " ", ""
        used = np.flatnonzero(codes != BLANK)
        text = text[: used[-1] + 1] if len(used) else []
        return "".join(text if self.mode == "notebook" else text[::-1])

    def pairs_in(self, codes: Codes) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """Find the rare characters in codes, uint8 [n, L]: where both codes of one stand, and its number in ``paired``.

        Returns:
            Whether a pair begins at each place but the last, and its number, bool and int64 [n, L - 1].
        """
        before, after = codes[:, :-1].astype(np.int64), codes[:, 1:].astype(np.int64)
        first, second = (before, after) if self.mode == "notebook" else (after, before)
        row, column = first - len(self.alphabet), second - len(self.alphabet) - self.side
        return (row >= 0) & (row < self.side) & (column >= 0) & (column < self.side), row * self.side + column

    def described(self) -> str:
        """Describe the encoding in words, for a message."""
        folded = "folded" if self.fold_accents else "not folded"
        custom = f", a custom alphabet ({self.characters_known:,} characters)" if self.is_custom else ""
        return f"reads {self.feature_len:,} characters, accents {folded}, mode {self.mode}{custom}"

    def flags(self, file: Path) -> str:
        """Return the flags of ``prepare`` that select this encoding.

        Args:
            file: manifest or checkpoint description to read a custom alphabet from.
        """
        accents = "on" if self.fold_accents else "off"
        alphabet = str(file) if self.is_custom else "usual"
        return f"--mode {self.mode} --feature-len {self.feature_len} --fold-accents {accents} --alphabet {alphabet}"

    def to_dict(self) -> dict[str, Any]:
        """Return the encoding as JSON-like data; without rare characters as earlier versions wrote it."""
        return {name: each for name, each in asdict(self).items() if self.paired or name != "paired"}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Encoding:
        """Restore an encoding from ``to_dict``'s result.

        Raises:
            UserError: The encoding is invalid.
            KeyError: A field is missing.
            TypeError: ``saved`` is not a dictionary.
            ValueError: A field has the wrong type.
        """
        mode, feature_len, fold_accents = saved["mode"], saved["feature_len"], saved["fold_accents"]
        if not isinstance(mode, str) or type(feature_len) is not int or type(fold_accents) not in (bool, type(None)):
            raise ValueError("mode, feature_len or fold_accents has the wrong type")
        alphabet = saved["alphabet"]
        if not isinstance(alphabet, str) or not alphabet:
            raise ValueError("the alphabet is not a text")
        paired = saved.get("paired", "")
        if not isinstance(paired, str):
            raise ValueError("the rare characters are not a text")
        return cls(mode, feature_len, fold_accents, alphabet, paired)  # type: ignore[arg-type]


def frequent_alphabet(counts: Mapping[int, int], mode: Mode, fold_accents: bool) -> tuple[str, str]:
    """Make an alphabet of the most frequent characters, and list the rare ones, both sorted by code point.

    Characters are counted after folding: in lower case in mode ``paper``, and without accents if ``fold_accents``. The
    alphabet always contains a space. Invisible characters are left out. If at most ``MAX_CHARACTERS`` occur
    ``MIN_COUNT`` times, these are the alphabet, and all others are left out. Otherwise all but the ``MOST_PAIRED`` most
    frequent are kept, and as many of them have a code of their own as two codes for the rest leave room. Ties are
    broken by code point.

    Args:
        counts: number of occurrences of each code point.
        mode: mode of the encoding.
        fold_accents: replacement of accented letters; see ``Encoding``.

    Returns:
        The alphabet, and the rare characters of ``Encoding.paired``.
    """
    seen: Counter[str] = Counter({" ": 0})
    for point, count in counts.items():
        seen[_folded(chr(point), mode, fold_accents)] += count
    del seen[" "]
    visible = [each for each in seen if unicodedata.category(each) not in INVISIBLE]
    visible.sort(key=lambda each: (-seen[each], each))
    usual = [each for each in visible if seen[each] >= MIN_COUNT]
    if len(usual) < MAX_CHARACTERS:
        return "".join(sorted([" ", *usual])), ""
    own = MAX_CHARACTERS - 1
    while own + 2 * _side(visible[own : own + MOST_PAIRED]) >= MAX_CHARACTERS:
        own -= 1
    return "".join(sorted([" ", *visible[:own]])), "".join(sorted(visible[own : own + MOST_PAIRED]))


def _side(paired: Sequence[str]) -> int:
    """Return the number of codes that are the first of a pair, which is that of the second ones."""
    return math.isqrt(max(0, len(paired) - 1)) + bool(paired)


def _check_alphabet(alphabet: str, paired: str) -> None:
    problem, codes = "", len(alphabet) + 2 * _side(paired)
    if codes > MAX_CHARACTERS:
        problem = (
            f"it needs {codes:,} codes for {len(alphabet) + len(paired):,} characters; the limit is {MAX_CHARACTERS}"
        )
    elif any(one >= other for each in (alphabet, paired) for one, other in zip(each, each[1:])):
        problem = "its characters are not unique and sorted by code point"
    elif any(unicodedata.category(each) in INVISIBLE for each in alphabet + paired):
        problem = "it has invisible characters"
    elif not set(paired).isdisjoint(alphabet):
        problem = "a character is both rare and in the alphabet"
    elif " " not in alphabet:
        problem = "it has no space"
    if problem:
        raise UserError("the alphabet cannot be used", problem, "prepare the data again with --alphabet auto")


def _folded(character: str, mode: Mode, fold_accents: bool) -> str:
    """Return the character that ``character`` is encoded as: without accent, in lower case, or itself."""
    if fold_accents and character.isalpha():
        parts = unicodedata.normalize("NFD", character)
        # A Korean syllable decomposes into several letters; the first is not the syllable without an accent.
        if parts[0].isalpha() and not any(map(str.isalpha, parts[1:])):
            character = parts[0]
    lower = character.lower() if mode == "paper" else character
    return lower if len(lower) == 1 else character


@cache
def _table(mode: Mode, fold_accents: bool, alphabet: str, paired: str) -> Codes:
    """Return the code of every code point, uint8 [0x110000]; ``SYMBOLS`` have those after the alphabet's."""
    table = np.full(CODE_POINTS, BLANK, dtype=np.uint8)
    codes = {character: code for code, character in enumerate(alphabet)}
    end = LATIN_END if alphabet in (ALPHABET, FULL_ALPHABET) else FOLDING_END
    for point in (*range(end), *(ord(character) for character in alphabet)):
        table[point] = codes.get(_folded(chr(point), mode, fold_accents), BLANK)
    symbols = 2 * _side(paired)
    table[SYMBOLS : SYMBOLS + symbols] = len(alphabet) + np.arange(symbols)
    return table


@cache
def _spelling(mode: Mode, fold_accents: bool, paired: str) -> dict[int, str]:
    """Return the two ``SYMBOLS`` of each rare code point, for ``str.translate``; a blank for a symbol in a text."""
    if not paired:
        return {}
    side = _side(paired)
    spelt = {each: chr(SYMBOLS + n // side) + chr(SYMBOLS + side + n % side) for n, each in enumerate(paired)}
    folded = ((point, _folded(chr(point), mode, fold_accents)) for point in (*range(FOLDING_END), *map(ord, paired)))
    own = {point: spelt[each] for point, each in folded if each in spelt}
    return {**own, **{SYMBOLS + number: "\0" for number in range(2 * side)}}
