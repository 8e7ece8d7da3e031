"""A residual convolutional network over the n-grams at each position of a text.

    embedding(t)  = sum of table[b] over the hashed n-grams of 1 … ``reach`` known characters that start at one of the
               ``stride`` characters of position t
    x        = relu(embedding), with dropout of single numbers in training
    x        = relu(x + conv(relu(conv(x)))) in each block; after the first two blocks a max pool of 2
    logits   = out(maximum over positions of x, mean over positions of x), with dropout of the features in training

A document is its characters up to the last known one, between two symbols for its start and end; beyond them everything
is zero. The second convolution of each block starts at zero (Zhang, Dauphin & Ma 2019, arXiv:1901.09321), so that no
normalisation is needed. The table starts with normal noise and a head start from the classes of the
documents (``head_start``).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from crepe_dist.data.alphabet import BLANK, Codes
from crepe_dist.networks.ngrams.hashing import edged, keys, padding, rows_of

Positions = tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]


def look_up(codes: Codes, alphabet_size: int, reach: int, rows: int, stride: int) -> Positions:
    """Hash the n-grams of each position.

    Args:
        codes: encoded documents, uint8 [B, L].
        reach: length of the longest n-grams.
        rows: number of buckets.
        stride: characters per position.

    Returns:
        The buckets, int32 [B, T, stride × reach], T = ⌈(L + 2) / stride⌉, and ``padding`` where there is no n-gram; a
        mask of the n-grams that exist, bool of the same shape; and a mask of the document's positions, bool [B, T].
    """
    text = characters(codes, alphabet_size, stride).reshape(len(codes), -1)
    length, known = text.shape[1], text <= alphabet_size
    buckets, exists = padding((*text.shape, reach), rows), np.zeros((*text.shape, reach), np.bool_)
    for n, (key, good) in enumerate(keys(text, alphabet_size + 1, min(reach, length))):
        exists[:, : length - n, n] = good
        buckets[:, : length - n, n][good] = rows_of(key[good], rows)
    by_position = (len(text), length // stride, stride * reach)
    inside = np.logical_or.accumulate(known[:, ::-1], axis=1)[:, ::-1][:, ::stride]
    return buckets.reshape(by_position), exists.reshape(by_position), inside


def characters(codes: Codes, alphabet_size: int, stride: int) -> Codes:
    """Return the characters of each position, with the symbols of both edges, uint8 [B, T, stride]."""
    text = edged(codes, alphabet_size)
    text = np.pad(text, ((0, 0), (0, -text.shape[1] % stride)), constant_values=BLANK)
    return text.reshape(len(text), -1, stride)
