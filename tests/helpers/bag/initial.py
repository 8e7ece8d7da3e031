"""Initial parameters of the bag of characters."""

from __future__ import annotations

from crepe_dist.exchange.quanta import Parameter
from crepe_dist.model.initial_values import zeros
from tests.helpers.bag.shape import BagShape


def parameters(shape: BagShape, seed: int) -> dict[str, Parameter]:
    """Make the parameters."""
    return {name: Parameter(zeros(*size)) for name, size in shape.parameter_shapes().items()}
