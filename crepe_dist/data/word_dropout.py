"""Word dropout: training documents without some of their words, others in each epoch (Iyyer et al. 2015, ACL).

Soft labels of a teacher repeat what it knows of a text's most telling words. A student that does not always see these
learns what the other words say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crepe_dist.data.alphabet import BLANK, Codes, Encoding
from crepe_dist.data.dataset import Split
from crepe_dist.data.keyed_random import Numbers, is_drawn, mix, row_keys
from crepe_dist.data.words import WordFinder


def without_some_words(codes: Codes, most: float, keys: Numbers, finder: WordFinder) -> Codes:
    """Leave out words, and the character after each; a document keeps at least one word.

    Args:
        codes: documents, uint8 [n, L].
        most: largest probability that a word is left out. Each document has its own, uniform from 0 on, so that some
            are nearly whole, as those that a network classifies are.
        keys: key of the random numbers of each document, uint64 [n].
    """
    is_word, starts = finder.bounds(codes)[:2]
    number = np.cumsum(starts, axis=1).astype(np.uint64)  # from 1 on within words; 0 draws the probability
    rates = most * (mix(keys) >> np.uint64(32)) / (1 << 32)
    is_left_out = is_word & is_drawn(rates[:, None], mix(keys[:, None] + number))
    is_left_out &= (is_word & ~is_left_out).any(axis=1, keepdims=True)
    is_left_out[:, 1:] |= is_left_out[:, :-1] & ~is_word[:, 1:]
    order = np.argsort(is_left_out, axis=1, kind="stable")
    return np.take_along_axis(np.where(is_left_out, BLANK, codes), order, axis=1)


@dataclass(frozen=True)
class WordDropoutSplit(Split):
    """Training split of which each epoch leaves out words.

    Attributes:
        most: largest probability that a word is left out.
        finder: finder of the words.
    """

    most: float
    finder: WordFinder

    def of_epoch(self, seed: int, epoch: int) -> Split:
        """Return a view of all rows without the words that are left out in an epoch."""
        return self.altered(
            lambda codes, rows: without_some_words(codes, self.most, mix(row_keys(seed, epoch, rows)), self.finder)
        )


def with_word_dropout(split: Split, most: float, encoding: Encoding) -> Split:
    """Return a view of a training split that leaves out words in each epoch."""
    return WordDropoutSplit(**vars(split), most=most, finder=WordFinder(encoding))
