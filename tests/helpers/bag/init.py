"""Initial parameters of the bag of characters."""

from crepe_dist.model.init import zeros
from crepe_dist.optim.parameter import Parameter
from tests.helpers.bag.config import BagShape


def init_parameters(shape: BagShape, seed: int) -> dict[str, Parameter]:
    """Create the parameters."""
    return {name: Parameter(zeros(*size)) for name, size in shape.parameter_shapes().items()}
