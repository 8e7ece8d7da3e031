"""Similarity of held-out rows to training rows, which shows whether a random split flatters the scores.

Two texts are compared by the Jaccard similarity of their character n-grams: the number of n-grams in both texts divided
by the number of n-grams in at least one of them. Case, punctuation and the values of digits are ignored. MinHash
(Broder 1997) finds a similar training row of each held-out row. Only a sample of the rows is compared, so the time does
not grow with the data set. The sample depends only on the files and lines of the rows.
"""

import re
from collections import Counter
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.counter_rng import hash_random, splitmix64_finalize
from crepe_dist.data.dataset import SPLITS
from crepe_dist.native.constants import GOLDEN
from crepe_dist.preparing.splitting import TEST, TRAIN, VALIDATION, Assignment
from crepe_dist.preparing.spool import SpooledRows, SpooledTexts

# Numbers of held-out rows and of training rows that are drawn for the comparison. For each of these held-out rows, the
# nearest training rows in the file are added, up to NUM_NEIGHBOURS on each side: rows of a document, an author or a
# host are often next to each other, and in a large data set a draw finds few of them.
NUM_HELD_OUT, NUM_TRAINING, NUM_NEIGHBOURS = 400, 6000, 5
# Minimum number of held-out rows that can be compared.
MIN_HELD_OUT = 30
# Maximum length of a compared text in characters. The rest of a longer text is ignored.
MAX_CHARS = 512
# Length of an n-gram in characters. Texts on one topic share few n-grams of this length, but a common host, a common
# phrase of a template or a copied sentence contains many.
NGRAM = 12
# Number of hash functions of a MinHash signature.
NUM_HASHES = 32
# An n-gram that more than this fraction of the held-out texts contain is ignored. It is a phrase that all texts have in
# common, such as the disclaimer of a newsletter, so new texts contain it as well.
MAX_NGRAM_FREQUENCY = 0.5
# Minimum similarity of rows with a common template, and of rows that are nearly copies of each other.
TEMPLATE, COPY = 0.2, 0.5
_IGNORED, _DIGIT = re.compile(r"[\W_]+"), re.compile(r"\d")
Hashes = npt.NDArray[np.uint32]


def measure_similarity(collected: SpooledRows, assignment: Assignment) -> dict[str, Any] | None:
    """Count the held-out rows that are similar to a training row.

    Rows that differ only in case, spaces and punctuation are not counted, because the report counts them separately.

    Args:
        assignment: Split of each row, uint8 [rows]; see ``splitting``.

    Returns:
        JSON values: the split that is compared (``split``), the numbers of compared rows (``rows``, ``training_rows``),
        the numbers of rows of ``split`` that have a training row with a similarity of at least ``TEMPLATE``
        (``templates``) and ``COPY`` (``copies``), and a similar pair of texts (``example``). ``None`` if no split was
        drawn from the rows of training files, or if too few rows can be compared.
    """
    given = {source.split for source in collected.sources}
    drawn = [code for code in (TEST, VALIDATION) if SPLITS[code] not in given and (assignment == code).any()]
    training = np.flatnonzero(assignment == TRAIN)
    if not drawn or not len(training):
        return None
    held_out = _draw(collected, np.flatnonzero(assignment == drawn[0]), NUM_HELD_OUT)
    places = np.searchsorted(training, held_out)[:, None] + np.arange(-NUM_NEIGHBOURS, NUM_NEIGHBOURS)
    neighbours = training[places.clip(0, len(training) - 1)]
    training = np.union1d(_draw(collected, training, NUM_TRAINING), neighbours)
    near = collected.rows["near"]
    held_out_texts = _read(collected, held_out)
    training_texts = _read(collected, training[~np.isin(near[training], near[held_out])])
    if len(held_out_texts) < MIN_HELD_OUT or not training_texts:
        return None
    ngrams, training_ngrams = _hash_ngrams(held_out_texts), _hash_ngrams(training_texts)
    similarities, most_similar = _find_most_similar(ngrams, training_ngrams)
    # The example is the pair with the median similarity among the similar pairs.
    order = np.argsort(-similarities, kind="stable")
    example = int(order[max(0, (similarities >= TEMPLATE).sum() - 1) // 2])
    return {
        "split": SPLITS[drawn[0]],
        "rows": len(held_out),
        "training_rows": len(training),
        "templates": int((similarities >= TEMPLATE).sum()),
        "copies": int((similarities >= COPY).sum()),
        "example": [held_out_texts[example], training_texts[most_similar[example]]],
    }


def _draw(collected: SpooledRows, rows: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Draw ``count`` of the rows, or all if there are fewer. The draw depends only on their files and lines."""
    draws = hash_random(0, collected.rows["file"][rows], collected.rows["line"][rows])
    return np.sort(rows[np.argsort(draws, kind="stable")[:count]])


def _read(collected: SpooledRows, rows: npt.NDArray[np.int64]) -> list[str]:
    """Read the texts of rows, and normalize them. Leave out short texts."""
    records = collected.rows[rows]
    records["bytes"] = np.minimum(records["bytes"], 4 * MAX_CHARS)  # A character has at most four bytes in UTF-8.
    texts = (text.decode("utf-8", "ignore") for text in SpooledTexts(collected.texts).get(records))
    starts = (text[:MAX_CHARS].lower() for text in texts)
    words = (_DIGIT.sub("0", _IGNORED.sub(" ", text).strip()) for text in starts)
    return [text for text in words if len(text) >= NGRAM]


def _hash_ngrams(texts: list[str]) -> Hashes:
    """Hash the n-grams of texts, uint32 [texts, n-grams]. Rows of shorter texts repeat their last n-gram."""
    lengths = np.array(list(map(len, texts)))
    points = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), "<u4")
    hashes = splitmix64_finalize(points.astype(np.uint64) + np.uint64(1))
    for step in (1, 2, 4, 4):  # The hashes cover 1, 2, 4, 8 and finally NGRAM characters.
        hashes = hashes[:-step] * np.uint64(GOLDEN) + hashes[step:]
    short_hashes = (splitmix64_finalize(hashes) >> np.uint64(32)).astype(np.uint32)
    places = np.minimum(np.arange(lengths.max() - NGRAM + 1), (lengths - NGRAM)[:, None])
    return np.asarray(short_hashes[(np.cumsum(lengths) - lengths)[:, None] + places])


def _find_most_similar(ngrams: Hashes, others: Hashes) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """For each text, return the exact similarity to the most similar other text according to MinHash, and its index."""
    matches = np.zeros((len(ngrams), len(others)), np.uint8)
    for factor in (hash_random(1, np.arange(NUM_HASHES)) >> np.uint64(32)).astype(np.uint32) | np.uint32(1):
        # Two texts have the same minimum with a probability equal to their similarity.
        matches += (ngrams * factor).min(axis=1)[:, None] == (others * factor).min(axis=1)
    best = matches.argmax(axis=1)
    sets, sets_of_best = ([set(text) for text in matrix.tolist()] for matrix in (ngrams, others[best]))
    counts = Counter(chain.from_iterable(sets))
    frequent = {ngram for ngram, count in counts.items() if count > MAX_NGRAM_FREQUENCY * len(sets)}
    pairs = [(one - frequent, other - frequent) for one, other in zip(sets, sets_of_best)]
    return np.array([len(one & other) / max(1, len(one | other)) for one, other in pairs]), best
