"""Fitting of the character encoder: choose the maximum length and the alphabet.

Both are fitted to the training texts and the unlabelled texts. The result does not depend on the number of processes.
The records of the spool already contain the length of each text in characters. If some characters have two ids, these
lengths do not count ids, so the lengths of a sample of the texts are computed. The sample also decides whether a new
alphabet is needed. All texts are read only if a new alphabet is learned.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.data.characters import (
    CODE_POINTS,
    frequent_alphabet,
)
from crepe_dist.formatting import percent
from crepe_dist.preparing.spec import ALWAYS, FIXED, IF_NEEDED, PreparationSpec
from crepe_dist.preparing.spool import RowSubset, SpooledTexts
from crepe_dist.preparing.worker_pool import TASK_ROWS, PrintLine, ProgressCallback, WorkerPool
from crepe_dist.settings.options import AUTO_LENGTH_PERCENT, LENGTH_STEP, MAX_AUTO_LENGTH, MIN_FEATURE_LEN

# Approximate size in bytes of a chunk of text. Characters are counted one chunk at a time.
CHUNK_BYTES = 1 << 20
# Maximum number of rows in the sample that decides whether a new alphabet is needed and whether characters have several
# ids.
MAX_SAMPLE_ROWS = 1 << 14
# Maximum number of rows that ``capital_information`` reads.
MAX_CASE_ROWS = 1 << 12
# Minimum result of ``capital_information`` for which the encoder marks capital letters.
MIN_CAPITAL_INFORMATION = 0.05
# Number of levels of the proportion of capital letters, besides "none" and the lowest level. Level n starts at 2^-n.
CAPITAL_LEVELS = 6
# Minimum gain in coverage that justifies a new alphabet, as a fraction of the characters or of the rows.
MIN_COVERAGE_GAIN = 0.01
# A row counts as gained if the new alphabet covers more of its letters than the current alphabet, and the difference
# is at least this fraction of the letters.
MIN_LETTER_GAIN = 0.2


def fit_length(lengths: npt.NDArray[Any]) -> int:
    """Choose the maximum length of a text from the lengths of the texts.

    The result is the smallest ``MIN_FEATURE_LEN`` + n × ``LENGTH_STEP`` that leaves ``AUTO_LENGTH_PERCENT`` percent of
    the texts uncut. The result is at most ``MAX_AUTO_LENGTH``.

    Args:
        lengths: Length of each text in character ids, [texts].
    """
    needed = int(np.percentile(lengths, AUTO_LENGTH_PERCENT, method="inverted_cdf"))
    steps = -(-max(0, needed - MIN_FEATURE_LEN) // LENGTH_STEP)
    return min(MIN_FEATURE_LEN + steps * LENGTH_STEP, MAX_AUTO_LENGTH)


def capital_information(training: RowSubset, labels: npt.NDArray[np.int32], *, is_fitted: bool = False) -> float:
    """Estimate how much of the class the use of capital letters in a text indicates, from below 0 to 1.

    The result is the mutual information of the class and the proportion of capital letters, divided by the entropy of
    the class. The proportion is counted in ``CAPITAL_LEVELS`` + 2 levels. If the class and the capital letters are
    independent, 2 × rows × the estimated information has a chi-squared distribution. Its mean (the bias of the
    estimate; Miller 1955) and two of its standard deviations are subtracted, so that few rows rarely give a high
    result by chance.

    Args:
        training: Training rows with labels.
        labels: Class of each row, int32 [rows].
        is_fitted: Count the letters of an alphabet that is learned from the rows. Otherwise, the letters of the
            standard alphabet are counted.
    """
    step = -(-len(training) // MAX_CASE_ROWS)
    texts = training[::step].texts()
    encoder, labels = CharEncoder("keep"), labels[::step]
    ends = np.cumsum([0, *map(len, texts)])
    points = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    if is_fitted:
        encoder = _with_new_alphabet(encoder, _occurring(np.bincount(points)))
    is_capital = encoder.is_capital[points]
    is_letter = is_capital | encoder.has_capital[encoder.encode_points(points)]
    sums = (np.append(0, np.cumsum(mask, dtype=np.int32)) for mask in (is_capital, is_letter))
    capitals, letters = (np.diff(total[ends]) for total in sums)
    levels = (capitals > 0) * (1 + sum((capitals << k) >= letters for k in range(1, CAPITAL_LEVELS + 1)))
    counts = np.zeros((CAPITAL_LEVELS + 2, int(labels.max(initial=0)) + 1))
    np.add.at(counts, (levels, labels), 1)
    counts = counts[counts.any(axis=1)][:, counts.any(axis=0)]
    if min(counts.shape) < 2:
        return 0.0
    joint = counts / counts.sum()
    level_probs, class_probs = joint.sum(axis=1, keepdims=True), joint.sum(axis=0, keepdims=True)
    information = (joint * np.log(np.where(joint > 0, joint / (level_probs * class_probs), 1))).sum()
    degrees = (joint.shape[0] - 1) * (joint.shape[1] - 1)
    chance = (degrees + 2 * np.sqrt(2 * degrees)) / (2 * counts.sum())
    return float((information - chance) / -(class_probs * np.log(class_probs)).sum())


def fit_case(
    spec: PreparationSpec,
    training: RowSubset,
    labels: npt.NDArray[np.int32],
    print_line: PrintLine,
) -> PreparationSpec:
    """Return a copy of ``spec`` whose encoder marks capital letters if they indicate the class.

    Args:
        training: Training rows with labels.
        labels: Class of each row, int32 [rows].
        print_line: Function that prints the decision.
    """
    information = capital_information(training, labels, is_fitted=spec.fit_alphabet != FIXED)
    is_marked = information >= MIN_CAPITAL_INFORMATION
    decision = "case keep: capital letters are marked" if is_marked else "case fold: case is ignored"
    print_line(f"{decision}; capital letters indicate {percent(max(0.0, information))} of the class")
    return replace(spec, encoder=replace(spec.encoder, case="keep", alphabet="")) if is_marked else spec


def fit_encoder(
    spec: PreparationSpec,
    training: RowSubset,
    workers: WorkerPool,
    show_progress: ProgressCallback,
) -> CharEncoder:
    """Return a copy of ``spec.encoder`` whose alphabet and maximum length are fitted to the training texts.

    If ``fit_alphabet`` is ``IF_NEEDED``, a new alphabet is learned if it increases the coverage of all characters by at
    least ``MIN_COVERAGE_GAIN``. A new alphabet is also learned if, in at least ``MIN_COVERAGE_GAIN`` of the rows, the
    new alphabet increases the coverage of the letters by ``MIN_LETTER_GAIN``. The second rule detects a script that
    only a few rows use: its characters are a small fraction of all characters.

    Args:
        training: Training and unlabelled rows. There must be at least one row.
    """
    sample = training[:: -(-len(training) // MAX_SAMPLE_ROWS)]
    encoding = spec.encoder
    is_needed = spec.fit_alphabet == IF_NEEDED and _coverage_gain(encoding, sample) >= MIN_COVERAGE_GAIN
    if spec.fit_alphabet == ALWAYS or is_needed:
        counts: Counter[int] = Counter()
        chunks = training.iter_chunks(TASK_ROWS)
        for done, chunk_counts in enumerate(workers.map_in_order(count_code_points, chunks), 1):
            counts.update(chunk_counts)
            show_progress("counting characters", min(done * TASK_ROWS, len(training)), len(training))
        encoding = _with_new_alphabet(encoding, counts)
    if spec.fit_length:
        needed = training.column("characters")
        codes = encoding.lengths(sample.texts())
        if (codes != sample.column("characters")).any():  # Some characters have two ids.
            needed = codes
        encoding = replace(encoding, feature_len=fit_length(needed))
    return encoding


def _with_new_alphabet(encoding: CharEncoder, counts: Mapping[int, int]) -> CharEncoder:
    alphabet, rare = frequent_alphabet(counts, encoding.case)
    return replace(encoding, alphabet=alphabet, two_id_characters=rare, fold_accents=False)


def _coverage_gain(encoder: CharEncoder, sample: RowSubset) -> float:
    """Return the gain in coverage of a new alphabet.

    The result is the larger of two numbers. The first is the increase of the fraction of characters that are covered.
    The second is the fraction of rows whose covered letters increase by at least ``MIN_LETTER_GAIN``, minus the
    fraction of rows whose covered letters decrease by as much.

    If the current alphabet reads a letter without its accent, such as é as e, the letter does not count as covered,
    because accents may indicate the language of a text.
    """
    counts = count_code_points(sample)
    points, times = np.array([*counts], dtype=np.uint32), np.array([*counts.values()], dtype=np.int64)
    encoders = (_with_new_alphabet(encoder, counts), replace(encoder, fold_accents=False))
    covered, covered_before = (encoder.has_id(points) for encoder in encoders)
    gain = covered.astype(np.int64) - covered_before
    changed = {chr(point): sign for point, sign in zip(points.tolist(), gain.tolist()) if sign and chr(point).isalpha()}
    rows = 0
    for text in sample.texts() if changed else ():
        letters = [] if changed.keys().isdisjoint(text) else [*filter(str.isalpha, text)]
        gained = sum(changed.get(letter, 0) for letter in letters)
        rows += (gained >= MIN_LETTER_GAIN * len(letters) > 0) - (gained <= -MIN_LETTER_GAIN * len(letters) < 0)
    return max(float((gain * times).sum() / max(1, times.sum())), rows / len(sample))


def count_code_points(subset: RowSubset) -> dict[int, int]:
    """Count the code points in the texts of some rows. Runs in a worker."""
    texts, rows = SpooledTexts(subset.text_files), subset.records()
    full = np.cumsum(rows["bytes"], dtype=np.int64) // CHUNK_BYTES
    total = np.zeros(CODE_POINTS, dtype=np.int64)
    for chunk in np.split(rows, np.flatnonzero(np.diff(full)) + 1):
        points = np.frombuffer(b"".join(texts.get(chunk)).decode("utf-8").encode("utf-32-le"), dtype="<u4")
        counts = np.bincount(points)
        total[: len(counts)] += counts
    return _occurring(total)


def _occurring(counts: npt.NDArray[np.int64]) -> dict[int, int]:
    """Return the counts that are not 0, by their code points. ``counts`` has one element per code point."""
    points = np.flatnonzero(counts)
    return dict(zip(points.tolist(), counts[points].tolist()))
