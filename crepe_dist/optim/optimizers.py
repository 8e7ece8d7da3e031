"""Optimizers: their constants, and the update of parameters by our kernels on a CPU.

The update is that of parameters with gradients of all rows; for tables see ``table``, for GPUs ``cuda``.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping

import numpy as np

from crepe_dist.data.arrays import Arrays
from crepe_dist.native import library
from crepe_dist.native.library import pointers
from crepe_dist.optim.fixed_point import FixedPointScales
from crepe_dist.optim.optimizer_state import OptimizerState
from crepe_dist.optim.parameter import Parameter
from crepe_dist.settings.options import OptimizerOptions

OPTIMIZERS = ("adam", "sgd")  # in the order of native/optimizer.h
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam: beta1, beta2 and epsilon


class OptimizerSpec:
    """Constants of an optimizer.

    State and constants are the same for our kernels and for MXNet's operators, so a run may change from one to the
    other. Our kernels pass over the memory once. MXNet's operators take several passes: for 11 million parameters on
    two cores Adam takes six times as long, SGD three times.

    Attributes:
        name: adam or sgd.
        number: number of the optimizer in ``native/optimizer.h``.
        decays: Adam's beta1 and beta2; momentum and 0.
        epsilon: Adam's epsilon; else 0.
        constants: C array of the decays and epsilon.
        mxnet: arguments of MXNet's optimizer.
        moments: number of moments; without momentum, SGD has none.
        clip_norm: largest norm of the mean gradient; ``None``: no clipping.
    """

    def __init__(self, options: OptimizerOptions) -> None:
        self.name = options.name
        self.kernel_id = OPTIMIZERS.index(options.name)
        is_adam = options.name == "adam"
        self.betas = BETAS if is_adam else (options.momentum, 0.0)
        self.epsilon = EPSILON if is_adam else 0.0
        self.constants = (ctypes.c_double * 3)(*self.betas, self.epsilon)
        names = ("beta1", "beta2", "epsilon") if is_adam else ("momentum",)
        self.mxnet_kwargs = {"wd": options.weight_decay, **dict(zip(names, self.constants))}
        self.num_moments = 2 if is_adam else int(options.momentum != 0)
        self.weight_decay = options.weight_decay
        self.clip_norm = options.clip_norm

    def bias_corrected_lr(self, learning_rate: float, num_updates: int) -> float:
        """Correct the learning rate for the bias of Adam's moments at its update number ``updates``, from 1."""
        if self.name != "adam":
            return learning_rate
        first, second = (1 - decay**num_updates for decay in self.betas)
        return float(learning_rate * math.sqrt(second) / first)

    def state_shapes(self, parameter: Parameter) -> list[tuple[int, ...]]:
        """Return the shapes of the moments of a parameter."""
        shapes = [tuple(parameter.shape)] * self.num_moments
        if self.num_moments == 2 and parameter.rowwise_second_moment:
            shapes[1] = (parameter.shape[0], 1)
        return shapes


class FusedOptimizer:
    """Optimizer of the parameters, which our own kernels update in one call.

    Args:
        parameters: parameters by name, with the memory of their gradients.
    """

    def __init__(self, optimizer: OptimizerSpec, parameters: Mapping[str, Parameter], scales: FixedPointScales) -> None:
        self._parameters = dict(parameters)
        self._optimizer = optimizer
        self._scales = scales
        self._functions, self._threads = library.functions(), library.num_threads()
        self._moments = {
            name: [np.zeros(shape, np.float32) for shape in optimizer.state_shapes(parameter)]
            for name, parameter in parameters.items()
        }
        firsts, seconds = zip(*[(*moments, None, None)[:2] for moments in self._moments.values()])
        values, gradients = zip(*[(parameter.data, parameter.grad) for parameter in parameters.values()])
        sizes = (ctypes.c_int64 * len(values))(*[value.size for value in values])
        self._addresses = sizes, *map(pointers, (values, firsts, seconds, gradients))

    def step(self, learning_rate: float, grad_factor: float) -> None:
        """Update the parameters with ``scale`` times their gradients.

        Args:
            rate: learning rate, for Adam with the correction of its bias.
        """
        optimizer, parameters = self._optimizer, self._parameters.values()
        numbers = ctypes.c_double * len(parameters)
        rates = numbers(*[learning_rate * parameter.lr_mult for parameter in parameters])
        scales = numbers(*[grad_factor * self._scales.scale_of(name) for name in self._parameters])
        self._functions.crepe_update_parameters(
            optimizer.kernel_id, optimizer.constants, len(parameters), *self._addresses, rates, scales,
            optimizer.weight_decay, self._threads,
        )  # fmt: skip

    def squared_norm(self) -> float:
        """Return the sum of the squares of the gradients."""
        total, sums = 0.0, (ctypes.c_uint64 * 2)()
        for name, parameter in self._parameters.items():
            assert parameter.grad is not None
            self._functions.crepe_squared_norm(parameter.grad.ctypes.data, parameter.grad.size, sums)
            low, high = sums
            total += (low + (high << 32)) * self._scales.scale_of(name) ** 2
        return total

    def state_dict(self) -> Arrays:
        """Copy the moments."""
        return {f"{name}.{k}": m.copy() for name, moments in self._moments.items() for k, m in enumerate(moments)}

    def load_state_dict(self, saved: OptimizerState) -> None:
        """Restore the result of ``arrays``, if the saved state has it."""
        for name, parameter in self._parameters.items():
            for own, moment in zip(
                self._moments[name], saved.moments(name, self._optimizer.state_shapes(parameter)) or ()
            ):
                own[:] = moment
