"""Initial parameters of the n-gram table."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from crepe_dist.data.dataset import Dataset
from crepe_dist.distributed.world import World
from crepe_dist.exchange.quanta import Parameter
from crepe_dist.model.initial_values import zeros
from crepe_dist.networks.ngrams import counting
from crepe_dist.networks.ngrams.shape import NGramShape
from crepe_dist.settings.options import FEW_STEPS, ModelOptions

DEVIATIONS = 4.25  # standard deviations between classes, from which on an n-gram is informative
MANY_STEPS = 1500  # from which on the table learns more slowly (docs/decisions/networks.md)
FASTEST = 2.0  # multiple of all learning rates in a run of few steps (docs/decisions/training.md)


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
    """Set the significant n-grams and multiples of the learning rate."""
    if "significant" not in loaded:
        counts, documents = counting.count_ngrams(shape, data, world), data.class_counts()
        parameters["significant"].value[:] = counting.significant(counts, documents, DEVIATIONS)
    parameters["weight"].rate = rate(steps)
    if not loaded:
        speed_up(parameters, steps)
