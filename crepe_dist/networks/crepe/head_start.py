"""Initial embeddings of the tower, from the classes of the documents that contain an n-gram."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from crepe_dist.networks.ngrams.counting import deviations, frequent

CHANCE = 2.0  # standard deviations by which any count may deviate
FRACTION = 1 << 12  # of 1; multiples of it have exact sums


def head_start(
    counts: npt.NDArray[np.int32], documents: npt.NDArray[np.int64], width: int, seed: int
) -> npt.NDArray[np.float32]:
    """Embed n-grams by the classes of their documents, float32 [rows, width].

    Each class has a random direction, ``width`` numbers of ±1. The embedding is the sum of the directions, each
    multiplied by a number between -2 and 2: the excess over chance of the class's share of the n-gram's documents, as a
    difference of square roots. The result is the same on every machine, because the sums are exact.

    Args:
        counts: number of documents of each class that contain an n-gram of a row, int32 [rows, classes].
        documents: number of documents of each class, int64 [classes].
        width: numbers of an embedding.
        seed: seed of the directions.
    """
    directions = np.random.default_rng(seed).choice((-1.0, 1.0), (counts.shape[1], width))
    embedding = np.zeros((len(counts), width), np.float32)
    for chunk in frequent(counts, CHANCE):
        excess = deviations(counts[chunk], documents)
        excess = np.sign(excess) * np.maximum(np.abs(excess) - CHANCE, 0)
        excess /= np.sqrt(np.maximum(counts[chunk].sum(axis=1, keepdims=True), 1))
        embedding[chunk] = np.rint(excess * FRACTION) @ directions / FRACTION
    return embedding
