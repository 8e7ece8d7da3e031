"""Text → uint8 codes by table look-up.

The usual alphabet is the 69 characters of the notebook (the paper's 70 hold "-" twice; the notebook puts a space in the
place of the second); texts in another script have one of their own, see ``frequent``. A code is the position of a
character in the alphabet, or ``BLANK`` for an unknown one and for the padding; both become an all-zero column of the
one-hot matrix.
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
HARDLY = 0.1  # of a text's characters: a text of which the network knows no more cannot be read
CODE_POINTS = 0x110000
MOST = 254  # characters of an alphabet: codes are bytes, and one of these is BLANK
HANDFUL = 5  # times that a character has to be seen to come into an alphabet
HIDDEN = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")  # categories of what cannot be shown: controls, directions, ends of lines
# No code point from here on has a letter of the usual alphabets as its lower case or at the start of its decomposition.
LATIN_END = 0x2200
# No code point from here on has a lower case or a decomposition.
CHANGING_END = 0x30000

USUAL: dict[Mode, str] = {"paper": ALPHABET, "full": FULL_ALPHABET, "notebook": ALPHABET}
Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Encoding:
    """How a text becomes ``feature_len`` codes. One code point is one position.

    Modes:
        ``paper``: lower-case, the LAST ``feature_len`` characters in reversed order (the authors' ``train/data.lua``).
        ``full``: the same with upper and lower case apart, 95 characters (the paper's "Full" alphabet).
        ``notebook``: the FIRST ``feature_len`` characters in reading order, upper case unknown. The notebook's
            ``encode`` computes the lower-cased, reversed text and then loops over the original; its published
            parameters need exactly that.

    Args:
        fold_accents: a letter with accents counts as the one at the start of its canonical decomposition (NFD, é → e);
            a deviation from the paper. ``None``: off in mode ``notebook`` and with an own alphabet, on otherwise.
        alphabet: characters in the order of their codes; an own one in that of their code points, a space among them.
            Empty: that of the mode.

    Raises:
        UserError: unknown mode, ``feature_len`` below 1, or an own alphabet as ``frequent`` would not make it.
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
                "it is the number of characters a document",
                f"1 to {LONGEST_DOCUMENT:,}",
            )
        if not self.alphabet:
            object.__setattr__(self, "alphabet", USUAL[self.mode])
        elif self.is_own:
            _check_alphabet(self.alphabet)
        if self.fold_accents is None:
            object.__setattr__(self, "fold_accents", self.mode != "notebook" and not self.is_own)

    @property
    def is_own(self) -> bool:
        """Whether the alphabet is another than that of the mode."""
        return self.alphabet != USUAL[self.mode]

    @property
    def letters(self) -> Codes:
        """The codes that typing errors give, rising, uint8 [n]: those of a to z, or of an own alphabet's letters, or of
        all its characters where it has none."""
        if not self.is_own:
            return np.arange(26, dtype=np.uint8)
        codes = [code for code, character in enumerate(self.alphabet) if character.isalpha()]
        return np.array(codes or range(len(self.alphabet)), dtype=np.uint8)

    @property
    def _table(self) -> Codes:
        return _table(self.mode, bool(self.fold_accents), self.alphabet)

    def encode(self, texts: Sequence[str]) -> Codes:
        """uint8 [len(texts), feature_len], ``BLANK`` after the end of a short text."""
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
        """The characters of a text of ``length`` characters that its codes 0, 1, … stand for; others are not read."""
        if self.mode == "notebook":
            return range(min(length, self.feature_len))
        return range(length - 1, max(length - self.feature_len, 0) - 1, -1)

    def known(self, points: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """Whether code points, uint32 [n], have a code, bool [n]."""
        return np.asarray(self._table[points] != BLANK)

    def characters(self) -> list[str]:
        """All characters that each code stands for, in the order of the codes; no other character has one."""
        table = self._table
        return ["".join(map(chr, np.flatnonzero(table == code).tolist())) for code in range(len(self.alphabet))]

    def unreadable(self, codes: Codes, lengths: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which texts hardly show more than blanks: at most ``HARDLY`` of what is read of them, spaces left aside, has
        a code.

        Args:
            codes: uint8 [n, feature_len].
            lengths: int [n], characters of each text.
        """
        known = np.count_nonzero(codes != BLANK, axis=1)
        letters = known - np.count_nonzero(codes == self.alphabet.index(" "), axis=1)
        unknown = np.minimum(lengths, self.feature_len) - known
        return np.asarray((unknown > 0) & (letters <= HARDLY * (letters + unknown)))

    def decode(self, codes: Codes) -> str:
        """The text that uint8 [feature_len] codes still show: reading order, blanks as spaces, padding dropped."""
        text = "".join(self.alphabet[code] if code < len(self.alphabet) else " " for code in codes.tolist())
        used = np.flatnonzero(codes != BLANK)
        text = text[: used[-1] + 1] if len(used) else ""
        return text if self.mode == "notebook" else text[::-1]

    def described(self) -> str:
        """In words, for a message."""
        folded = "folded" if self.fold_accents else "not folded"
        own = f", an alphabet of its own ({len(self.alphabet)} characters)" if self.is_own else ""
        return f"reads {self.feature_len:,} characters, accents {folded}, mode {self.mode}{own}"

    def flags(self, file: Path) -> str:
        """What ``prepare`` has to be given for this encoding.

        Args:
            file: that an own alphabet can be read from.
        """
        accents = "on" if self.fold_accents else "off"
        alphabet = str(file) if self.is_own else "usual"
        return f"--mode {self.mode} --feature-len {self.feature_len} --fold-accents {accents} --alphabet {alphabet}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Encoding:
        """Inverse of ``to_dict``.

        Raises:
            UserError: an encoding that cannot be.
            KeyError, TypeError, ValueError: it was not saved by ``to_dict``.
        """
        mode, feature_len, fold_accents = saved["mode"], saved["feature_len"], saved["fold_accents"]
        if not isinstance(mode, str) or type(feature_len) is not int or type(fold_accents) not in (bool, type(None)):
            raise ValueError("mode, feature_len or fold_accents is of another kind")
        alphabet = saved["alphabet"]
        if not isinstance(alphabet, str) or not alphabet:
            raise ValueError("the alphabet is no text")
        return cls(mode, feature_len, fold_accents, alphabet)  # type: ignore[arg-type]


def frequent(counts: Mapping[int, int], mode: Mode, fold_accents: bool) -> str:
    """The alphabet for texts: the most frequent of their characters, in the order of the code points.

    They are counted as the encoding takes them: in mode ``paper`` in lower case, and with ``fold_accents`` without
    accents, so that no letter of the alphabet has one. A space is always in it, and never what is seen less than
    ``HANDFUL`` times or cannot be shown. Equal counts are in the order of the code points.

    Args:
        counts: how often each code point stands in the texts.
    """
    seen: Counter[str] = Counter({" ": 0})
    for point, count in counts.items():
        seen[_shown(chr(point), mode, fold_accents)] += count
    del seen[" "]
    able = [each for each, count in seen.items() if count >= HANDFUL and unicodedata.category(each) not in HIDDEN]
    able.sort(key=lambda each: (-seen[each], each))
    return "".join(sorted([" ", *able[: MOST - 1]]))


def _check_alphabet(alphabet: str) -> None:
    """Strictly rising code points: no character is there twice, and none has changed its place since."""
    problem = ""
    if len(alphabet) > MOST:
        problem = f"it has {len(alphabet):,} characters, and {MOST} are the most"
    elif any(one >= other for one, other in zip(alphabet, alphabet[1:])):
        problem = "its characters are not in the order of their code points, each of them once"
    elif any(unicodedata.category(each) in HIDDEN for each in alphabet):
        problem = "it has characters that cannot be shown"
    elif " " not in alphabet:
        problem = "it has no space"
    if problem:
        raise UserError("the alphabet cannot be used", problem, "prepare the data again: --alphabet auto makes one")


def _shown(character: str, mode: Mode, fold_accents: bool) -> str:
    """The character that this one counts as."""
    if fold_accents and character.isalpha():
        parts = unicodedata.normalize("NFD", character)
        # A Korean syllable is made of letters; its first is not the same without an accent.
        if parts[0].isalpha() and not any(map(str.isalpha, parts[1:])):
            character = parts[0]
    lower = character.lower() if mode == "paper" else character
    return lower if len(lower) == 1 else character


@cache
def _table(mode: Mode, fold_accents: bool, alphabet: str) -> Codes:
    """uint8 [0x110000]: the code of every code point."""
    table = np.full(CODE_POINTS, BLANK, dtype=np.uint8)
    codes = {character: code for code, character in enumerate(alphabet)}
    end = LATIN_END if alphabet in (ALPHABET, FULL_ALPHABET) else CHANGING_END
    for point in (*range(end), *(ord(character) for character in alphabet)):
        table[point] = codes.get(_shown(chr(point), mode, fold_accents), BLANK)
    return table
