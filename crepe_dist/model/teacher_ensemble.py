"""Soft labels of unlabelled texts by an ensemble of trained classifiers and a naive Bayes classifier of words.

The trained classifiers saw the labelled texts only, and do not change. Naive Bayes learns from the labels of the
ensemble. It also counts the words of the unlabelled texts, in every class in proportion to its current probability:
expectation maximisation (Nigam, McCallum, Thrun & Mitchell 2000, "Text classification from labeled and
unlabeled documents using EM"). Each classifier is joined to those before it:
weighed and calibrated by the validation split, as the parts of Crepe are, and only if it lowers the loss there.

Counts and log-odds are whole numbers of ``PROB_SCALE`` and ``UNITS``, whose sums are exact in any order.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.targets import PROB_SCALE
from crepe_dist.data.word_hashing import DocumentWords
from crepe_dist.model.branch_weight import BranchWeightFitter, add_branches
from crepe_dist.model.calibration import TemperatureFitter, softmax

SMOOTHING = 0.1  # documents that each class is taken to have with each word
MIN_DOCUMENT_FREQUENCY = 2  # documents with a word; a word of one document says nothing about others
LOSS_UNITS_PER_NAT = 1 << 16  # of log-odds, per nat
MAX_ROUNDS = 6
MIN_PROBABILITY = 1e-6
LENGTH = (1 << 15) - 1  # of a vector
INVERSE_PENALTIES = (0.3, 3.0, 30.0, 300.0)  # inverse penalties of the regression, as scikit-learn's C
MAX_STEPS = 300
GRADIENT_TOLERANCE = 1e-3  # length of a gradient, per text, that counts as 0
BAYES = "a naive Bayes classifier of words"
Floats = npt.NDArray[np.float64]
Logits = Mapping[str, npt.NDArray[Any]]  # of the splits ``validation`` and ``unlabelled``, [texts, classes]


@dataclass(frozen=True)
class TeacherEnsemble:
    """Calibrated logits of several classifiers together.

    Attributes:
        probabilities: those of the unlabelled texts, float64 [texts, classes].
        figures: JSON values: names of the ``members``, with the weight of each beside those before it; ``temperature``,
            the divisor of their sum; ``loss`` on the validation split in nats per text, its standard ``error``, and the
            ``accuracy``.
    """

    logits: Logits
    probabilities: Floats
    figures: dict[str, Any]


def iter_teacher_ensembles(
    words: Mapping[str, DocumentWords], shares: Floats, labels: npt.NDArray[np.int32], members: Mapping[str, Logits]
) -> Iterator[TeacherEnsemble]:
    """Yield the first member as a teacher, then all after each other one, and each round of naive Bayes, that helps.

    Args:
        words: words of the splits ``train``, ``validation`` and ``unlabelled``, numbered alike.
        shares: share of each class in the labels of the training texts, float64 [texts, classes].
        labels: classes of the validation texts, int32 [texts].
        members: logits of the classifiers by their names.
    """
    (first, logits), *others = members.items()
    joined = _logs(logits)
    best = _add_member(joined, {name: np.zeros_like(each) for name, each in joined.items()}, labels, {}, first)
    yield best
    for name, logits in others:
        teacher = _add_member(joined, _logs(logits), labels, best.figures["members"], name)
        if teacher.figures["loss"] < best.figures["loss"]:
            best, joined = teacher, _logs(teacher.logits)
            yield best
    labelled, before = np.rint(shares * PROB_SCALE), best.figures["members"]
    counted, documents = words["train"].counts(labelled), labelled.sum(axis=0)
    for _ in range(MAX_ROUNDS):
        soft = np.rint(best.probabilities * PROB_SCALE)
        counts = (counted + words["unlabelled"].counts(soft)) / PROB_SCALE + SMOOTHING
        prior = np.log((documents + soft.sum(axis=0)) / PROB_SCALE + SMOOTHING)
        odds = np.rint((np.log(counts) - np.log(counts.sum(axis=0))) * LOSS_UNITS_PER_NAT)
        bayes = {
            name: _length_normalize(words[name].sums(odds) / LOSS_UNITS_PER_NAT + prior, words[name]) for name in joined
        }
        teacher = _add_member(joined, bayes, labels, before, BAYES)
        if teacher.figures["loss"] >= best.figures["loss"]:
            return
        best = teacher
        yield best


def quantize_unit_vectors(vectors: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    """Scale vectors, [..., d], to length 1, and round them to whole numbers of 1/``LENGTH``."""
    lengths = np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=-1, keepdims=True))
    return np.asarray(np.rint(vectors / np.maximum(lengths, 1e-30) * LENGTH).astype(np.int16))


def fit_logistic_regression(
    vectors: Logits, shares: Floats, labels: npt.NDArray[np.int32]
) -> Generator[None, None, Logits]:
    """Fit a logistic regression to the training split, and return its calibrated logits; yield after each step.

    The validation split chooses the penalty. Gradient descent has the steps of Barzilai & Borwein (1988).

    Args:
        vectors: vectors of the texts of each split, from ``quantize_unit_vectors``; the others as for ``teachers``.
    """
    x = {name: np.pad(each, ((0, 0), (0, 1)), constant_values=LENGTH) for name, each in vectors.items()}
    weights = best = np.zeros((x["train"].shape[1], shares.shape[1]))
    least = np.inf

    def slope(weights: Floats, strength: float) -> Floats:
        errors = softmax(_product(x["train"], weights), np.float64) - shares
        return np.asarray(_product(x["train"].T, errors) + weights / strength)

    for strength in INVERSE_PENALTIES:
        rate, gradient = 1 / len(shares), slope(weights, strength)
        for _ in range(MAX_STEPS):
            if np.square(gradient).sum() < (GRADIENT_TOLERANCE * len(shares)) ** 2:
                break
            step, before = rate * gradient, gradient
            weights = weights - step
            gradient = slope(weights, strength)
            if not (change := before - gradient).any():
                break
            rate = (step * change).sum() / np.square(change).sum()  # BLAS may vary
            yield
        counts = TemperatureFitter()
        counts.add(_product(x["validation"], weights).astype(np.float32), labels)
        if counts.loss()[0] < least:
            best, least = weights / counts.calibration().temperature, counts.loss()[0]
    return {name: _product(each, best) for name, each in x.items() if name != "train"}


def _product(units: npt.NDArray[np.int16], values: Floats) -> npt.NDArray[Any]:
    """Multiply whole numbers, [n, k], by values, [k, m], rounded so that the sums are exact in any order."""
    bits = 52 - sum(math.frexp(each)[1] for each in (LENGTH, units.shape[1], np.abs(values).max()))
    return np.asarray(units.astype(np.float64) @ np.rint(np.ldexp(values, bits)) / np.ldexp(float(LENGTH), bits))


def common_words(words: Mapping[str, DocumentWords]) -> dict[str, DocumentWords]:
    """Keep the words that at least ``FEWEST`` training or unlabelled texts have."""
    found = sum(np.bincount(words[name].words, minlength=words[name].size) for name in ("train", "unlabelled"))
    numbers = np.flatnonzero(found >= MIN_DOCUMENT_FREQUENCY)
    return {name: each.select(numbers) for name, each in words.items()}


def _add_member(
    joined: Logits, other: Logits, labels: npt.NDArray[np.int32], before: Mapping[str, float], name: str
) -> TeacherEnsemble:
    """Weigh another classifier beside those joined before, and calibrate all, by the validation split."""
    parts = {split: np.stack([joined[split], other[split]], axis=1).astype(np.float32) for split in joined}
    fit, calibration = BranchWeightFitter(), TemperatureFitter()
    fit.add(parts["validation"], labels)
    weight = fit.best_weight()
    logits = {split: add_branches(each, weight) for split, each in parts.items()}
    calibration.add(logits["validation"], labels)
    temperature, (loss, error) = calibration.calibration().temperature, calibration.loss()
    accuracy = float((logits["validation"].argmax(axis=1) == labels).mean())
    figures = {"members": {**before, name: weight}, "temperature": temperature, "loss": loss, "error": error}
    logits = {split: each / np.float32(temperature) for split, each in logits.items()}
    return TeacherEnsemble(logits, softmax(logits["unlabelled"], np.float64), {**figures, "accuracy": accuracy})


def _logs(logits: Logits) -> Logits:
    return {name: np.log(np.maximum(softmax(each, np.float64), MIN_PROBABILITY)) for name, each in logits.items()}


def _length_normalize(odds: Floats, words: DocumentWords) -> Floats:
    """Divide log-odds by the root of the number of words: these depend on each other, so their sum says too much."""
    lengths = np.maximum(np.diff(words.starts), 1)
    return np.asarray((odds - odds.max(axis=1, keepdims=True)) / np.sqrt(lengths)[:, None])
