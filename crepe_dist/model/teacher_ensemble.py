"""Soft labels for unlabelled texts, from an ensemble of trained classifiers and a naive Bayes classifier of words.

The trained classifiers were trained on the labelled texts only, and do not change. The naive Bayes classifier counts
the words of the labelled texts for their classes. The classifier also counts the words of the unlabelled texts for
every class, weighted by the probability that the ensemble currently predicts for the class. This is expectation
maximisation (Nigam, McCallum, Thrun & Mitchell 2000, "Text classification from labeled and unlabeled documents using
EM").

A classifier joins the ensemble only if it lowers the validation loss. The weight of the classifier and the temperature
of the ensemble are fitted to the validation split, in the same way as for the two branches of Crepe.

Counts are integers in units of 1 / ``PROB_SCALE``. Log-odds are integers in units of 1 / ``LOSS_UNITS_PER_NAT``. The
sums of counts and of log-odds are therefore exact, and do not depend on the order of the additions.
"""

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

SMOOTHING = 0.1  # Additive smoothing: this number of documents is added to the count of each word in each class.
# Words that occur in fewer documents than this are dropped. A word in only one document carries no information about
# other documents.
MIN_DOCUMENT_FREQUENCY = 2
LOSS_UNITS_PER_NAT = 1 << 16  # Units of the log-odds of a word, per nat.
MAX_ROUNDS = 6  # Maximum number of iterations of expectation maximisation.
MIN_PROBABILITY = 1e-6  # Lower bound that is applied to probabilities before the logarithm.
LENGTH = (1 << 15) - 1  # Integer that represents 1.0 in a unit vector that is stored as int16.
# Candidate inverse regularisation strengths of the logistic regression, like C of scikit-learn.
INVERSE_PENALTIES = (0.3, 3.0, 30.0, 300.0)
MAX_STEPS = 300  # Maximum number of steps of gradient descent.
GRADIENT_TOLERANCE = 1e-3  # Gradient descent stops when the norm of the gradient per text is below this value.
BAYES = "a naive Bayes classifier of words"  # Name of the member.
Floats = npt.NDArray[np.float64]
Logits = Mapping[str, npt.NDArray[Any]]  # Logits [texts, classes] of ``validation`` and ``unlabelled``, by split.


@dataclass(frozen=True)
class TeacherEnsemble:
    """Predictions of an ensemble of classifiers.

    Attributes:
        logits: Calibrated logits of the validation split and of the unlabelled texts, by split.
        probabilities: Probabilities of the unlabelled texts, float64 [texts, classes].
        figures: JSON values. ``members`` contains the weight of each member, relative to the members before it, by
            name. ``temperature`` is the divisor of the summed logits. ``loss`` is the validation loss in nats per text,
            and ``error`` its standard error. ``accuracy`` is the accuracy on the validation split.
    """

    logits: Logits
    probabilities: Floats
    figures: dict[str, Any]


def iter_teacher_ensembles(
    words: Mapping[str, DocumentWords],
    label_probs: Floats,
    labels: npt.NDArray[np.int32],
    members: Mapping[str, Logits],
) -> Iterator[TeacherEnsemble]:
    """Build an ensemble step by step. Yield the ensemble after each step.

    The first ensemble consists of the first member. Each further member is added if it lowers the validation loss.
    Finally, naive Bayes is added. It is trained again in each iteration of expectation maximisation, as long as the
    validation loss falls.

    Args:
        words: Words of the splits ``train``, ``validation`` and ``unlabelled``. All splits use the same word numbers.
        label_probs: Label probability of each class for each training text, float64 [texts, classes].
        labels: Classes of the validation texts, int32 [texts].
        members: Logits of the classifiers, by name.
    """
    (first, logits), *further_members = members.items()
    ensemble_logits = _log_probs(logits)
    best = _add_member(
        ensemble_logits,
        {name: np.zeros_like(member_logits) for name, member_logits in ensemble_logits.items()},
        labels,
        {},
        first,
    )
    yield best
    for name, logits in further_members:
        teacher = _add_member(ensemble_logits, _log_probs(logits), labels, best.figures["members"], name)
        if teacher.figures["loss"] < best.figures["loss"]:
            best, ensemble_logits = teacher, _log_probs(teacher.logits)
            yield best
    labelled, members_so_far = np.rint(label_probs * PROB_SCALE), best.figures["members"]
    counted, documents = words["train"].counts(labelled), labelled.sum(axis=0)
    for _ in range(MAX_ROUNDS):
        soft = np.rint(best.probabilities * PROB_SCALE)
        counts = (counted + words["unlabelled"].counts(soft)) / PROB_SCALE + SMOOTHING
        prior = np.log((documents + soft.sum(axis=0)) / PROB_SCALE + SMOOTHING)
        odds = np.rint((np.log(counts) - np.log(counts.sum(axis=0))) * LOSS_UNITS_PER_NAT)
        bayes = {
            name: _length_normalize(words[name].sums(odds) / LOSS_UNITS_PER_NAT + prior, words[name])
            for name in ensemble_logits
        }
        teacher = _add_member(ensemble_logits, bayes, labels, members_so_far, BAYES)
        if teacher.figures["loss"] >= best.figures["loss"]:
            return
        best = teacher
        yield best


