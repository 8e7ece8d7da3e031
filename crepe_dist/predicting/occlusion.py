"""Explanation of predictions by occlusion.

Each character, and each word, is replaced by a blank in turn; its score is the drop in the log-odds of the class.
Zeiler & Fergus ("Visualizing and Understanding Convolutional Networks", ECCV 2014, section 3.2) do the same with grey
squares on an image. The difference of log-odds is the "weight of evidence" of Robnik-Šikonja & Kononenko (IEEE TKDE
2008); unlike a difference of probabilities, it does not vanish when the network is confident.

A blank is the code of an unknown character. No gradients are needed, so this works with every engine.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from crepe_dist.data.char_encoder import PAD_UNK_ID, CharEncoder, CharIds
from crepe_dist.predicting.prediction import Prediction

_WORD = re.compile(r"[^\s\0]+")
Floats = npt.NDArray[np.float64]
Logits = Callable[[CharIds], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Word:
    """Word of an explained text: ``text[start:stop]``, without white space.

    Args:
        score: drop in the log-odds of the class when the word is blank.
    """

    text: str
    start: int
    stop: int
    score: float


@dataclass(frozen=True)
class Explanation:
    """Evidence in a text for and against a class.

    Attributes:
        text: the text as the network reads it: without HTML tags if the model strips them. The values of columns follow
            it, each after the name of its column.
        label: the class that is explained.
        prediction: the prediction for the text.
        cut: positions of the characters that the network does not read, because the text is too long.
        scores: one score for each character (code point) of ``text``: the drop in the log-odds of the class when the
            character is blank. Positive scores support the class, negative scores contradict it. Characters that are
            not read or not known score 0. A combining character has the score of the character before it.
        words: the words that the network reads.
    """

    text: str
    label: str
    prediction: Prediction
    truncated: range
    scores: tuple[float, ...]
    words: tuple[Word, ...]

    def with_display_text(self, spell: Callable[[str], str]) -> Explanation:
        """Replace each character by what it stands for, which has its score."""
        pieces = list(map(spell, self.text))
        ends = np.cumsum([0, *map(len, pieces)]).tolist()
        text = "".join(pieces)
        words = [
            replace(word, text=text[ends[word.start] : ends[word.stop]], start=ends[word.start], stop=ends[word.stop])
            for word in self.words
        ]
        scores = [score for score, piece in zip(self.scores, pieces) for _ in piece]
        cut = range(ends[self.truncated.start], ends[self.truncated.stop])
        return replace(self, text=text, truncated=cut, scores=tuple(scores), words=tuple(words))


def occlude(
    text: str, encoding: CharEncoder, logits: Logits, batch_size: int, index: int
) -> tuple[list[float], list[Word]]:
    """Score each character of a text, and each of its words, by replacing it with blanks.

    Args:
        logits: function from uint8 [n, feature_len] to float32 [n, classes], for at most ``batch_size`` rows.
        index: index of the class in the logits.

    Returns:
        A score for each character of ``text``, and the words that the network reads.
    """
    (codes,) = encoding.encode([text])
    positions, cut = encoding.offset_mapping(text), encoding.truncated_range(text)
    parts = ((0, cut.start), (cut.stop, len(text)))  # what is read
    characters = [(i, i + 1) for part in parts for i in range(*part)]
    words = [word.span() for part in parts for word in _WORD.finditer(text, *part)]
    drops, known = np.zeros(len(characters) + len(words)), codes[: len(positions)] != PAD_UNK_ID
    blanks = [np.flatnonzero(known & (positions >= start) & (positions < stop)) for start, stop in characters + words]
    changed = [number for number, places in enumerate(blanks) if len(places)]
    whole = _log_odds(logits(codes[None]), index)
    for begin in range(0, len(changed), batch_size):
        batch = changed[begin : begin + batch_size]
        rows = np.repeat(codes[None], len(batch), axis=0)
        for row, number in zip(rows, batch):
            row[blanks[number]] = PAD_UNK_ID
        drops[batch] = whole - _log_odds(logits(rows), index)
    scores = [0.0] * len(text)
    for (i, _), drop in zip(characters, drops.tolist()):
        scores[i] = drop
    for i, character in enumerate(text):
        # A combining character is drawn on the character before it.
        if i and unicodedata.category(character).startswith("M"):
            scores[i] = scores[i - 1]
    word_drops = zip(words, drops[len(characters) :].tolist())
    return scores, [Word(text[start:stop], start, stop, drop) for (start, stop), drop in word_drops]


def _log_odds(logits: npt.NDArray[np.float32], index: int) -> Floats:
    """Compute log p − log (1 − p) of one class: float32 [n, classes] → float64 [n]."""
    others = np.delete(logits.astype(np.float64), index, axis=1)
    largest = others.max(axis=1)
    return np.asarray(logits[:, index] - (largest + np.log(np.exp(others - largest[:, None]).sum(axis=1))))
