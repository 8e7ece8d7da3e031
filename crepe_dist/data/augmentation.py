"""Augmentation of encoded documents by typos and word dropout.

Typos are also used to measure robustness. Both augmentations change character ids, because the text of a training
document is not stored.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.char_encoder import PAD_UNK_ID, CharEncoder, CharIds
from crepe_dist.data.counter_rng import Numbers, bernoulli, hash_random, splitmix64
from crepe_dist.data.dataset import Split, Transform
from crepe_dist.data.word_hashing import WordHasher

DEFAULT_ENCODER = CharEncoder()
CASE_DRAW = 1  # Key that makes the random numbers of ``with_case_noise`` differ from the numbers of ``with_typos``.
Places = npt.NDArray[np.int64]  # Positions in the character ids of all documents, concatenated.


def add_typos(
    char_ids: CharIds, typo_prob: float, keys: Numbers, letters: CharIds, head_tail: tuple[int, int]
) -> CharIds:
    """Add typos to documents. The result depends only on the arguments.

    Each character is changed with probability ``typo_prob``. Four changes have equal probability: a substitution by
    another letter, a deletion, the insertion of a letter before the character, and a swap with the next character in
    the order of the ids. A character that is changed at one probability is also changed at every higher probability. A
    document that becomes too long is truncated like a text. A document that becomes shorter is padded at its end.

    Args:
        char_ids: Documents, uint8 [n, L]. ``PAD_UNK_ID`` after a document's last known character is padding and stays
            padding.
        typo_prob: Probability of a typo per character, from 0 to 1.
        keys: Key of the random numbers of each document, uint64 [n].
        letters: Ids that substitutions and insertions draw from; see ``CharEncoder.typo_ids``.
        head_tail: Numbers of ids that are kept at the front and at the back of a document that becomes too long.

    Returns:
        A copy of ``char_ids`` with typos.
    """
    documents, length = char_ids.shape
    ends = _document_ends(char_ids)
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
    # Insertions and deletions are made in all documents at once, and may change the lengths of the documents. `start`
    # below is the position of the next document.
    flat = np.insert(flat, hits[inserted], letters[random[inserted] % np.uint64(len(letters))])
    flat = np.delete(flat, hits[deleted] + np.searchsorted(hits[inserted], hits[deleted]))
    gained = np.bincount(document[inserted], minlength=documents) - np.bincount(document[deleted], minlength=documents)
    return _pack_documents(flat, length, gained, ends + gained, head_tail)


def _document_ends(char_ids: CharIds) -> Places:
    """Return the number of ids of each document without its padding, int64 [n]."""
    known = char_ids != PAD_UNK_ID
    return np.where(known.any(axis=1), char_ids.shape[1] - known[:, ::-1].argmax(axis=1), 0)


def _pack_documents(flat: CharIds, length: int, gained: Places, ends: Places, head_tail: tuple[int, int]) -> CharIds:
    """Divide concatenated documents into rows, uint8 [n, length]. A document that is too long loses its middle.

    Args:
        flat: Document k takes ``length`` + ``gained[k]`` ids, including its padding.
        ends: Number of ids of each document without its padding.
        head_tail: Numbers of ids that are kept at the front and at the back of a document that is too long.
    """
    result = np.full((len(ends), length), PAD_UNK_ID, np.uint8)
    start, (front, back) = 0, head_tail
    for row, count, end in zip(result, (length + gained).tolist(), ends.tolist()):
        if end > length:
            row[:front] = flat[start : start + front]
            row[length - back :] = flat[start + end - back : start + end]
        else:
            row[:end] = flat[start : start + end]
        start += count
    return result


def _swap(flat: npt.NDArray[Any], positions: Places) -> None:
    """Swap the character at each position with its successor, in ascending order of the positions.

    In a run of adjacent positions, the first character moves to the end of the run.
    """
    is_first = np.diff(positions, prepend=-2) != 1
    is_last = np.append(is_first[1:], True)[: len(positions)]
    moved = flat[positions[is_first]]
    flat[positions] = flat[positions + 1]
    flat[positions[is_last] + 1] = moved


def _substitute(flat: npt.NDArray[Any], positions: Places, random: Numbers, letters: CharIds) -> None:
    """Replace the character at each position with a different letter, in place."""
    old, count = flat[positions], len(letters)
    indices = np.minimum(np.searchsorted(letters, old), count - 1).astype(np.uint64)
    # If the character is a letter, the random offset starts at the next letter. Therefore the result is always a
    # different letter.
    other_letters = indices + np.uint64(1) + random % np.uint64(max(1, count - 1))
    flat[positions] = letters[np.where(letters[indices] == old, other_letters, random) % np.uint64(count)]


def with_typos(
    split: Split, typo_prob: float, seed: int = 0, epoch: int = 0, encoder: CharEncoder = DEFAULT_ENCODER
) -> Split:
    """Return a view of a split with typos in its character ids. Its texts stay unchanged.

    The typos of a row depend only on the seed, the epoch and the row, so every rank that reads the row gets the same
    typos. A rare character has two ids. A typo in either id turns the character into another or into an unknown one.
    """
    if not typo_prob:
        return split
    letters, head_tail = encoder.typo_ids, encoder.head_tail_lengths
    if not encoder.in_reading_order:
        head_tail = head_tail[::-1]
    return split.with_transform(
        lambda char_ids, rows: add_typos(char_ids, typo_prob, hash_random(seed, epoch, rows), letters, head_tail)
    )


def change_case(char_ids: CharIds, upper: Any, encoder: CharEncoder) -> CharIds:
    """Return documents as if their texts had been typed in lower case or in capitals, uint8 [n, L].

    Only the marks of the case ``keep`` change. The middle that truncation removed from a text does not return.
    For texts that are not truncated, the result is equal to the encoding of the changed text, except at these letters:
    the other case has another number of letters, or is also the other case of another letter (ı, ſ, ς); the letter is
    read as two letters (an æ is marked like two letters, an Æ like one letter); or the letter is read as a letter
    although it has no other case (ĸ). Unknown characters at the beginning of a text are not counted if the text becomes
    too long.

    Args:
        char_ids: Documents, uint8 [n, L], encoded in the case ``keep``.
        upper: True for documents in capitals, False for documents in lower case, bool [n].
        encoder: Encoder of the documents.
    """
    is_mark, length = np.isin(char_ids, encoder.mark_ids), char_ids.shape[1]
    order = np.argsort(is_mark, axis=1, kind="stable")
    char_ids = np.take_along_axis(np.where(is_mark, PAD_UNK_ID, char_ids), order, axis=1)
    is_letter = np.pad(encoder.has_capital[char_ids] & np.asarray(upper)[:, None], ((0, 0), (1, 1)))
    # The ids are in reversed order, so the mark of a run comes after the run.
    ends_run = is_letter[:, 1:-1] & ~is_letter[:, 2:]
    document, place = np.nonzero(ends_run)
    marks = np.array(encoder.mark_ids, np.uint8)[is_letter[:, :-2][ends_run].astype(np.intp)]
    flat = np.insert(char_ids.ravel(), document * length + place + 1, marks)
    gained = np.bincount(document, minlength=len(char_ids))
    return _pack_documents(flat, length, gained, _document_ends(char_ids) + gained, encoder.head_tail_lengths[::-1])


def with_case_noise(split: Split, prob: float, seed: int, epoch: int, encoder: CharEncoder) -> Split:
    """Return a view of a split in which a fraction ``prob`` of the documents is in lower case or in capitals.

    Half of these documents are in lower case. The choice depends only on the seed, the epoch and the row. Return the
    split itself if the encoder does not distinguish capitals by marks.
    """
    if not prob or not encoder.mark_ids:
        return split

    def transform(char_ids: CharIds, rows: Places) -> CharIds:
        drawn = splitmix64(hash_random(seed, epoch, rows, CASE_DRAW))
        changed = bernoulli(prob, drawn)
        result = char_ids.copy()
        result[changed] = change_case(char_ids[changed], (drawn[changed] & np.uint64(1)).astype(np.bool_), encoder)
        return result

    return split.with_transform(transform)


def in_case(split: Split, upper: bool, encoder: CharEncoder) -> Split:
    """Return a view of a split whose documents are all in capitals or all in lower case; see ``change_case``."""
    return split.with_transform(lambda char_ids, rows: change_case(char_ids, np.full(len(rows), upper), encoder))


def word_dropout(char_ids: CharIds, max_prob: float, keys: Numbers, finder: WordHasher) -> CharIds:
    """Drop words, and the character after each of them (word dropout; Iyyer et al. 2015, ACL).

    If all words of a document would be dropped, none of them is dropped.

    The soft labels of a teacher depend mostly on a text's most informative words. A student that does not always read
    these words also learns from the other words.

    Args:
        char_ids: Documents, uint8 [n, L].
        max_prob: Largest probability that a word is dropped. The probability for each document is drawn uniformly from
            0 to this value, so that some documents are nearly complete, like the documents at prediction.
        keys: Key of the random numbers of each document, uint64 [n].
        finder: ``WordHasher`` that finds the words in the documents.
    """
    is_word, starts = finder.bounds(char_ids)[:2]
    # Number of each word in its document, counted from 1. The number 0 is used to draw the document's probability.
    number = np.cumsum(starts, axis=1).astype(np.uint64)
    rates = max_prob * (splitmix64(keys) >> np.uint64(32)) / (1 << 32)
    is_left_out = is_word & bernoulli(rates[:, None], splitmix64(keys[:, None] + number))
    is_left_out &= (is_word & ~is_left_out).any(axis=1, keepdims=True)
    is_left_out[:, 1:] |= is_left_out[:, :-1] & ~is_word[:, 1:]
    order = np.argsort(is_left_out, axis=1, kind="stable")
    return np.take_along_axis(np.where(is_left_out, PAD_UNK_ID, char_ids), order, axis=1)


def with_word_dropout(split: Split, max_prob: float, encoder: CharEncoder) -> Split:
    """Return a view of a training split that drops different words in each epoch; see ``word_dropout``."""
    finder = WordHasher(encoder)

    def of_epoch(seed: int, epoch: int) -> Transform:
        return lambda char_ids, rows: word_dropout(
            char_ids, max_prob, splitmix64(hash_random(seed, epoch, rows)), finder
        )

    return replace(split, epoch_transform=of_epoch)
