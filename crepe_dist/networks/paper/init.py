"""Initial parameters of the paper's network."""

import math

import numpy as np

from crepe_dist.model.init import Floats, uniform, zeros
from crepe_dist.networks.paper.config import PaperConfig
from crepe_dist.optim.parameter import Parameter


def init_parameters(config: PaperConfig, seed: int) -> dict[str, Parameter]:
    """Draw the weights as the original Gluon notebook does.

    The distribution is uniform, with Xavier's initialisation of magnitude 2.24 (Glorot & Bengio 2010).
    """
    generator = np.random.default_rng(seed)

    def values(size: tuple[int, ...]) -> Floats:
        if len(size) == 1:
            return zeros(*size)
        outputs, inputs, *taps = size
        return uniform(generator, size, math.sqrt(2.24 / ((inputs + outputs) * math.prod(taps) / 2)))

    return {name: Parameter(values(size)) for name, size in config.parameter_shapes().items()}
