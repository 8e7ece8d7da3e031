"""Typing errors made on purpose: to train with, and to measure what they cost.

They are made in codes, which is all that is kept of a training document; ``Encoding.decode`` shows the same errors to
a model that reads words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crepe_dist.data.alphabet import BLANK, Codes, Encoding
from crepe_dist.data.dataset import Part
from crepe_dist.data.keyed_random import Numbers, mix

LETTERS = Encoding().letters
Places = npt.NDArray[np.int64]


def corrupt(codes: Codes, rate: float, keys: Numbers, letters: Codes = LETTERS) -> Codes:
    """Documents with typing errors; those of each are a function of its codes, the rate and its key.

    Each character is hit with probability ``rate``. A quarter each of those that are hit become another letter, are
    left out, get a letter before them, and change places with the character behind them, if there is one (before and
    behind in the order of the codes). What is hit at one rate is hit at every higher one. Characters that
    are pushed beyond the length are lost, and none come in from there.

    Args:
        codes: uint8 [n, L]; ``BLANK`` behind a document's last known character is padding, and stays so.
        rate: 0 to 1.
        keys: uint64 [n], one a document.
        letters: their codes, see ``Encoding.letters``.

    Returns:
        uint8 [n, L], a copy.
    """
    known = codes != BLANK
    documents, length = codes.shape
    ends = np.where(known.any(axis=1), length - known[:, ::-1].argmax(axis=1), 0)
    places = np.arange(length)
    drawn = mix(keys[:, None] + places.astype(np.uint64))
    is_hit = (drawn >> np.uint64(11) < np.uint64(rate * (1 << 53))) & (places < ends[:, None])
    document, place = np.nonzero(is_hit)
    hits, drawn = document * length + place, mix(drawn[is_hit])
    substituted, deleted, inserted, swapped = (drawn & np.uint64(3) == kind for kind in range(4))
    random = drawn >> np.uint64(2)

    flat = codes.flatten()
    _swap(flat, hits[swapped & (place + 1 < ends[document])])
    _substitute(flat, hits[substituted], random[substituted], letters)
    # Of all documents at once; what each has gained or lost then moves the beginning of the next.
    flat = np.insert(flat, hits[inserted], letters[random[inserted] % np.uint64(len(letters))])
    flat = np.delete(flat, hits[deleted] + np.searchsorted(hits[inserted], hits[deleted]))
    gained = np.bincount(document[inserted], minlength=documents) - np.bincount(document[deleted], minlength=documents)
    result = np.full_like(codes, BLANK)
    start = 0
    for row, count in zip(result, (length + gained).tolist()):
        kept = flat[start : start + min(count, length)]
        row[: len(kept)] = kept
        start += count
    return result


def _swap(flat: Codes, places: Places) -> None:
    """Each of these characters and the one behind it change places, the first ones first: of neighbours among them,
    the first moves behind all."""
    is_first = np.diff(places, prepend=-2) != 1
    is_last = np.append(is_first[1:], True)[: len(places)]
    moved = flat[places[is_first]]
    flat[places] = flat[places + 1]
    flat[places[is_last] + 1] = moved


def _substitute(flat: Codes, places: Places, random: Numbers, letters: Codes) -> None:
    old, count = flat[places], len(letters)
    which = np.minimum(np.searchsorted(letters, old), count - 1).astype(np.uint64)
    # Of a letter, the others, counted from the one that follows it.
    others = which + np.uint64(1) + random % np.uint64(max(1, count - 1))
    flat[places] = letters[np.where(letters[which] == old, others, random) % np.uint64(count)]


@dataclass(frozen=True)
class _NoisyPart(Part):
    rate: float
    seed: int
    epoch: int
    letters: Codes

    def codes(self, rows: Places) -> Codes:
        return corrupt(super().codes(rows), self.rate, _keys(self.seed, self.epoch, rows), self.letters)


def with_typos(part: Part, rate: float, seed: int = 0, epoch: int = 0, letters: Codes = LETTERS) -> Part:
    """The part with typing errors in its codes, other ones in each epoch; the texts beside them stay as they are.

    The errors of a row are a function of (seed, epoch, row), so that they are the same for whoever reads it, and when.
    """
    return _NoisyPart(**vars(part), rate=rate, seed=seed, epoch=epoch, letters=letters) if rate else part


def _keys(seed: int, epoch: int, rows: Places) -> Numbers:
    state = mix(np.array([seed], np.uint64))
    state = mix(state + np.uint64(epoch))
    return mix(state + rows.astype(np.uint64))
