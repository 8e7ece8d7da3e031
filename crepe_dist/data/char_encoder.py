"""Encoding of texts as character ids (uint8) with a lookup table.

The id of a character is its position in the alphabet. Unknown characters and padding have the id ``PAD_UNK_ID``, which
becomes an all-zero column of the one-hot matrix. The standard alphabet has 69 characters, as in the original Gluon
notebook ("the notebook" below): the paper lists 70, but "-" twice, and the notebook replaces the second "-" by a space.
``characters`` folds letters and builds alphabets for other scripts.

If a text has more ids than a network reads, its middle is removed and one blank id marks the gap, because the beginning
and the end of a text are the most informative. The encoding of the notebook removes the end of a long text.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data import characters
from crepe_dist.errors import UserError
from crepe_dist.native import constants, library
from crepe_dist.settings.fields import CASES, MAX_DOCUMENT_LENGTH, Case

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789-,;.!?:'\"/\\|_@#$%^&*~`+ =<>()[]{}"
PAD_UNK_ID = constants.BLANK
# Character between the beginning and the end of a truncated text. No alphabet contains it.
TRUNCATION_MARK = "\0"

STANDARD_ALPHABETS: dict[Case, str] = {
    "fold": ALPHABET,
    "keep": ALPHABET + characters.CAPITAL + characters.CAPITALS,
    "notebook": ALPHABET,
}
MARKS = (characters.CAPITAL, characters.CAPITALS)
# A mark and the letters that it capitalizes.
CAPITAL_RUN = re.compile(f"{characters.CAPITAL}(.?)|{characters.CAPITALS}(\\w*)", re.DOTALL)
CharIds = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class CharEncoder:
    """Encoder that converts each text to ``feature_len`` character ids.

    Most characters have one id. Rare characters and letters such as ß have two ids.

    Cases:
        ``fold``: lower case, in reversed order (the authors' ``train/data.lua``). White space is read as a space.
        ``keep``: like ``fold``, with a mark before each run of capital letters: ``characters.CAPITAL`` before a
            single letter, ``characters.CAPITALS`` before two or more letters. A word has the same ids in any case, and
            only the marks indicate its case.
        ``notebook``: in reading order. Upper-case letters, and white space other than the space, are treated as
            unknown. The notebook's ``encode`` computes the lower-cased, reversed text but then loops over the original
            text, and its published parameters depend on that.

    Args:
        case: Case, direction and standard alphabet; see above.
        feature_len: Number of ids per document.
        fold_accents: True to replace an accented letter by the first letter of its canonical decomposition (NFD, é →
            e), and to replace the letters in ``characters.LETTERS``, which have no decomposition (ß → ss). The paper
            does not replace letters. ``None`` means False in case ``notebook`` and for a custom alphabet, otherwise
            True.
        alphabet: Characters in the order of their ids; word characters come first. A custom alphabet contains a
            space, and is sorted by ``characters.sort_alphabet``. Empty means the standard alphabet of the case.
        two_id_characters: Rare characters, sorted by ``characters.sort_alphabet``. They have no ids of their own.
            Character number n has the two ids ``len(alphabet)`` + n // k and ``len(alphabet)`` + k + n % k, where k² is
            the smallest square that is at least the number of rare characters.

    Raises:
        UserError: The case is unknown, ``feature_len`` is out of range, or the custom alphabet is invalid.
    """

    case: Case = "fold"
    feature_len: int = 1014
    fold_accents: bool | None = None
    alphabet: str = ""
    two_id_characters: str = ""

    def __post_init__(self) -> None:
        if self.case not in CASES:
            raise UserError(f"case is {str(self.case)[:40]!r}", remedy=f"choose one of {', '.join(CASES)}")
        if not 1 <= self.feature_len <= MAX_DOCUMENT_LENGTH:
            raise UserError(
                f"feature_len is {self.feature_len}", remedy=f"give a number of characters to {MAX_DOCUMENT_LENGTH:,}"
            )
        if not self.alphabet:
            object.__setattr__(self, "alphabet", STANDARD_ALPHABETS[self.case])
        if self.case == "keep" and not set(MARKS) <= set(self.alphabet):
            object.__setattr__(self, "alphabet", characters.sort_alphabet({*self.alphabet, *MARKS}))
        if self.is_custom or self.two_id_characters:
            characters.check_alphabet(self.alphabet, self.two_id_characters)
        if self.fold_accents is None:
            object.__setattr__(self, "fold_accents", self.case != "notebook" and not self.is_custom)

    @property
    def is_custom(self) -> bool:
        """True if the alphabet differs from the standard alphabet of the case."""
        return self.alphabet != STANDARD_ALPHABETS[self.case]

    @property
    def in_reading_order(self) -> bool:
        """True if the ids are in the order of the text, as in the notebook. Otherwise they are reversed."""
        return self.case == "notebook"

    @property
    def pair_base(self) -> int:
        """Number of ids for the first half of a rare character, which is also the number of ids for the second half."""
        return characters.pair_base(self.two_id_characters)

    @property
    def num_ids(self) -> int:
        """Number of ids: one for each character of the alphabet, and the ids for both halves of rare characters."""
        return len(self.alphabet) + 2 * self.pair_base

    @property
    def num_word_ids(self) -> int:
        """Number of ids of characters that form words, at least 1. These ids are the lowest ones."""
        return max(1, sum(map(characters.is_in_words, self.alphabet)))

    def same_mapping(self, other: "CharEncoder") -> bool:
        """Return whether both encoders map characters to the same ids. Folding of accents is not compared."""
        return (self.case, self.alphabet, self.two_id_characters) == (
            other.case,
            other.alphabet,
            other.two_id_characters,
        )

    @property
    def typo_ids(self) -> CharIds:
        """Ids that simulated typos produce, ascending, uint8 [n].

        These are the ids of a to z. If the alphabet is custom, they are the ids of its letters, or of all its
        characters if it has no letters.
        """
        if not self.is_custom:
            return np.arange(26, dtype=np.uint8)
        char_ids = [code for code, character in enumerate(self.alphabet) if character.isalpha()]
        return np.array(char_ids or range(len(self.alphabet)), dtype=np.uint8)

    @property
    def head_tail_lengths(self) -> tuple[int, int]:
        """Numbers of ids at the beginning and end of a truncated text; see the function ``head_tail_lengths``."""
        return head_tail_lengths({"feature_len": self.feature_len, "case": self.case})

    @property
    def _table(self) -> CharIds:
        return characters.id_table(
            self.case, bool(self.fold_accents), self.alphabet, self.two_id_characters, self.is_custom
        )

    @property
    def _spelling(self) -> dict[int, str]:
        return characters.spelling_table(self.case, bool(self.fold_accents), self.alphabet, self.two_id_characters)

    def encode(self, texts: Sequence[str]) -> CharIds:
        """Return the character ids of texts, uint8 [len(texts), feature_len], padded with ``PAD_UNK_ID``."""
        length = self.feature_len
        if max(map(len, texts), default=0) > 2 * length:
            texts = list(map(self._ends, texts))
        texts = self._mark_capitals(texts)
        if self.two_id_characters or not all(map(str.isascii, texts)) or max(map(len, texts), default=0) > length:
            texts = [self._truncate(self._spell(text)) for text in texts]
        return self._encode_truncated(texts)

    def encode_and_measure(self, texts: Sequence[str]) -> tuple[CharIds, npt.NDArray[np.int64]]:
        """Return the results of ``encode`` and ``lengths`` in one pass over the texts."""
        spelt = list(map(self._spell, self._mark_capitals(texts)))
        return self._encode_truncated(list(map(self._truncate, spelt))), np.array(list(map(len, spelt)), np.int64)

    def _ends(self, text: str) -> str:
        """Return the first and the last ``feature_len`` characters of a text.

        Each character has at least one id, so no other characters can be read. The result also contains the neighbours
        of each capital letter that is read.
        """
        length = self.feature_len
        return text if len(text) <= 2 * length else text[:length] + text[-length:]

    def _encode_truncated(self, texts: Sequence[str]) -> CharIds:
        """Encode texts that ``_truncate`` returned."""
        native, _ = library.find()
        return self._encode_native(native, texts) if native and len(texts) else self._encode_plain(texts)

    def _expand(self, text: str) -> str:
        """Spell a text so that each character has one id.

        Marks of capital letters are inserted, and a character that has two ids becomes two characters.
        """
        return self._spell(*self._mark_capitals([text]))

    def _mark_capitals(self, texts: Sequence[str]) -> Sequence[str]:
        """Insert the marks of the case ``keep``. A mark that a text already contains becomes an unknown character."""
        if self.case != "keep" or not texts:
            return texts
        joined, ends = "".join(texts), np.cumsum(list(map(len, texts)))
        for mark in MARKS:
            joined = joined.replace(mark, TRUNCATION_MARK)
        codec, dtype = ("ascii", np.uint8) if joined.isascii() else ("utf-32-le", np.dtype("<u4"))
        points = np.frombuffer(joined.encode(codec, "surrogatepass"), dtype)
        places, marks = self._marks(points, ends)
        marked = np.insert(points, places, marks).tobytes().decode(codec, "surrogatepass")
        new_ends = (ends + np.searchsorted(places, ends)).tolist()
        return [marked[start:end] for start, end in zip([0, *new_ends], new_ends)]

    def _marks(
        self, points: npt.NDArray[Any], ends: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        """Find the runs of capital letters in concatenated texts.

        Args:
            points: Code points of the texts, uint8 for ASCII texts, otherwise uint32.
            ends: End of each text, [texts].

        Returns:
            The position of the first letter of each run, and the code point of its mark.
        """
        is_capital = self.is_capital[points] if points.dtype != np.uint8 else self._is_ascii_capital(points)
        continues = is_capital[1:] & is_capital[:-1]
        continues[ends[(ends > 0) & (ends < len(points))] - 1] = False  # A run ends at the end of its text.
        places = np.flatnonzero(is_capital & ~np.append(False, continues))
        is_long = np.append(continues, False)[places]
        return places, np.array(list(map(ord, MARKS)), np.uint8)[is_long.astype(np.intp)]

    def _is_ascii_capital(self, points: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        # ``bytes.translate`` is three times as fast as an index array.
        return np.frombuffer(points.tobytes().translate(self.is_capital[:256].tobytes()), np.bool_)

    def _spell(self, text: str) -> str:
        """Replace characters that have more than one id by characters that have one id each.

        Rare characters and letters such as ß become two characters.
        """
        if text.isascii() and not self.two_id_characters:
            return text
        spelling = self._spelling
        is_spelt = self.two_id_characters or any(chr(point) in text for point in spelling)
        return text.translate(spelling) if is_spelt else text

    def _truncate(self, text: str) -> str:
        """Return at most ``feature_len`` characters of a text that ``_spell`` returned. A longer text is truncated."""
        length = self.feature_len
        if len(text) <= length:
            return text
        head, tail = self.head_tail_lengths
        return text[:head] + TRUNCATION_MARK * (length - head - tail) + text[len(text) - tail :]

    def _encode_native(self, native: library.Library, texts: Sequence[str]) -> CharIds:
        """Encode texts that ``_truncate`` returned, with the C++ kernels."""
        length = self.feature_len
        ends = np.cumsum(np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)))
        joined = "".join(texts)
        ascii_only = joined.isascii()
        points = joined.encode("ascii") if ascii_only else joined.encode("utf-32-le", "surrogatepass")
        table = self._table
        char_ids = np.empty((len(texts), length), dtype=np.uint8)
        native.functions.crepe_encode(
            points,
            1 if ascii_only else 4,
            ends.ctypes.data,
            len(texts),
            length,
            not self.in_reading_order,
            table.ctypes.data,
            char_ids.ctypes.data,
        )
        return char_ids

    def _encode_plain(self, texts: Sequence[str]) -> CharIds:
        """Encode texts that ``_truncate`` returned, with NumPy."""
        char_ids = np.full((len(texts), self.feature_len), PAD_UNK_ID, np.uint8)
        for text, row in zip(texts, char_ids):
            row[: len(text)] = self._char_ids_of(text)
        return char_ids

    def _char_ids_of(self, text: str) -> CharIds:
        """Return the character ids, uint8 [n], of a text that ``_expand`` returned. No padding is added."""
        return np.asarray(self._table[_code_points(text)][:: 1 if self.in_reading_order else -1])

    def encode_points(self, points: npt.NDArray[Any]) -> CharIds:
        """Return the id of each code point that has one id, uint8 [n]. All other code points are ``PAD_UNK_ID``."""
        return np.asarray(self._table[points])

    def windows(self, text: str) -> tuple[CharIds, CharIds]:
        """Return the ids of a whole text, uint8 [n], and its overlapping windows, uint8 [windows, feature_len].

        The number of windows is the smallest that covers the text, and the windows are evenly spaced. A text that fits
        into ``feature_len`` has one window.
        """
        char_ids, length = self._char_ids_of(self._expand(text)), self.feature_len
        padded = np.pad(char_ids, (0, max(0, length - len(char_ids))), constant_values=PAD_UNK_ID)
        starts = np.linspace(0, len(padded) - length, math.ceil(len(padded) / length)).astype(np.int64)
        return char_ids, np.lib.stride_tricks.sliding_window_view(padded, length)[starts]

    def lengths(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the number of ids of each text before truncation, int64 [n]."""
        return np.array([len(self._spell(text)) for text in self._mark_capitals(texts)], np.int64)

    def _char_indices(self, text: str) -> npt.NDArray[np.int64]:
        """For each id of a text before truncation, return the index of the character that it encodes, int64 [n]."""
        if self.case != "keep" and len(self._spell(text)) == len(text):
            return np.arange(len(text))
        points = _code_points(text)
        counts = characters.id_counts(self.case, bool(self.fold_accents), self.alphabet, self.two_id_characters)[points]
        if self.case == "keep":  # The id of a mark belongs to the capital letter after the mark.
            counts[self._marks(points, np.array([len(text)]))[0]] += 1
        return np.repeat(np.arange(len(text)), counts)

    def offset_mapping(self, text: str) -> npt.NDArray[np.int64]:
        """For each id of an encoded text, return the index of the character that it encodes, int64 [n].

        The blank id in the middle of a truncated text gets the index of the first character that it replaces.
        """
        places, length, tail = self._char_indices(text), self.feature_len, self.head_tail_lengths[1]
        if len(places) > length:
            places = np.concatenate([places[: length - tail], places[len(places) - tail :]])
        return places if self.in_reading_order else places[::-1]

    def truncated_range(self, text: str) -> range:
        """Return the range of the character positions that truncation removes. It is empty if nothing is truncated."""
        length = self.feature_len
        if len(text) <= length and len(self._expand(text)) <= length:
            return range(0)
        places, (head, tail) = self._char_indices(self._ends(text)), self.head_tail_lengths
        start = int(places[head - 1]) + 1 if head else 0
        stop = int(places[len(places) - tail]) + max(0, len(text) - 2 * length) if tail else len(text)
        return range(start, max(start, stop))

    @cached_property
    def _known(self) -> npt.NDArray[np.bool_]:
        known = self._table != PAD_UNK_ID
        known[characters.SYMBOLS :] = False
        known[list(map(ord, MARKS))] = False
        known[list(map(ord, self.multi_id_characters()))] = True
        return np.asarray(known)

    def has_id(self, points: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """Return a mask of the code points that have an id: uint32 [n] → bool [n]."""
        return np.asarray(self._known[points])

    def multi_id_characters(self) -> dict[str, list[int]]:
        """Return the ids of each character that has more than one id.

        These are rare characters, characters that fold to a rare character, and letters such as ß (ss).
        """
        spelt = {chr(point): symbols for point, symbols in self._spelling.items() if len(symbols) > 1}
        return {
            character: [int(self._table[ord(symbol)]) for symbol in symbols] for character, symbols in spelt.items()
        }

    def export_tables(self) -> dict[str, Any]:
        """Return the tables that an encoder in another language needs, as JSON-like data.

        ``counted`` is the number of ids that stand for a character. The other ids are the second halves of rare
        characters.
        """
        table = self._table[: characters.SYMBOLS]  # The symbols of rare characters come after these code points.
        known = ["".join(map(chr, np.flatnonzero(table == code).tolist())) for code in range(self.num_ids)]
        for code in self.mark_ids:  # A mark that a text contains is an unknown character.
            known[code] = ""
        listed = {"characters": known, "spellings": self.multi_id_characters()}
        return {**listed, "kept": list(self.head_tail_lengths), "counted": self.num_ids - self.pair_base}

    def starts_character(self, char_ids: CharIds) -> npt.NDArray[np.bool_]:
        """Return a mask of the ids that start a known character.

        Blanks and marks of capital letters do not start a character. If a rare character has two ids, only the first
        id starts it.
        """
        return np.asarray((char_ids < self.num_ids - self.pair_base) & ~np.isin(char_ids, self.mark_ids))

    @property
    def is_capital(self) -> npt.NDArray[np.bool_]:
        """Mask of the code points that are marked in the case ``keep``; see ``characters.capital_letters``."""
        return characters.capital_letters(
            bool(self.fold_accents), self.alphabet, self.two_id_characters, self.is_custom
        )

    @cached_property
    def has_capital(self) -> npt.NDArray[np.bool_]:
        """Mask of the ids whose character becomes one capital letter in upper case, bool [256]."""
        has_capital = np.zeros(256, np.bool_)
        upper = [character.upper() for character in self.alphabet]
        has_capital[: len(upper)] = [len(letters) == 1 and self.is_capital[ord(letters)] for letters in upper]
        return has_capital

    @property
    def mark_ids(self) -> list[int]:
        """Ids of the marks ``characters.CAPITAL`` and ``characters.CAPITALS``; empty unless the case is ``keep``."""
        return list(map(self.alphabet.index, MARKS)) if self.case == "keep" else []

    def decode(self, char_ids: CharIds) -> str:
        """Turn ids, uint8 [feature_len], back into text in reading order. Blanks become spaces, and padding is
        removed. In the case ``keep``, a run of capital letters continues to the end of its word."""
        used = np.flatnonzero(char_ids != PAD_UNK_ID)
        numbers = char_ids[: used[-1] + 1 if len(used) else 0].tolist()[:: 1 if self.in_reading_order else -1]
        rare, second, text = len(self.alphabet), len(self.alphabet) + self.pair_base, []
        for code, after in zip(numbers, [*numbers[1:], PAD_UNK_ID]):
            number = (code - rare) * self.pair_base + after - second
            if code < rare:
                text.append(self.alphabet[code])
            elif code < second <= after < self.num_ids and number < len(self.two_id_characters):
                text.append(self.two_id_characters[number])
            elif not second <= code < self.num_ids:
                text.append(" ")
        return CAPITAL_RUN.sub(lambda run: (run[1] or run[2] or "").upper(), "".join(text))

    def flags(self, file: Path) -> str:
        """Return the flags of ``prepare`` that select this encoder.

        Args:
            file: File that contains the alphabet. It is used only if the alphabet is custom.
        """
        alphabet = str(file) if self.is_custom else "standard"
        return f"--case {self.case} --feature-len {self.feature_len} --alphabet {alphabet}"

    def to_dict(self) -> dict[str, Any]:
        """Return the encoder as JSON-like data. The key ``two_id_characters`` may be missing."""
        return {name: value for name, value in asdict(self).items() if value or name != "two_id_characters"}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "CharEncoder":
        """Restore an encoder from the result of ``to_dict``.

        Raises:
            UserError: The encoder is invalid.
            KeyError, TypeError, ValueError: A field is missing or has the wrong type.
        """
        if not isinstance(saved["alphabet"], str) or type(saved["feature_len"]) is not int:
            raise ValueError("the alphabet is not a text, or feature_len not a number")
        names = ("case", "feature_len", "fold_accents", "alphabet")
        return cls(**{name: saved[name] for name in names}, two_id_characters=str(saved.get("two_id_characters", "")))


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def head_tail_lengths(encoding: Mapping[str, Any]) -> tuple[int, int]:
    """Return the numbers of ids at the beginning and at the end of a truncated text.

    Args:
        encoding: ``feature_len`` and ``case`` of an encoder, as in ``CharEncoder.to_dict``.
    """
    length = encoding["feature_len"]
    return (length, 0) if encoding["case"] == "notebook" else ((length - 1) // 2, length // 2)


def describe_truncation(encoding: Mapping[str, Any]) -> str:
    """Describe which characters of a truncated text are read, such as "the first 506 and the last 507 characters"."""
    ends = zip(("first", "last"), head_tail_lengths(encoding))
    return f"{' and '.join(f'the {end} {count:,}' for end, count in ends if count)} characters"
