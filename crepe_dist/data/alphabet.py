"""Text → uint8 codes by table look-up.

The alphabet is the 69 characters of the notebook (the paper's 70 hold "-" twice; the notebook puts a space in the
place of the second). A code is the position of a character in the alphabet, or ``BLANK`` for an unknown one and for
the padding; both become an all-zero column of the one-hot matrix.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from crepe_dist.errors import UserError
from crepe_dist.native import library

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789-,;.!?:'\"/\\|_@#$%^&*~`+ =<>()[]{}"
FULL_ALPHABET = ALPHABET + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BLANK = 255
HARDLY = 0.1  # of a text's characters: a text of which the network knows no more cannot be read
CODE_POINTS = 0x110000
LONGEST = 1 << 20  # characters a document
# No code point from here on has a letter of the alphabet as its lower case or at the start of its decomposition.
LATIN_END = 0x2200

Mode = Literal["paper", "full", "notebook"]
MODES: tuple[Mode, ...] = ("paper", "full", "notebook")
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
        fold_accents: a letter whose canonical decomposition (NFD) starts with a letter of the alphabet becomes that
            letter (é → e); a deviation from the paper. ``None``: off in mode ``notebook``, on otherwise.

    Raises:
        UserError: unknown mode, or ``feature_len`` below 1.
    """

    mode: Mode = "paper"
    feature_len: int = 1014
    fold_accents: bool | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(
                f"encoding mode {str(self.mode)[:40]!r} does not exist", remedy=f"choose one of {', '.join(MODES)}"
            )
        if not 1 <= self.feature_len <= LONGEST:
            raise UserError(
                f"feature_len is {self.feature_len}", "it is the number of characters a document", f"1 to {LONGEST:,}"
            )
        if self.fold_accents is None:
            object.__setattr__(self, "fold_accents", self.mode != "notebook")

    @property
    def alphabet(self) -> str:
        return FULL_ALPHABET if self.mode == "full" else ALPHABET

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
        table = _table(self.mode, bool(self.fold_accents))
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
        ascii_table = _ascii_table(self.mode)
        rows = []
        for text in texts:
            kept = text[:length] if in_reading_order else text[-length:]
            if kept.isascii():
                row = kept.encode("ascii").translate(ascii_table)
            else:
                points = np.frombuffer(kept.encode("utf-32-le", "surrogatepass"), dtype="<u4")
                row = _table(self.mode, bool(self.fold_accents))[points].tobytes()
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
        return np.asarray(_table(self.mode, bool(self.fold_accents))[points] != BLANK)

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
        return f"reads {self.feature_len:,} characters, accents {folded}, mode {self.mode}"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "alphabet": self.alphabet}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Encoding:
        """Inverse of ``to_dict``.

        Raises:
            UserError: the saved alphabet is not the one that this version gives to the mode.
            KeyError, TypeError, ValueError: it was not saved by ``to_dict``.
        """
        mode, feature_len, fold_accents = saved["mode"], saved["feature_len"], saved["fold_accents"]
        if not isinstance(mode, str) or type(feature_len) is not int or type(fold_accents) not in (bool, type(None)):
            raise ValueError("mode, feature_len or fold_accents is of another kind")
        encoding = cls(mode, feature_len, fold_accents)  # type: ignore[arg-type]
        if saved.get("alphabet", encoding.alphabet) != encoding.alphabet:
            raise UserError(
                "the saved alphabet is not the one of this version",
                f"mode {encoding.mode!r} has {len(encoding.alphabet)} characters, "
                f"the file says {str(saved['alphabet'])[:200]!r}",
                "prepare the data again, or use the version that wrote the file",
            )
        return encoding


def _code(character: str, mode: Mode, fold_accents: bool) -> int:
    alphabet = FULL_ALPHABET if mode == "full" else ALPHABET
    candidates = [character]
    if fold_accents and character.isalpha():
        base = unicodedata.normalize("NFD", character)[0]
        candidates += [base] if base.isalpha() else []
    if mode == "paper":
        candidates += [candidate.lower() for candidate in candidates]
    found = (alphabet.index(candidate) for candidate in candidates if len(candidate) == 1 and candidate in alphabet)
    return next(found, BLANK)


@cache
def _ascii_table(mode: Mode) -> bytes:
    return bytes(_code(chr(point), mode, False) for point in range(128)).ljust(256, b"\xff")


@cache
def _table(mode: Mode, fold_accents: bool) -> Codes:
    """uint8 [0x110000]: the code of every code point."""
    table = np.full(CODE_POINTS, BLANK, dtype=np.uint8)
    for point in range(LATIN_END):
        table[point] = _code(chr(point), mode, fold_accents)
    return table
