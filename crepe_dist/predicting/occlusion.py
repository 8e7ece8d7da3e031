"""Explanation of predictions by occlusion.

Each character and each word is replaced with blanks, one at a time. The resulting drop in the log-odds of the class is
the score of the character or word. Zeiler & Fergus ("Visualizing and Understanding Convolutional Networks", ECCV 2014,
section 3.2) do the same with grey squares on an image. The difference between the log-odds is the "weight of evidence"
of Robnik-Šikonja & Kononenko (IEEE TKDE 2008). If the network is confident, differences between probabilities vanish,
but differences between log-odds do not.

A blank is the id of an unknown character. No gradients are needed, so occlusion works with every engine.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

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
        score: Drop in the log-odds of the class if the word is replaced with blanks.
    """

    text: str
    start: int
    stop: int
    score: float


@dataclass(frozen=True)
class Explanation:
    """Evidence in a text for and against a class.

    Attributes:
        text: Text as the network reads it. HTML tags are removed if the model strips HTML.
        label: Name of the explained class.
        prediction: Prediction for the text.
        truncated: Range of the characters that the network does not read because the text is too long.
        scores: One score for each character (code point) of ``text``: the drop in the log-odds of the class if the
            character is replaced with a blank. Positive scores support the class. Negative scores contradict it.
            Characters that are truncated or unknown have the score 0. A combining character has the score of the
            character before it.
        words: Words that the network reads.
    """

    text: str
    label: str
    prediction: Prediction
    truncated: range
    scores: tuple[float, ...]
    words: tuple[Word, ...]


def occlude(
    text: str, encoding: CharEncoder, logits: Logits, batch_size: int, index: int
) -> tuple[list[float], list[Word]]:
    """Score each character and each word of a text by replacing it with blanks.

    Args:
        text: Text as the network reads it.
        encoding: Encoder of the model.
        logits: Function that computes logits: uint8 [n, feature_len] → float32 [n, classes].
        batch_size: Maximum number n of occluded texts per call of ``logits``.
        index: Index of the class in the logits.

    Returns:
        A score for each character of ``text``, and the words that the network reads.
    """
    (char_ids,) = encoding.encode([text])
    positions, truncated = encoding.offset_mapping(text), encoding.truncated_range(text)
    # The network reads the beginning and the end of the text. The truncated range lies between them.
    ranges_read = ((0, truncated.start), (truncated.stop, len(text)))
    character_spans = [(i, i + 1) for bounds in ranges_read for i in range(*bounds)]
    word_spans = [word.span() for bounds in ranges_read for word in _WORD.finditer(text, *bounds)]
    spans, is_known = character_spans + word_spans, char_ids[: len(positions)] != PAD_UNK_ID
    blanks = [np.flatnonzero(is_known & (positions >= start) & (positions < stop)) for start, stop in spans]
    # A span without known characters needs no forward pass: its drop is 0.
    occluded = [number for number, places in enumerate(blanks) if len(places)]
    drops = np.zeros(len(spans))
    complete = _log_odds(logits(char_ids[None]), index)
    for start in range(0, len(occluded), batch_size):
        batch = occluded[start : start + batch_size]
        rows = np.repeat(char_ids[None], len(batch), axis=0)
        for row, number in zip(rows, batch):
            row[blanks[number]] = PAD_UNK_ID
        drops[batch] = complete - _log_odds(logits(rows), index)
    scores = [0.0] * len(text)
    for (i, _), drop in zip(character_spans, drops.tolist()):
        scores[i] = drop
    for i, character in enumerate(text):
        # A combining character is drawn on top of the character before it, so both must have the same colour.
        if i and unicodedata.category(character).startswith("M"):
            scores[i] = scores[i - 1]
    word_drops = zip(word_spans, drops[len(character_spans) :].tolist())
    return scores, [Word(text[start:stop], start, stop, drop) for (start, stop), drop in word_drops]


def _log_odds(logits: npt.NDArray[np.float32], index: int) -> Floats:
    """Compute log p − log (1 − p) of one class: float32 [n, classes] → float64 [n]."""
    others = np.delete(logits.astype(np.float64), index, axis=1)
    largest = others.max(axis=1)
    return np.asarray(logits[:, index] - (largest + np.log(np.exp(others - largest[:, None]).sum(axis=1))))
