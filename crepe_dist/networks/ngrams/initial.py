"""Initial parameters of the n-gram table."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from crepe_dist.data.dataset import Dataset
from crepe_dist.distributed.collectives import Collectives
from crepe_dist.exchange.parameter import Parameter
from crepe_dist.model.initial_values import zeros
from crepe_dist.networks.ngrams import counting
from crepe_dist.networks.ngrams.shape import NGramShape
from crepe_dist.settings.model_options import ModelOptions

MANY_STEPS = 1500  # from which on the table learns more slowly (decision 0060)


def rate(steps: int) -> float:
    """Return the multiple of the learning rate in a run of ``steps`` steps."""
    return min(1.0, math.sqrt(MANY_STEPS / steps))


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
    world: Collectives,
    options: ModelOptions,
    seed: int,
    steps: int,
    loaded: Collection[str],
) -> None:
    """Set the significant n-grams, and the multiple of the learning rate (decision 0060)."""
    if "significant" not in loaded:
        counts = counting.count_ngrams(shape, data, world)
        parameters["significant"].value[:] = counting.significant(counts, data.class_counts(), options.deviations)
    parameters["weight"].rate = rate(steps)
