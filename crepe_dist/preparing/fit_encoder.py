"""Fitting of the encoding to the texts of training, labelled or not: the document length and the alphabet.

The result depends on these rows alone, not on the number of processes. Lengths in characters are in the
records of the spool. A sample of the texts, or for a new alphabet all of them, are read from the spool a second time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.data.characters import (
    CODE_POINTS,
    MAX_CHARACTERS,
    frequent_alphabet,
    sort_alphabet,
    split_frequent_and_rare,
)
from crepe_dist.data.text_preprocessing import FIELD_SEPARATOR, TextPreprocessor
from crepe_dist.preparing.spec import ALWAYS, IF_NEEDED, PreparationSpec
from crepe_dist.preparing.spool import RowSubset
from crepe_dist.preparing.worker_pool import ProgressCallback, WorkerPool
from crepe_dist.settings.options import AUTO_LENGTH_PERCENT, LENGTH_STEP, MAX_AUTO_LENGTH, MIN_FEATURE_LEN

TASK_ROWS = 1 << 15  # rows per task
CHUNK_BYTES = 1 << 20  # bytes of text that are counted at a time
MAX_SAMPLE_ROWS = 1 << 14  # maximum number of rows that are read to decide on a new alphabet, or a length in codes
MIN_COVERAGE_GAIN = 0.01  # a new alphabet must cover at least this fraction more of the characters, or of the rows
MIN_LETTER_GAIN = 0.2  # share of its letters that counts as a row's loss


def fit_length(lengths: npt.NDArray[Any]) -> int:
    """Return the fitted ``feature_len`` for texts with these numbers of codes [n]."""
    needed = int(np.percentile(lengths, AUTO_LENGTH_PERCENT, method="inverted_cdf"))
    steps = -(-max(0, needed - MIN_FEATURE_LEN) // LENGTH_STEP)
    return min(MIN_FEATURE_LEN + steps * LENGTH_STEP, MAX_AUTO_LENGTH)


def fit_encoder(
    spec: PreparationSpec,
    preprocessor: TextPreprocessor,
    value_characters: str,
    training: RowSubset,
    workers: WorkerPool,
    show_progress: ProgressCallback,
) -> CharEncoder:
    """Return ``spec.encoding`` with the parameters that are fitted to the training texts.

    A new alphabet is needed if it covers at least ``MISSED`` more of the characters. It is also needed if it covers
    ``LOST`` more of the letters in at least ``MISSED`` of the rows, because a rare script has few characters.

    Args:
        values: characters of the values of columns beside the text, the most frequent first; if there are too many, the
            others are not read.
        training: training and unlabelled rows, at least one.
    """
    count_points = partial(count_code_points, bool(preprocessor.beside))
    sample = training[:: -(-len(training) // MAX_SAMPLE_ROWS)]
    encoding = spec.encoder
    is_needed = spec.fit_alphabet == IF_NEEDED and _coverage_gain(encoding, sample, count_points) >= MIN_COVERAGE_GAIN
    if spec.fit_alphabet == ALWAYS or is_needed:
        counts: Counter[int] = Counter()
        pieces = (training[i : i + TASK_ROWS] for i in range(0, len(training), TASK_ROWS))
        for done, piece_counts in enumerate(workers.map_in_order(count_points, pieces), 1):
            counts.update(piece_counts)
            show_progress("counting characters", min(done * TASK_ROWS, len(training)), len(training))
        encoding = _with_new_alphabet(encoding, counts)
    if value_characters:
        own, rare = split_frequent_and_rare(
            value_characters, MAX_CHARACTERS - len(encoding.alphabet), len(encoding.paired)
        )
        alphabet, paired = (
            sort_alphabet(encoding.alphabet + "".join(own)),
            sort_alphabet(encoding.paired + "".join(rare)),
        )
        encoding = replace(encoding, alphabet=alphabet, paired=paired)
    if spec.fit_length:
        needed = training.column("characters")
        codes = encoding.lengths(
            [
                preprocessor.without_html_stripping.text(text.decode("utf-8"))
                for text in sample.texts().get(sample.records())
            ]
        )
        if (codes != sample.column("characters")).any():  # some characters have several codes
            needed = codes
        encoding = replace(encoding, feature_len=fit_length(needed))
    return encoding


def _with_new_alphabet(encoding: CharEncoder, counts: Mapping[int, int]) -> CharEncoder:
    alphabet, paired = frequent_alphabet(counts, encoding.mode)
    return replace(encoding, alphabet=alphabet, paired=paired, fold_accents=False)


def _coverage_gain(
    encoding: CharEncoder, sample: RowSubset, count_points: Callable[[RowSubset], dict[int, int]]
) -> float:
    """Return the share of characters, or of rows if it is larger, that a new alphabet would cover more.

    A letter that the encoding's alphabet reads as another one, é as e, is not covered: accents may tell the language of
    a text.
    """
    counts = count_points(sample)
    points, times = np.array([*counts], dtype=np.uint32), np.array([*counts.values()], dtype=np.int64)
    encodings = (_with_new_alphabet(encoding, counts), replace(encoding, fold_accents=False))
    made, given = (each.has_id(points) for each in encodings)
    gain = made.astype(np.int64) - given
    changed = {chr(point): each for point, each in zip(points.tolist(), gain.tolist()) if each and chr(point).isalpha()}
    rows = 0
    for text in sample.texts().get(sample.records()) if changed else ():
        letters = [] if changed.keys().isdisjoint(decoded := text.decode("utf-8")) else [*filter(str.isalpha, decoded)]
        gained = sum(changed.get(letter, 0) for letter in letters)
        rows += (gained >= MIN_LETTER_GAIN * len(letters) > 0) - (gained <= -MIN_LETTER_GAIN * len(letters) < 0)
    return max(float((gain * times).sum() / max(1, times.sum())), rows / len(sample))


def count_code_points(has_values: bool, subset: RowSubset) -> dict[int, int]:
    """Count the code points in the texts of some rows, without the values beside them. Runs in a worker."""
    texts, rows = subset.texts(), subset.records()
    full = np.cumsum(rows["bytes"], dtype=np.int64) // CHUNK_BYTES
    total = np.zeros(CODE_POINTS, dtype=np.int64)
    for chunk in np.split(rows, np.flatnonzero(np.diff(full)) + 1):
        found = texts.get(chunk)
        found = [text.partition(FIELD_SEPARATOR.encode())[0] for text in found] if has_values else found
        points = np.frombuffer(b"".join(found).decode("utf-8").encode("utf-32-le"), dtype="<u4")
        counts = np.bincount(points)
        total[: len(counts)] += counts
    seen = np.flatnonzero(total)
    return dict(zip(seen.tolist(), total[seen].tolist()))
