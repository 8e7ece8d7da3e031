"""Which characters of a text speak for a class: occlusion.

Each character is made blank in turn, and each word; what that takes from the class is the score (Zeiler & Fergus,
"Visualizing and Understanding Convolutional Networks", ECCV 2014, section 3.2, with grey squares on an image). It is a
difference of log-odds, the "weight of evidence" of Robnik-Šikonja & Kononenko (IEEE TKDE 2008): unlike a difference of
probabilities it does not vanish where the network is sure.

Blank is what the network sees of a character that it does not know. No gradient is needed, so any engine will do.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crepe_dist.data.alphabet import BLANK, Codes, Encoding
from crepe_dist.predicting.prediction import Prediction

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
            it is blank. Above 0 it speaks for the class, below 0 against it; 0 if it is not read or not known. A
            combining character has the score of the one before it.
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
) -> tuple[range, list[float], list[Word]]:
    """Blanks each character of a text, and each of its words.

    Args:
        logits: uint8 [n, feature_len] → float32 [n, classes], for at most ``at_once`` rows.
        index: of the class among the logits.

    Returns:
        The positions in ``text`` that are read, a score for each character of ``text``, and the words.
    """
    (codes,) = encoding.encode([text])
    places = encoding.positions(len(text))
    read = range(min(places), max(places) + 1) if places else range(0)
    words = [(found.start(), found.end()) for found in _WORD.finditer(text, read.start, read.stop)]
    falls = _falls(codes, places, [*((place, place + 1) for place in read), *words], logits, at_once, index)
    scores = [0.0] * read.start + falls[: len(read)] + [0.0] * (len(text) - read.stop)
    for place, character in enumerate(text):
        # A combining character is shown on the character before it.
        if place and unicodedata.category(character).startswith("M"):
            scores[place] = scores[place - 1]
    found = [Word(text[start:stop], start, stop, fall) for (start, stop), fall in zip(words, falls[len(read) :])]
    return read, scores, found


def _falls(
    codes: Codes, places: range, stretches: list[tuple[int, int]], logits: Logits, at_once: int, index: int
) -> list[float]:
    """By how much the log-odds of a class fall without each stretch of the text."""
    falls = np.zeros(len(stretches))
    asked = []  # not about what has no code already
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
    return [float(fall) for fall in falls]


def _log_odds(logits: npt.NDArray[np.float32], index: int) -> Floats:
    """log p − log (1 − p) of one class, float64 [n], of float32 [n, classes]."""
    others = np.delete(logits.astype(np.float64), index, axis=1)
    largest = others.max(axis=1)
    return np.asarray(logits[:, index] - (largest + np.log(np.exp(others - largest[:, None]).sum(axis=1))))
