"""Augmentation of encoded documents: typing errors, which also measure robustness, and word dropout.

Both change the codes, because a training document is stored as codes only.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.char_encoder import PAD_UNK_ID, CharEncoder, CharIds
from crepe_dist.data.counter_rng import Numbers, bernoulli, hash_random, splitmix64
from crepe_dist.data.dataset import Split, Transform
from crepe_dist.data.word_hashing import WordHasher

DEFAULT_ENCODER = CharEncoder()
Places = npt.NDArray[np.int64]


def add_typos(char_ids: CharIds, typo_prob: float, keys: Numbers, letters: CharIds, kept: tuple[int, int]) -> CharIds:
    """Add typing errors to documents, as a function of the codes, the rate and the keys.

    Each character is hit with probability ``rate``. A hit is with equal probability a substitution by another letter, a
    deletion, an insertion of a letter before it, or a swap with the next character in the order of the codes.
    Characters hit at one rate are also hit at every higher rate. A document that becomes too long is cut as its text
    would be; after deletions, the end is padded.

    Args:
        codes: documents, uint8 [n, L]. ``BLANK`` after a document's last known character is padding and stays
            blank.
        rate: probability of an error per character, 0 to 1.
        keys: key of the random numbers of each document, uint64 [n].
        letters: codes that substitutions and insertions draw from; see ``CharEncoder.typo_ids``.
        kept: numbers of codes at the front and at the back of a document that becomes too long.

    Returns:
        A copy with errors.
    """
    known = char_ids != PAD_UNK_ID
    documents, length = char_ids.shape
    ends = np.where(known.any(axis=1), length - known[:, ::-1].argmax(axis=1), 0)
    positions = np.arange(length)
    drawn = splitmix64(keys[:, None] + positions.astype(np.uint64))
    is_hit = bernoulli(typo_prob, drawn) & (positions < ends[:, None])
    document, place = np.nonzero(is_hit)
    hits, drawn = document * length + place, splitmix64(drawn[is_hit])
    substituted, deleted, inserted, swapped = (drawn & np.uint64(3) == kind for kind in range(4))
    random = drawn >> np.uint64(2)

    flat = char_ids.flatten()
    _swap(flat, hits[swapped & (place + 1 < ends[document])])
    _substitute(flat, hits[substituted], random[substituted], letters)
    # Insert and delete in all documents at once; `start` below then follows their changed lengths.
    flat = np.insert(flat, hits[inserted], letters[random[inserted] % np.uint64(len(letters))])
    flat = np.delete(flat, hits[deleted] + np.searchsorted(hits[inserted], hits[deleted]))
    gained = np.bincount(document[inserted], minlength=documents) - np.bincount(document[deleted], minlength=documents)
    result = np.full_like(char_ids, PAD_UNK_ID)
    start, (front, back) = 0, kept
    for row, count, end in zip(result, (length + gained).tolist(), (ends + gained).tolist()):
        if end > length:
            row[:front] = flat[start : start + front]
            row[length - back :] = flat[start + end - back : start + end]
        else:
            row[:end] = flat[start : start + end]
        start += count
    return result


def _swap(flat: npt.NDArray[Any], positions: Places) -> None:
    """Swap each of these characters with the next one, in order; in a run of neighbours the first moves to the end."""
    is_first = np.diff(positions, prepend=-2) != 1
    is_last = np.append(is_first[1:], True)[: len(positions)]
    moved = flat[positions[is_first]]
    flat[positions] = flat[positions + 1]
    flat[positions[is_last] + 1] = moved


def _substitute(flat: npt.NDArray[Any], positions: Places, random: Numbers, letters: CharIds) -> None:
    old, count = flat[positions], len(letters)
    which = np.minimum(np.searchsorted(letters, old), count - 1).astype(np.uint64)
    # For a letter, choose among the others, counted from the one after it.
    others = which + np.uint64(1) + random % np.uint64(max(1, count - 1))
    flat[positions] = letters[np.where(letters[which] == old, others, random) % np.uint64(count)]


def with_typos(
    split: Split, typo_prob: float, seed: int = 0, epoch: int = 0, encoder: CharEncoder = DEFAULT_ENCODER
) -> Split:
    """Return a view of a split with typing errors in its codes; its texts stay unchanged.

    The errors of a row are a function of (seed, epoch, row), so any rank that reads the row sees the same errors. A
    rare character has two codes, and an error in either makes another or an unknown character of it.
    """
    if not typo_prob:
        return split
    letters, kept = (
        encoder.typo_ids,
        encoder.head_tail_lengths if encoder.in_reading_order else encoder.head_tail_lengths[::-1],
    )

    return split.with_transform(
        lambda char_ids, rows: add_typos(char_ids, typo_prob, hash_random(seed, epoch, rows), letters, kept)
    )


def word_dropout(char_ids: CharIds, max_prob: float, keys: Numbers, finder: WordHasher) -> CharIds:
    """Leave out words, and the character after each; a document keeps at least one word (Iyyer et al. 2015, ACL).

    Soft labels of a teacher repeat what it knows of a text's most telling words. A student that does not always see
    these learns what the other words say.

    Args:
        codes: documents, uint8 [n, L].
        most: largest probability that a word is left out. Each document has its own, uniform from 0 on, so that some
            are nearly whole, as those that a network classifies are.
        keys: key of the random numbers of each document, uint64 [n].
    """
    is_word, starts = finder.bounds(char_ids)[:2]
    number = np.cumsum(starts, axis=1).astype(np.uint64)  # from 1 on within words; 0 draws the probability
    rates = max_prob * (splitmix64(keys) >> np.uint64(32)) / (1 << 32)
    is_left_out = is_word & bernoulli(rates[:, None], splitmix64(keys[:, None] + number))
    is_left_out &= (is_word & ~is_left_out).any(axis=1, keepdims=True)
    is_left_out[:, 1:] |= is_left_out[:, :-1] & ~is_word[:, 1:]
    order = np.argsort(is_left_out, axis=1, kind="stable")
    return np.take_along_axis(np.where(is_left_out, PAD_UNK_ID, char_ids), order, axis=1)


def with_word_dropout(split: Split, max_prob: float, encoder: CharEncoder) -> Split:
    """Return a view of a training split that leaves out words in each epoch; see ``word_dropout``."""
    finder = WordHasher(encoder)

    def of_epoch(seed: int, epoch: int) -> Transform:
        return lambda char_ids, rows: word_dropout(
            char_ids, max_prob, splitmix64(hash_random(seed, epoch, rows)), finder
        )

    return replace(split, epoch_transform=of_epoch)
