"""Encoding of texts as uint8 codes, by table look-up.

A code is a character's position in the alphabet. Unknown characters and padding have the code ``BLANK``, which becomes
an all-zero column of the one-hot matrix. The standard alphabet has the notebook's 69 characters: the paper's 70 contain
"-" twice, and the notebook replaces the second one by a space. ``frequent_alphabet`` makes alphabets for other scripts.
"""

from __future__ import annotations

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
MAX_CHARACTERS = 254  # size of an alphabet: codes are bytes, and BLANK takes one of them
MIN_COUNT = 5  # occurrences that a character needs to enter a generated alphabet
INVISIBLE = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")  # Unicode categories: controls, direction marks, line separators
# Code points from here on never fold to a letter of the standard alphabets, by lower case or decomposition.
LATIN_END = 0x2200
# Code points from here on have neither a lower case nor a decomposition.
FOLDING_END = 0x30000

STANDARD_ALPHABETS: dict[Mode, str] = {"paper": ALPHABET, "full": FULL_ALPHABET, "notebook": ALPHABET}
Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Encoding:
    """Parameters of the encoding of a text as ``feature_len`` codes, one per code point.

    Modes:
        ``paper``: lower case; the LAST ``feature_len`` characters in reversed order (the authors' ``train/data.lua``).
        ``full``: as ``paper``, with separate upper and lower case: 95 characters, the paper's "Full" alphabet.
        ``notebook``: the FIRST ``feature_len`` characters in reading order; upper case is unknown. The notebook's
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

    Raises:
        UserError: The mode is unknown, ``feature_len`` is out of range, or the custom alphabet is invalid.
    """

    mode: Mode = "paper"
    feature_len: int = 1014
    fold_accents: bool | None = None
    alphabet: str = ""

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
        elif self.is_custom:
            _check_alphabet(self.alphabet)
        if self.fold_accents is None:
            object.__setattr__(self, "fold_accents", self.mode != "notebook" and not self.is_custom)

    @property
    def is_custom(self) -> bool:
        """True if the alphabet differs from the mode's standard alphabet."""
        return self.alphabet != STANDARD_ALPHABETS[self.mode]

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
        return _table(self.mode, bool(self.fold_accents), self.alphabet)

    def encode(self, texts: Sequence[str]) -> Codes:
        """Encode texts as uint8 [len(texts), feature_len], padded with ``BLANK``."""
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

    def positions(self, length: int) -> range:
        """Return the indices of the characters behind codes 0, 1, … of a text of ``length`` characters."""
        if self.mode == "notebook":
            return range(min(length, self.feature_len))
        return range(length - 1, max(length - self.feature_len, 0) - 1, -1)

    def known(self, points: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """Tell which code points, uint32 [n], the alphabet covers, as bool [n]."""
        return np.asarray(self._table[points] != BLANK)

    def characters(self) -> list[str]:
        """Return all characters that map to each code, in the order of the codes."""
        table = self._table
        return ["".join(map(chr, np.flatnonzero(table == code).tolist())) for code in range(len(self.alphabet))]

    def unreadable(self, codes: Codes, lengths: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Tell which texts are almost entirely blank to the network, as bool [n].

        A text is unreadable if the alphabet covers at most ``UNREADABLE_SHARE`` of its encoded characters, not counting
        spaces.

        Args:
            codes: encoded texts, uint8 [n, feature_len].
            lengths: number of characters in each text, int [n].
        """
        known = np.count_nonzero(codes != BLANK, axis=1)
        letters = known - np.count_nonzero(codes == self.alphabet.index(" "), axis=1)
        unknown = np.minimum(lengths, self.feature_len) - known
        return np.asarray((unknown > 0) & (letters <= UNREADABLE_SHARE * (letters + unknown)))

    def decode(self, codes: Codes) -> str:
        """Turn codes, uint8 [feature_len], back into text in reading order, with blanks as spaces and no padding."""
        text = "".join(self.alphabet[code] if code < len(self.alphabet) else " " for code in codes.tolist())
        used = np.flatnonzero(codes != BLANK)
        text = text[: used[-1] + 1] if len(used) else ""
        return text if self.mode == "notebook" else text[::-1]

    def described(self) -> str:
        """Describe the encoding in words, for a message."""
        folded = "folded" if self.fold_accents else "not folded"
        custom = f", a custom alphabet ({len(self.alphabet)} characters)" if self.is_custom else ""
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
        """Return the encoding as JSON-like data."""
        return asdict(self)

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
        return cls(mode, feature_len, fold_accents, alphabet)  # type: ignore[arg-type]


def frequent_alphabet(counts: Mapping[int, int], mode: Mode, fold_accents: bool) -> str:
    """Make an alphabet of the most frequent characters, sorted by code point.

    Characters are counted after folding: in lower case in mode ``paper``, and without accents if ``fold_accents``. The
    alphabet always contains a space. Characters that occur less than ``MIN_COUNT`` times or are invisible are left out.
    Ties are broken by code point.

    Args:
        counts: number of occurrences of each code point.
        mode: mode of the encoding.
        fold_accents: replacement of accented letters; see ``Encoding``.
    """
    seen: Counter[str] = Counter({" ": 0})
    for point, count in counts.items():
        seen[_folded(chr(point), mode, fold_accents)] += count
    del seen[" "]
    eligible = [
        each for each, count in seen.items() if count >= MIN_COUNT and unicodedata.category(each) not in INVISIBLE
    ]
    eligible.sort(key=lambda each: (-seen[each], each))
    return "".join(sorted([" ", *eligible[: MAX_CHARACTERS - 1]]))


def _check_alphabet(alphabet: str) -> None:
    problem = ""
    if len(alphabet) > MAX_CHARACTERS:
        problem = f"it has {len(alphabet):,} characters; the limit is {MAX_CHARACTERS}"
    elif any(one >= other for one, other in zip(alphabet, alphabet[1:])):
        problem = "its characters are not unique and sorted by code point"
    elif any(unicodedata.category(each) in INVISIBLE for each in alphabet):
        problem = "it has invisible characters"
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
def _table(mode: Mode, fold_accents: bool, alphabet: str) -> Codes:
    """Return the code of every code point, uint8 [0x110000]."""
    table = np.full(CODE_POINTS, BLANK, dtype=np.uint8)
    codes = {character: code for code, character in enumerate(alphabet)}
    end = LATIN_END if alphabet in (ALPHABET, FULL_ALPHABET) else FOLDING_END
    for point in (*range(end), *(ord(character) for character in alphabet)):
        table[point] = codes.get(_folded(chr(point), mode, fold_accents), BLANK)
    return table
