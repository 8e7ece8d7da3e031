"""A residual convolutional network over the n-grams at each position of a text.

    embedding(t)  = sum of table[b] over the hashed n-grams of 1 … ``reach`` known characters that start at one of the
               ``stride`` characters of position t
    x        = relu(embedding), with dropout of single numbers in training
    x        = relu(x + conv(relu(conv(x)))) in each block; after the first two blocks a max pool of 2
    logits   = out(maximum over positions of x, mean over positions of x), with dropout of the features in training

A document is its characters up to the last known one, between two symbols for its start and end; beyond them everything
is zero. The second convolution of each block starts at zero (Zhang, Dauphin & Ma 2019, arXiv:1901.09321), so that no
normalisation is needed. The table starts with normal noise and what the classes of an n-gram's documents tell
(``head_start``).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from crepe_dist.data.alphabet import BLANK, Codes
from crepe_dist.native import constants
from crepe_dist.networks.ngrams.counting import chunks, deviations
from crepe_dist.networks.ngrams.hashing import edged, keys, rows_of

TAPS, POOLED_BLOCKS = constants.TOWER_TAPS, constants.POOLED_BLOCKS
CHANCE = 2.0  # standard deviations by which any count may deviate
FRACTION = 1 << 12  # of 1; multiples of it have exact sums


def look_up(
    codes: Codes, alphabet_size: int, reach: int, rows: int, stride: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Hash the n-grams of each position; equivalent to ``hash_positions`` in native/tower.h.

    Args:
        codes: encoded documents, uint8 [B, L].
        alphabet_size: number of characters.
        reach: length of the longest n-grams.
        rows: number of buckets.
        stride: characters per position.

    Returns:
        The buckets, int32 [B, T, stride × reach], T = ⌈(L + 2) / stride⌉; where there is such an n-gram, bool of the
        same shape; and the positions of the document, bool [B, T].
    """
    text = edged(codes, alphabet_size)
    text = np.pad(text, ((0, 0), (0, -text.shape[1] % stride)), constant_values=BLANK)
    length, known = text.shape[1], text <= alphabet_size
    buckets, own = np.zeros((*text.shape, reach), np.int32), np.zeros((*text.shape, reach), np.bool_)
    for n, (key, good) in enumerate(keys(text, alphabet_size + 1, min(reach, length))):
        buckets[:, : length - n, n], own[:, : length - n, n] = rows_of(key, rows), good
    by_position = (len(text), length // stride, stride * reach)
    inside = np.logical_or.accumulate(known[:, ::-1], axis=1)[:, ::-1][:, ::stride]
    return buckets.reshape(by_position), own.reshape(by_position), inside


def head_start(
    counts: npt.NDArray[np.int32], documents: npt.NDArray[np.int64], width: int, seed: int
) -> npt.NDArray[np.float32]:
    """Embed n-grams by the classes that their documents have, float32 [rows, width].

    Each class has a random direction, width numbers of ±1. An n-gram has the sum of the directions, each times what the
    class's share of the n-gram's documents exceeds chance by, as a difference of square roots: between -2 and 2. The
    result is the same on every machine, because the sums are exact.

    Args:
        counts: number of documents of each class that contain an n-gram of a row, int32 [rows, classes].
        documents: number of documents of each class, int64 [classes].
        width: numbers of an embedding.
        seed: seed of the directions.
    """
    directions = np.random.default_rng(seed).choice((-1.0, 1.0), (counts.shape[1], width))
    found = np.empty((len(counts), width), np.float32)
    for some in chunks(counts):
        excess = deviations(counts[some], documents)
        excess = np.sign(excess) * np.maximum(np.abs(excess) - CHANCE, 0)
        excess /= np.sqrt(np.maximum(counts[some].sum(axis=1, keepdims=True), 1))
        found[some] = np.rint(excess * FRACTION) @ directions / FRACTION
    return found
