"""Hashing of n-grams and words to the rows of a table.

The section "The hash of n-grams" of ``docs/how-to/network.md`` specifies the hash. Five programs compute it:

- Python: this module
- C++ kernels: ``native/hashing.h``
- CUDA kernels: ``cuda/kernels/texts.cuh``
- ONNX Runtime: the graph of ``networks/ngrams/onnx.py``
- the exported web page: the same graph, run by ONNX Runtime Web

``tests/networks/ngram_hash.json`` contains the test cases for all of them. In short:

1. A symbol with the id ``alphabet_size`` is put before the first character and after the last known character. Unknown
   characters are blank.
2. The key of an n-gram is a number in base ``RADIX``, modulo 2^64. Each symbol is one digit, id + 1. The first symbol
   is the most significant digit. An n-gram contains no blank.
3. The finaliser of SplitMix64 (Steele, Lea & Flood 2014) mixes the key. The upper 32 bits h give the row:
   h × rows / 2^32, rounded down.
4. A word is a run of ids below ``letters``. Its key is computed like the key of an n-gram. The key of two consecutive
   words is the key of the first × ``GOLDEN`` + the key of the second. The rows of words follow the rows of n-grams.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from crepe_dist.data.char_encoder import PAD_UNK_ID, CharIds
from crepe_dist.data.counter_rng import splitmix64_finalize
from crepe_dist.native import library
from crepe_dist.native.constants import GOLDEN, RADIX
from crepe_dist.networks.ngrams.kernels import sizes as sizes_of

if TYPE_CHECKING:
    from crepe_dist.networks.ngrams.config import NGramConfig


def add_boundary_symbols(char_ids: CharIds, alphabet_size: int) -> CharIds:
    """Add a symbol with the id ``alphabet_size`` before and after each text. Empty texts remain empty.

    Args:
        char_ids: Encoded documents, uint8 [B, L]. A document ends with its last known character.

    Returns:
        The ids, uint8 [B, L + 2].
    """
    known = char_ids < alphabet_size
    out = np.pad(np.where(known, char_ids, np.uint8(PAD_UNK_ID)), ((0, 0), (1, 1)), constant_values=PAD_UNK_ID)
    (rows,) = np.nonzero(known.any(axis=1))
    lengths = char_ids.shape[1] - known[rows, ::-1].argmax(axis=1)
    out[rows, 0] = out[rows, lengths + 1] = alphabet_size
    return out


def ngram_keys(
    char_ids: CharIds, alphabet_size: int, maxn: int
) -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]]:
    """Compute the keys of all n-grams, for n = 1 … ``maxn``.

    Yields:
        For each n: the keys, uint64 [B, L - n + 1], and a mask of the n-grams that contain no blank.
    """
    digits, known = char_ids.astype(np.uint64) + np.uint64(1), char_ids < alphabet_size
    key, good = digits, known
    for n in range(maxn):
        if n:
            key, good = key[:, :-1] * np.uint64(RADIX) + digits[:, n:], good[:, :-1] & known[:, n:]
        yield key, good


def hash_to_rows(key: npt.NDArray[np.uint64], rows: int) -> npt.NDArray[np.int32]:
    """Map keys to rows: mix the bits of the keys, and scale the upper 32 bits to the number of rows."""
    return ((splitmix64_finalize(key) >> np.uint64(32)) * np.uint64(rows) >> np.uint64(32)).astype(np.int32)


def word_keys(text: CharIds, letters: int) -> list[int]:
    """Return the keys of the words and of the pairs of consecutive words in a text with boundary symbols, uint8 [L]."""
    keys, key, previous = [], 0, 0
    for code in text.tolist():  # The last id is never a letter, so the last word is always completed.
        if code < letters:
            key = (key * RADIX + code + 1) % 2**64
        elif key:
            keys += [key, (previous * GOLDEN + key) % 2**64] if previous else [key]
            key, previous = 0, key
    return keys


def hash_documents(char_ids: CharIds, config: "NGramConfig") -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Hash the n-grams and words of documents into buckets, without duplicates.

    N-grams with unknown characters are skipped.

    Args:
        char_ids: Encoded documents, uint8 [B, L].

    Returns:
        The buckets of each document in ascending order, int32 [B, ``config.max_ngrams``], and the number of valid
        buckets per document, int64 [B]. The other buckets are undefined.
    """
    native, _ = library.find()
    size, counts = (len(char_ids), config.max_ngrams), np.zeros(len(char_ids), np.int64)
    if native is None:
        buckets = np.zeros(size, np.int32)
        texts, first_word = add_boundary_symbols(char_ids, config.alphabet_size), config.buckets - config.word_buckets
        ngrams = list(ngram_keys(texts, config.alphabet_size + 1, config.maxn))
        for row, text in enumerate(texts):
            row_buckets = [hash_to_rows(key[row][known[row]], first_word) for key, known in ngrams]
            if config.word_buckets:
                words = np.array(word_keys(text, config.num_word_char_ids), np.uint64)
                row_buckets.append(first_word + hash_to_rows(words, config.word_buckets))
            distinct = np.unique(np.concatenate(row_buckets))
            buckets[row, : len(distinct)], counts[row] = distinct, len(distinct)
        return buckets, counts
    char_ids, sizes, buckets = np.ascontiguousarray(char_ids), sizes_of(config), np.empty(size, np.int32)
    failed = native.functions.crepe_find_ngrams(
        char_ids.ctypes.data, char_ids.shape[1], len(char_ids), sizes.ctypes.data, config.max_ngrams,
        buckets.ctypes.data, counts.ctypes.data, library.num_threads(),
    )  # fmt: skip
    if failed:
        raise MemoryError("there is not enough memory for the n-grams of this batch")
    return buckets, counts
