"""Hashed words of encoded documents. Words carry the topic of a text; character n-grams carry its style.

A word is a run of letters and digits; case is ignored. Each character of a script without spaces between words is a
word by itself. Each rare character, which has two ids, is also a word by itself, in any script. Each pair of
neighbouring words also counts as a word."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crepe_dist.data.char_encoder import PAD_UNK_ID, CharEncoder, CharIds
from crepe_dist.data.counter_rng import splitmix64, splitmix64_finalize
from crepe_dist.native.constants import RADIX

BUCKET_BITS = 24  # Bits of a word's number: there are 2^24 numbers.
# Ranges of code points of scripts without spaces between words.
UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF))
# Kinds of ids: outside words, part of a word, a word by itself, and the two halves of a rare character in the order
# in which they are stored.
OUTSIDE, LETTER, ALONE, PAIR, PAIR_END = range(5)
Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
Places = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class DocumentWords:
    """The distinct words of documents, in compressed sparse rows.

    Attributes:
        starts: Index in ``words`` of the first word of each document, then the total number of words, int64 [documents
            + 1].
        words: Numbers of the words, from 0 to ``size`` - 1, int64.
        size: Number of different words that a document may have.
    """

    starts: Numbers
    words: Numbers
    size: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def counts(self, label_probs: Floats) -> Floats:
        """Return, for each word, the sum of the label probabilities of the documents that contain it.

        If all probabilities are 0 or 1, the sums are exact.

        Args:
            label_probs: Probability of each class for each document, float64 [documents, classes].

        Returns:
            float64 [size, classes].
        """
        lengths = np.diff(self.starts)
        columns = (np.bincount(self.words, np.repeat(class_probs, lengths), self.size) for class_probs in label_probs.T)
        return np.stack(list(columns), axis=1)

    def sums(self, values: Floats) -> Floats:
        """Return, for each document, the sum of the values of its words. Sums of integers are exact.

        Args:
            values: Values of each word, float64 [size, classes].

        Returns:
            float64 [documents, classes].
        """
        columns = (np.cumsum(np.concatenate([[0.0], value[self.words]])) for value in values.T)
        return np.stack([np.diff(column[self.starts]) for column in columns], axis=1)

    def select(self, numbers: Numbers) -> "DocumentWords":
        """Keep only some of the words, and renumber them from 0.

        Args:
            numbers: Numbers of these words, in ascending order.
        """
        new_number = np.full(self.size, -1, np.int64)
        new_number[numbers] = np.arange(len(numbers))
        renumbered = new_number[self.words]
        starts = np.concatenate([[0], np.cumsum(renumbered >= 0)])[self.starts]
        return DocumentWords(starts, renumbered[renumbered >= 0], len(numbers))


def concatenate(parts: list[DocumentWords]) -> DocumentWords:
    """Concatenate the words of multiple groups of documents."""
    offsets = np.cumsum([0, *(len(part.words) for part in parts)])
    starts = [part.starts[:-1] + offset for part, offset in zip(parts, offsets.tolist())]
    return DocumentWords(
        np.concatenate([*starts, offsets[-1:]]), np.concatenate([part.words for part in parts]), parts[0].size
    )


class WordHasher:
    """Finds the words in encoded documents."""

    def __init__(self, encoder: CharEncoder) -> None:
        characters = encoder.alphabet
        lower = [characters.find(character.lower()) for character in characters]
        self._value = np.zeros(256, np.uint64)
        self._value[: encoder.num_ids] = np.arange(1, encoder.num_ids + 1)
        self._value[: len(characters)] = [1 + (code if same < 0 else same) for code, same in enumerate(lower)]
        self._kind = np.zeros(256, np.uint8)
        self._kind[: len(characters)] = [_kind(character) for character in characters]
        self._kind[len(characters) : encoder.num_ids] = np.repeat((PAIR_END, PAIR), encoder.pair_base)
        self._kind[PAD_UNK_ID] = OUTSIDE
        length = encoder.feature_len
        self._powers = _powers(RADIX, length)
        self._inverses = _powers(pow(RADIX, -1, 1 << 64), length)

    def bounds(self, char_ids: CharIds) -> tuple[Places, Places, Places]:
        """Return three masks, each bool [n, feature_len]: ids in words, first ids of words, and last ids of words.

        Args:
            char_ids: Documents, uint8 [n, feature_len].
        """
        kind = np.pad(self._kind[char_ids], ((0, 0), (1, 1)))
        previous, kind, following = kind[:, :-2], kind[:, 1:-1], kind[:, 2:]
        is_word = kind != OUTSIDE
        starts = is_word & ~_continues(previous, kind)
        return is_word, starts, is_word & ~((following != OUTSIDE) & _continues(kind, following))

    def find(self, char_ids: CharIds) -> DocumentWords:
        """Find the distinct words of documents, uint8 [n, feature_len]. Each document's word numbers are ascending."""
        is_word, starts, ends = self.bounds(char_ids)
        document, first = np.nonzero(starts)
        last = np.nonzero(ends)[1]
        # A word's hash is the difference of two prefix sums over its document, which is faster than a loop over the
        # words.
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


def _continues(previous: npt.NDArray[np.uint8], kind: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return a mask of the ids that continue the word of the preceding id."""
    return np.asarray(((kind == LETTER) & (previous == LETTER)) | ((kind == PAIR_END) & (previous == PAIR)))


def _powers(base: int, length: int) -> npt.NDArray[np.uint64]:
    return np.cumprod(np.array([1, *[base] * (length - 1)], np.uint64), dtype=np.uint64)  # modulo 2**64
