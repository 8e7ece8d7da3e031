"""What of an encoding is left to the training texts: how much of a text is read, and which characters have a code.

Both are functions of the rows that are trained on, so any number of processes or parts finds the same. Lengths stand in
the records of the spool; only an alphabet needs the texts, which are then read a second time from the spool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from crepe_dist.data.alphabet import CODE_POINTS, Encoding, frequent_alphabet
from crepe_dist.preparing.pool import in_turn
from crepe_dist.preparing.spool import Texts, map_rows
from crepe_dist.settings.data_options import LONGEST_FITTED, SHORTEST, STEP, WHOLE

PIECE = 1 << 15  # rows that a process counts at a time
PIECE_BYTES = 1 << 20  # of texts that are counted together
SAMPLE = 1 << 14  # rows, at most, that tell whether another alphabet is needed
MISSED = 0.01  # of the characters: an alphabet that reads so many more is worth to be made

Alphabet = Literal["given", "needed", "made"]


@dataclass(frozen=True)
class Fit:
    """What is found from the training texts instead of taken from the encoding that is given.

    Args:
        length: ``feature_len``: the smallest of ``SHORTEST`` + n ``STEP`` that holds 99 % of them whole, at most
            ``LONGEST_FITTED``.
        alphabet: ``given``: that of the encoding; ``made``: that of ``frequent_alphabet``; ``needed``: made where it
            reads at least ``MISSED`` more of the characters.
        folds: whether an alphabet that is made has letters without accents only.
    """

    length: bool = False
    alphabet: Alphabet = "given"
    folds: bool = False


def fitting_length(characters: npt.NDArray[Any]) -> int:
    """``feature_len`` for texts of so many characters, int [n]."""
    needed = int(np.percentile(characters, WHOLE, method="inverted_cdf"))
    steps = -(-max(0, needed - SHORTEST) // STEP)
    return min(SHORTEST + steps * STEP, LONGEST_FITTED)


def fit(
    encoding: Encoding,
    what: Fit,
    training: npt.NDArray[np.int64],
    rows: Path,
    texts: Sequence[Path],
    executor: Executor,
    ahead: int,
) -> Iterator[int | Encoding]:
    """Yields how many texts were counted so far, and at last the encoding.

    Args:
        training: places of the training rows in the file ``rows``, at least one.
        texts: files of their texts.
        ahead: pieces that may be on their way at a time.
    """
    if what.length:
        encoding = replace(encoding, feature_len=fitting_length(map_rows(rows)["characters"][training]))
    makes = what.alphabet == "made"
    if what.alphabet == "needed":
        sample = _Piece(rows, tuple(texts), training[:: -(-len(training) // SAMPLE)])
        makes = _missed(encoding, what, count_points(sample)) >= MISSED
    if makes:
        counts: Counter[int] = Counter()
        pieces = (_Piece(rows, tuple(texts), training[i : i + PIECE]) for i in range(0, len(training), PIECE))
        for done, found in enumerate(in_turn(executor, count_points, pieces, ahead), 1):
            counts.update(found)
            yield min(done * PIECE, len(training))
        encoding = _made(encoding, what, counts)
    yield encoding


def _made(encoding: Encoding, what: Fit, counts: Mapping[int, int]) -> Encoding:
    alphabet = frequent_alphabet(counts, encoding.mode, what.folds)
    return replace(encoding, alphabet=alphabet, fold_accents=what.folds)


def _missed(encoding: Encoding, what: Fit, counts: Mapping[int, int]) -> float:
    """The share of the characters that only an alphabet made of them reads, less what only the encoding's does."""
    points, times = np.array([*counts], dtype=np.uint32), np.array([*counts.values()], dtype=np.int64)
    made, given = (times[each.known(points)].sum() for each in (_made(encoding, what, counts), encoding))
    return float((made - given) / max(1, times.sum()))


@dataclass(frozen=True)
class _Piece:
    rows: Path
    texts: tuple[Path, ...]
    chosen: npt.NDArray[np.int64]


def count_points(piece: _Piece) -> dict[int, int]:
    """How often each code point stands in the texts of some rows. Runs in any process."""
    texts, rows = Texts(piece.texts), map_rows(piece.rows)[piece.chosen]
    full = np.cumsum(rows["bytes"], dtype=np.int64) // PIECE_BYTES
    total = np.zeros(CODE_POINTS, dtype=np.int64)
    for some in np.split(rows, np.flatnonzero(np.diff(full)) + 1):
        points = np.frombuffer(b"".join(texts.get(some)).decode("utf-8").encode("utf-32-le"), dtype="<u4")
        counts = np.bincount(points)
        total[: len(counts)] += counts
    seen = np.flatnonzero(total)
    return dict(zip(seen.tolist(), total[seen].tolist()))
