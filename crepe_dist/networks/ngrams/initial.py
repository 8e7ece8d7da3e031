"""Initial parameters of the n-gram table."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from crepe_dist.data.dataset import Dataset
from crepe_dist.distributed.world import World
from crepe_dist.exchange.parameter import Parameter
from crepe_dist.model.initial_values import zeros
from crepe_dist.networks.ngrams import counting
from crepe_dist.networks.ngrams.shape import NGramShape
from crepe_dist.settings.model_options import ModelOptions
from crepe_dist.settings.training_options import FEW_STEPS

MANY_STEPS = 1500  # from which on the table learns more slowly (decision 0060)
FASTEST = 2.0  # multiple of all learning rates in a run of few steps (decision 0091)
FIRST_WEIGHT = 8 / 300  # of a significant n-gram in a class that is added, times its excess there


def rate(steps: int) -> float:
    """Return the multiple of the table's learning rate in a run of ``steps`` steps."""
    return min(1.0, math.sqrt(MANY_STEPS / steps))


def speed_up(parameters: Mapping[str, Parameter], steps: int) -> None:
    """Raise all learning rates for a run of few steps."""
    multiple = min(FASTEST, max(1.0, math.sqrt(FEW_STEPS / steps)))
    for parameter in parameters.values():
        parameter.rate *= multiple


def parameters(shape: NGramShape, options: ModelOptions, seed: int) -> dict[str, Parameter]:
    """Make the parameters; no n-gram is significant until ``adapt`` has counted them."""
    return {
        "weight": Parameter(zeros(shape.buckets, shape.classes), row_moments=True),
        "bias": Parameter(zeros(shape.classes)),
        "significant": Parameter(zeros(shape.buckets), is_trained=False),
    }


def adapt(
    parameters: Mapping[str, Parameter],
    shape: NGramShape,
    data: Dataset,
    world: World,
    options: ModelOptions,
    seed: int,
    steps: int,
    loaded: Collection[str],
) -> None:
    """Set the significant n-grams, the weights of classes that loaded ones lack, and multiples of the learning rate
    (decisions 0060, 0089, 0091)."""
    if "significant" not in loaded:
        counts, documents = counting.count_ngrams(shape, data, world), data.class_counts()
        parameters["significant"].value[:] = counting.significant(counts, documents, options.deviations)
        if "weight" in loaded:
            _start_new_classes(parameters, counts, documents)
    parameters["weight"].rate = rate(steps)
    if not loaded:
        speed_up(parameters, steps)


def _start_new_classes(
    parameters: Mapping[str, Parameter], counts: npt.NDArray[np.int32], documents: npt.NDArray[np.int64]
) -> None:
    """Set the weights of classes that have none by the share of each significant n-gram's documents in the class."""
    weights = parameters["weight"].value
    rows, added = np.flatnonzero(parameters["significant"].value), np.flatnonzero(~weights.any(axis=0))
    shares = counts[rows][:, added] / counts[rows].sum(axis=1, keepdims=True)
    usual = documents[added] / documents.sum()
    weights[np.ix_(rows, added)] = FIRST_WEIGHT * 2 * (np.sqrt(shares) - np.sqrt(usual))
