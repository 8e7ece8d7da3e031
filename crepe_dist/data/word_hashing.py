"""Words of encoded documents, hashed: what a text is about, where n-grams of characters tell how it is written.

A word is a run of letters and digits, in either case. In scripts that put no spaces between words, and for rare
characters, each character is a word. Two neighbouring words count as a word as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crepe_dist.data.char_encoder import PAD_UNK_ID, CharEncoder, CharIds
from crepe_dist.data.counter_rng import splitmix64, splitmix64_finalize
from crepe_dist.native.constants import RADIX

BUCKET_BITS = 24
UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF))
OUTSIDE, LETTER, ALONE, PAIR, PAIR_END = range(5)  # kinds of codes; a pair's are in the order of the codes
Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
Places = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class DocumentWords:
    """The distinct words of documents.

    Attributes:
        starts: where the words of each document start in ``words``, then their number, int64 [documents + 1].
        words: numbers of the words, below ``size``, int64.
        size: number of different words that a document may have.
    """

    starts: Numbers
    words: Numbers
    size: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def counts(self, label_probs: Floats) -> Floats:
        """Sum the shares, [documents, classes], of the documents with each word, [size, classes]; integers exactly."""
        lengths = np.diff(self.starts)
        columns = (np.bincount(self.words, np.repeat(share, lengths), self.size) for share in label_probs.T)
        return np.stack(list(columns), axis=1)

    def sums(self, values: Floats) -> Floats:
        """Sum the values, [size, classes], of the words of each document, [documents, classes]; integers exactly."""
        columns = (np.cumsum(np.concatenate([[0.0], value[self.words]])) for value in values.T)
        return np.stack([np.diff(column[self.starts]) for column in columns], axis=1)

    def select(self, numbers: Numbers) -> DocumentWords:
        """Keep the words ``numbers``, ascending, and number them from 0."""
        place = np.full(self.size, -1, np.int64)
        place[numbers] = np.arange(len(numbers))
        kept = place[self.words]
        starts = np.concatenate([[0], np.cumsum(kept >= 0)])[self.starts]
        return DocumentWords(starts, kept[kept >= 0], len(numbers))


def concatenate(parts: list[DocumentWords]) -> DocumentWords:
    """Join the words of several groups of documents."""
    offsets = np.cumsum([0, *(len(part.words) for part in parts)])
    starts = [part.starts[:-1] + offset for part, offset in zip(parts, offsets.tolist())]
    return DocumentWords(
        np.concatenate([*starts, offsets[-1:]]), np.concatenate([part.words for part in parts]), parts[0].size
    )


class WordHasher:
    """Finder of the words of encoded documents."""

    def __init__(self, encoder: CharEncoder) -> None:
        characters = encoder.alphabet
        lower = [characters.find(character.lower()) for character in characters]
        self._value = np.zeros(256, np.uint64)
        self._value[: encoder.num_ids] = np.arange(1, encoder.num_ids + 1)
        self._value[: len(characters)] = [1 + (code if same < 0 else same) for code, same in enumerate(lower)]
        self._kind = np.zeros(256, np.uint8)
        self._kind[: len(characters)] = [_kind(character) for character in characters]
        ends = (PAIR, PAIR_END) if encoder.in_reading_order else (PAIR_END, PAIR)
        self._kind[len(characters) : encoder.num_ids] = np.repeat(ends, encoder.pair_base)
        self._kind[PAD_UNK_ID] = OUTSIDE
        length = encoder.feature_len
        self._powers = _powers(RADIX, length)
        self._inverses = _powers(pow(RADIX, -1, 1 << 64), length)

    def bounds(self, char_ids: CharIds) -> tuple[Places, Places, Places]:
        """Tell which codes, uint8 [n, feature_len], are in words, begin words and end words, bool [n, feature_len]."""
        kind = np.pad(self._kind[char_ids], ((0, 0), (1, 1)))
        before, kind, after = kind[:, :-2], kind[:, 1:-1], kind[:, 2:]
        is_word = kind != OUTSIDE
        starts = is_word & ~_continues(before, kind)
        return is_word, starts, is_word & ~((after != OUTSIDE) & _continues(kind, after))

    def find(self, char_ids: CharIds) -> DocumentWords:
        """Find the distinct words of documents, uint8 [n, feature_len]; their numbers ascend."""
        is_word, starts, ends = self.bounds(char_ids)
        document, first = np.nonzero(starts)
        last = np.nonzero(ends)[1]
        # The digits of a word are read off the sums of those of its document.
        sums = np.cumsum(np.where(is_word, self._value[char_ids] * self._powers, np.uint64(0)), axis=1, dtype=np.uint64)
        sums = np.pad(sums, ((0, 0), (1, 0)))
        words = splitmix64_finalize((sums[document, last + 1] - sums[document, first]) * self._inverses[first])
        is_next = document[1:] == document[:-1]
        pairs = splitmix64(words[:-1]) + words[1:]
        buckets = np.concatenate([words, splitmix64_finalize(pairs[is_next])]) >> np.uint64(64 - BUCKET_BITS)
        documents = np.concatenate([document, document[1:][is_next]])
        keys = np.unique(documents << BUCKET_BITS | buckets.astype(np.int64))
        starts_at = np.searchsorted(keys, np.arange(len(char_ids) + 1) << BUCKET_BITS)
        return DocumentWords(starts_at, keys & ((1 << BUCKET_BITS) - 1), 1 << BUCKET_BITS)


def _kind(character: str) -> int:
    if not character.isalnum():
        return OUTSIDE
    return ALONE if any(first <= ord(character) <= last for first, last in UNSPACED) else LETTER


def _continues(before: npt.NDArray[np.uint8], kind: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Tell which codes continue the word of the code before."""
    return np.asarray(((kind == LETTER) & (before == LETTER)) | ((kind == PAIR_END) & (before == PAIR)))


def _powers(base: int, length: int) -> npt.NDArray[np.uint64]:
    return np.cumprod(np.array([1, *[base] * (length - 1)], np.uint64), dtype=np.uint64)  # modulo 2**64