def quantize_unit_vectors(vectors: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    """Normalize vectors, [..., d], to length 1, and round their elements to integers in units of 1/``LENGTH``."""
    lengths = np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=-1, keepdims=True))
    return np.asarray(np.rint(vectors / np.maximum(lengths, 1e-30) * LENGTH).astype(np.int16))


def fit_logistic_regression(
    vectors: Logits, label_probs: Floats, labels: npt.NDArray[np.int32]
) -> Generator[None, None, Logits]:
    """Fit a logistic regression to the training split, and return its calibrated logits for the other splits.

    Yield after each step of the gradient descent.

    The regularisation strength with the lowest validation loss is selected. The step sizes of the gradient descent
    follow Barzilai & Borwein (1988).

    Args:
        vectors: Vectors of the texts of each split, from ``quantize_unit_vectors``.
        label_probs: As for ``iter_teacher_ensembles``.
        labels: As for ``iter_teacher_ensembles``.
    """
    x = {
        name: np.pad(split_vectors, ((0, 0), (0, 1)), constant_values=LENGTH) for name, split_vectors in vectors.items()
    }
    weights = best = np.zeros((x["train"].shape[1], label_probs.shape[1]))
    lowest_loss = np.inf

    def slope(weights: Floats, strength: float) -> Floats:
        errors = softmax(_exact_product(x["train"], weights), np.float64) - label_probs
        return np.asarray(_exact_product(x["train"].T, errors) + weights / strength)

    for strength in INVERSE_PENALTIES:
        rate, gradient = 1 / len(label_probs), slope(weights, strength)
        for _ in range(MAX_STEPS):
            if np.square(gradient).sum() < (GRADIENT_TOLERANCE * len(label_probs)) ** 2:
                break
            step, previous_gradient = rate * gradient, gradient
            weights = weights - step
            gradient = slope(weights, strength)
            if not (change := previous_gradient - gradient).any():
                break
            # Elementwise products, because the order of additions in a dot product of BLAS depends on the machine.
            rate = (step * change).sum() / np.square(change).sum()
            yield
        counts = TemperatureFitter()
        counts.add(_exact_product(x["validation"], weights).astype(np.float32), labels)
        if counts.loss()[0] < lowest_loss:
            best, lowest_loss = weights / counts.calibration().temperature, counts.loss()[0]
    return {name: _exact_product(split_vectors, best) for name, split_vectors in x.items() if name != "train"}


def _exact_product(units: npt.NDArray[np.int16], values: Floats) -> npt.NDArray[Any]:
    """Multiply integers, [n, k], by values, [k, m]. Round the values first, so that sums are exact in any order."""
    bits = 52 - sum(math.frexp(value)[1] for value in (LENGTH, units.shape[1], np.abs(values).max()))
    return np.asarray(units.astype(np.float64) @ np.rint(np.ldexp(values, bits)) / np.ldexp(float(LENGTH), bits))


def common_words(words: Mapping[str, DocumentWords]) -> dict[str, DocumentWords]:
    """Drop words that fewer than ``MIN_DOCUMENT_FREQUENCY`` of the training and unlabelled texts contain."""
    frequencies = sum(np.bincount(words[name].words, minlength=words[name].size) for name in ("train", "unlabelled"))
    numbers = np.flatnonzero(frequencies >= MIN_DOCUMENT_FREQUENCY)
    return {name: split_words.select(numbers) for name, split_words in words.items()}


def _add_member(
    ensemble_logits: Logits,
    member_logits: Logits,
    labels: npt.NDArray[np.int32],
    members_so_far: Mapping[str, float],
    name: str,
) -> TeacherEnsemble:
    """Add a classifier to the ensemble. Fit its weight and the ensemble's temperature to the validation split."""
    parts = {
        split: np.stack([ensemble_logits[split], member_logits[split]], axis=1).astype(np.float32)
        for split in ensemble_logits
    }
    fit, calibration = BranchWeightFitter(), TemperatureFitter()
    fit.add(parts["validation"], labels)
    weight = fit.best_weight()
    logits = {split: add_branches(split_logits, weight) for split, split_logits in parts.items()}
    calibration.add(logits["validation"], labels)
    temperature, (loss, error) = calibration.calibration().temperature, calibration.loss()
    accuracy = float((logits["validation"].argmax(axis=1) == labels).mean())
    figures = {"members": {**members_so_far, name: weight}, "temperature": temperature, "loss": loss, "error": error}
    logits = {split: split_logits / np.float32(temperature) for split, split_logits in logits.items()}
    return TeacherEnsemble(logits, softmax(logits["unlabelled"], np.float64), {**figures, "accuracy": accuracy})


def _log_probs(logits: Logits) -> Logits:
    return {
        name: np.log(np.maximum(softmax(split_logits, np.float64), MIN_PROBABILITY))
        for name, split_logits in logits.items()
    }


def _length_normalize(odds: Floats, words: DocumentWords) -> Floats:
    """Divide log-odds by the square root of the number of words in the text.

    The words of a text are not independent, so the sum of their log-odds would be overconfident.
    """
    lengths = np.maximum(np.diff(words.starts), 1)
    return np.asarray((odds - odds.max(axis=1, keepdims=True)) / np.sqrt(lengths)[:, None])
