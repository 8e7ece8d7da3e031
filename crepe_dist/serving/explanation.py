"""Which characters of a text speak for a class: occlusion.

Each stretch of characters is made blank in turn, and what that takes from the class is the weight of the stretch
(Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 3.2, with grey squares on
an image). The weight is a difference of log-odds, the "weight of evidence" of Robnik-Šikonja & Kononenko (IEEE TKDE
2008): unlike a difference of probabilities it does not vanish where the network is sure.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from crepe_dist.data.alphabet import BLANK, Codes, Encoding

if TYPE_CHECKING:
    from crepe_dist.serving.predictor import Prediction

WIDTH = 8  # characters that are made blank together
STRIDE = 2
_WORD = re.compile(r"\S+")
Floats = npt.NDArray[np.float64]
Logits = Callable[[Codes], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Word:
    """Characters without a space between them: ``text[start:stop]`` of the explained text.

    Args:
        score: by how much the log-odds of the class fall when the word is blank.
    """

    text: str
    start: int
    stop: int
    score: float


@dataclass(frozen=True)
class Explanation:
    """Why a text was taken for a class.

    Attributes:
        text: as it was given.
        label: the class that is explained.
        prediction: what the text was taken for.
        start, stop: the network reads ``text[start:stop]``; longer texts are cut.
        scores: one number for each character (code point) of ``text``: by how much the log-odds of the class fall when
            the characters around it are blank, a mean over all stretches that hold it. Above 0 it speaks for the
            class, below 0 against it; 0 for what is not read.
        words: those that are read.
    """

    text: str
    label: str
    prediction: Prediction
    start: int
    stop: int
    scores: tuple[float, ...]
    words: tuple[Word, ...]


def occlude(
    text: str, encoding: Encoding, logits: Logits, at_once: int, index: int
) -> tuple[range, Floats, list[Word]]:
    """Blanks stretches of a text, and each of its words, in one go.

    Args:
        logits: uint8 [n, feature_len] → float32 [n, classes], for at most ``at_once`` rows.
        index: of the class among the logits.

    Returns:
        The positions in ``text`` that are read, float64 [len(text)] scores, and the words.
    """
    (codes,) = encoding.encode([text])
    places = encoding.positions(len(text))
    read = range(min(places), max(places) + 1) if places else range(0)
    windows = list(_windows(read, WIDTH, STRIDE))
    words = [(found.start(), found.end()) for found in _WORD.finditer(text, read.start, read.stop)]
    falls = _falls(codes, places, [*windows, *words], logits, at_once, index)
    scores = np.zeros(len(text))
    covered = np.zeros(len(text))
    for (start, stop), fall in zip(windows, falls):
        scores[start:stop] += fall
        covered[start:stop] += 1
    scores /= np.maximum(covered, 1)
    _share_marks(text, scores)
    found = [
        Word(text[start:stop], start, stop, float(fall)) for (start, stop), fall in zip(words, falls[len(windows) :])
    ]
    return read, scores, found


def _windows(read: range, width: int, stride: int) -> Iterator[tuple[int, int]]:
    """Stretches of ``width`` that begin every ``stride`` characters, so that those at the ends are in as many."""
    for start in range(read.start - width + stride, read.stop, stride):
        yield max(start, read.start), min(start + width, read.stop)


def _falls(
    codes: Codes, places: range, stretches: list[tuple[int, int]], logits: Logits, at_once: int, index: int
) -> Floats:
    """By how much the log-odds of a class fall without each stretch of the text, float64 [stretches]."""
    falls = np.zeros(len(stretches))
    # What has no code already need not be asked about.
    asked = []
    for number, (start, stop) in enumerate(stretches):
        first, last = sorted((places.index(start), places.index(stop - 1)))
        if (codes[first : last + 1] != BLANK).any():
            asked.append((number, slice(first, last + 1)))
    whole = _log_odds(logits(codes[None]), index)
    for begin in range(0, len(asked), at_once):
        some = asked[begin : begin + at_once]
        rows = np.repeat(codes[None], len(some), axis=0)
        for row, (_, stretch) in zip(rows, some):
            row[stretch] = BLANK
        falls[[number for number, _ in some]] = whole - _log_odds(logits(rows), index)
    return falls


def _log_odds(logits: npt.NDArray[np.float32], index: int) -> Floats:
    """log p − log (1 − p) of one class, float64 [n], of float32 [n, classes]."""
    others = np.delete(logits.astype(np.float64), index, axis=1)
    largest = others.max(axis=1)
    return logits[:, index] - (largest + np.log(np.exp(others - largest[:, None]).sum(axis=1)))


def _share_marks(text: str, scores: Floats) -> None:
    """A combining character is shown on the character before it, and has its score."""
    for place, character in enumerate(text):
        if place and unicodedata.category(character).startswith("M"):
            scores[place] = scores[place - 1]
