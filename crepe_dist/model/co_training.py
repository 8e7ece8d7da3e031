"""Soft labels of unlabelled texts: a network and a naive Bayes classifier of words that teach each other.

The network saw the labelled texts only. Naive Bayes counts words, so it can count those of the unlabelled texts as
well, each in every class by its current probability: expectation maximisation (Nigam, McCallum, Thrun & Mitchell 2000,
"Text classification from labeled and unlabeled documents using EM"). The probabilities are those of both classifiers
together, weighed and calibrated by the validation split in every round, as the parts of Crepe are.

Counts and log-odds are whole numbers of ``SHARE_UNIT`` and ``UNITS``, whose sums are exact in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.targets import SHARE_UNIT
from crepe_dist.data.words import Words
from crepe_dist.model.calibration import CalibrationCounts, softmax
from crepe_dist.model.part_weight import WeightCounts, combined

SMOOTHING = 0.1  # documents that each class is taken to have with each word
FEWEST = 2  # documents with a word; a word of one document says nothing about others
UNITS = 1 << 16  # of log-odds, per nat
MOST_ROUNDS = 6
LEAST_PROBABILITY = 1e-6
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Teacher:
    """Probabilities of the unlabelled texts, with figures about the classifiers that gave them.

    Attributes:
        probabilities: float64 [unlabelled texts, classes].
        rounds: rounds of naive Bayes; 0: the network alone is the better teacher.
        weight: weight of naive Bayes beside the network.
        temperature: divisor of the sum of both log-odds.
        loss, error, accuracy: loss on the validation split in nats per text, its standard error, and the accuracy.
    """

    probabilities: Floats
    rounds: int
    weight: float
    temperature: float
    loss: float
    error: float
    accuracy: float

    def figures(self) -> dict[str, float]:
        """Return all but the probabilities, as JSON values."""
        return {name: value for name, value in vars(self).items() if name != "probabilities"}


def teachers(
    words: Mapping[str, Words], shares: Floats, labels: npt.NDArray[np.int32], logits: Mapping[str, npt.NDArray[Any]]
) -> Iterator[Teacher]:
    """Yield the network as a teacher, then network and naive Bayes after each round, while they improve.

    Args:
        words: words of the splits ``train``, ``validation`` and ``unlabelled``, numbered alike.
        shares: share of each class in the labels of the training texts, float64 [texts, classes].
        labels: classes of the validation texts, int32 [texts].
        logits: logits of the network for ``validation`` and ``unlabelled``, float32 [texts, classes].
    """
    network = {name: np.log(np.maximum(softmax(each, np.float64), LEAST_PROBABILITY)) for name, each in logits.items()}
    silent = {name: np.zeros_like(each) for name, each in network.items()}
    best = _weighed(network, silent, labels, 0)
    yield best
    labelled = np.rint(shares * SHARE_UNIT)
    counted, documents = words["train"].counts(labelled), labelled.sum(axis=0)
    for number in range(1, MOST_ROUNDS + 1):
        soft = np.rint(best.probabilities * SHARE_UNIT)
        counts = (counted + words["unlabelled"].counts(soft)) / SHARE_UNIT + SMOOTHING
        prior = np.log((documents + soft.sum(axis=0)) / SHARE_UNIT + SMOOTHING)
        odds = np.rint((np.log(counts) - np.log(counts.sum(axis=0))) * UNITS)
        bayes = {name: _moderate(words[name].sums(odds) / UNITS + prior, words[name]) for name in network}
        teacher = _weighed(network, bayes, labels, number)
        if teacher.loss >= best.loss:
            return
        best = teacher
        yield best


def common_words(words: Mapping[str, Words]) -> dict[str, Words]:
    """Keep the words that at least ``FEWEST`` training or unlabelled texts have."""
    found = sum(np.bincount(words[name].words, minlength=words[name].size) for name in ("train", "unlabelled"))
    numbers = np.flatnonzero(found >= FEWEST)
    return {name: each.only(numbers) for name, each in words.items()}


def _weighed(
    network: Mapping[str, Floats], bayes: Mapping[str, Floats], labels: npt.NDArray[np.int32], number: int
) -> Teacher:
    """Weigh naive Bayes beside the network, and calibrate both, by the validation split."""
    parts = {name: np.stack([network[name], bayes[name]], axis=1).astype(np.float32) for name in network}
    fit, calibration = WeightCounts(), CalibrationCounts()
    fit.add(parts["validation"], labels)
    weight = fit.fitted() if number else 0.0
    logits = {name: combined(each, weight) for name, each in parts.items()}
    calibration.add(logits["validation"], labels)
    temperature = calibration.fitted().temperature
    accuracy = float((logits["validation"].argmax(axis=1) == labels).mean())
    probabilities = softmax(logits["unlabelled"] / np.float32(temperature), np.float64)
    return Teacher(probabilities, number, weight, temperature, *calibration.loss(), accuracy)


def _moderate(odds: Floats, words: Words) -> Floats:
    """Divide log-odds by the root of the number of words: these depend on each other, so their sum says too much."""
    lengths = np.maximum(np.diff(words.starts), 1)
    return np.asarray((odds - odds.max(axis=1, keepdims=True)) / np.sqrt(lengths)[:, None])
