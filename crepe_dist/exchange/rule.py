"""Rules of the optimizers, and their constants, for our own kernels and for MXNet's operators."""

from __future__ import annotations

import ctypes
import math

from crepe_dist.exchange.parameter import Parameter
from crepe_dist.settings.training_options import OptimizerOptions

NAMES = ("adam", "sgd", "nag")  # in the order of native/optimizer.h
DECAYS, EPSILON = (0.9, 0.999), 1e-8  # of Adam: beta1, beta2 and epsilon


class Rule:
    """Rule by which an optimizer updates parameters.

    State and constants are the same for our kernels and for MXNet's operators, so a run may change from one to the
    other. Our kernels pass over the memory once. MXNet's operators take several passes: for 11 million parameters on
    two cores Adam takes six times as long, SGD three times.

    Attributes:
        name: adam, sgd or nag.
        number: number of the rule in ``native/optimizer.h``.
        decays: Adam's beta1 and beta2; momentum and 0.
        epsilon: Adam's epsilon; else 0.
        constants: C array of the decays and epsilon.
        moments: number of moments; without momentum, SGD has none.
        weight_decay: weight decay.
    """

    def __init__(self, options: OptimizerOptions) -> None:
        self.name = options.name
        self.number = NAMES.index(options.name)
        is_adam = options.name == "adam"
        self.decays = DECAYS if is_adam else (options.momentum, 0.0)
        self.epsilon = EPSILON if is_adam else 0.0
        self.constants = (ctypes.c_double * 3)(*self.decays, self.epsilon)
        self.moments = 2 if is_adam else int(options.momentum != 0)
        self.weight_decay = options.weight_decay

    def rate(self, learning_rate: float, updates: int) -> float:
        """Correct the learning rate for the bias of Adam's moments at its update number ``updates``, from 1."""
        if self.name != "adam":
            return learning_rate
        first, second = (1 - decay**updates for decay in self.decays)
        return float(learning_rate * math.sqrt(second) / first)

    def moment_shapes(self, parameter: Parameter) -> list[tuple[int, ...]]:
        """Return the shapes of the moments of a parameter."""
        shapes = [tuple(parameter.shape)] * self.moments
        if self.moments == 2 and parameter.row_moments:
            shapes[1] = (parameter.shape[0], 1)
        return shapes
