"""Initial parameters of the paper's network."""

from __future__ import annotations

import math

import numpy as np

from crepe_dist.exchange.quanta import Parameter
from crepe_dist.model.initial_values import Floats, he, normal, uniform, zeros
from crepe_dist.networks.paper.shape import PaperShape
from crepe_dist.settings.options import ModelOptions

LARGE_FILTERS = 1024


def parameters(shape: PaperShape, options: ModelOptions, seed: int) -> dict[str, Parameter]:
    """Make the parameters as ``options.initialisation`` says."""
    generator = np.random.default_rng(seed)

    def values(name: str, size: tuple[int, ...]) -> Floats:
        if options.initialisation == "paper":
            return normal(generator, size, paper_deviation(shape.filters))
        if name.endswith("bias"):
            return zeros(*size)
        return he(generator, size) if options.initialisation == "he" else _xavier(generator, size)

    return {name: Parameter(values(name, size)) for name, size in shape.parameter_shapes().items()}


def paper_deviation(filters: int) -> float:
    """Return the standard deviation of section 2.5 of the paper, for all weights and biases of a network."""
    return 0.02 if filters >= LARGE_FILTERS else 0.05


def _xavier(generator: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Draw a weight by the notebook's rule: uniform, of magnitude 2.24 (Glorot & Bengio 2010)."""
    outputs, inputs, *taps = shape
    return uniform(generator, shape, math.sqrt(2.24 / ((inputs + outputs) * math.prod(taps) / 2)))
