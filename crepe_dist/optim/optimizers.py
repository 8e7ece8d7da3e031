"""Constants of the optimizers, and updates of dense parameters by the native CPU kernels.

``parallel/sharded_embedding.py`` updates row-sparse parameters, and ``parallel/cuda_optimizer.py`` updates parameters
on GPUs.
"""

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
from crepe_dist.settings.options import REFERENCE_BATCH_SIZE, OptimizerOptions

BETAS, EPSILON = (0.8, 0.999), 1e-8  # Adam's beta1 and beta2, and epsilon (docs/decisions/training.md).


def batch_factor(global_batch_size: float) -> float:
    """Return the factor of the mean gradient of a batch, which is also the factor of the learning rate.

    The factor is the square root of the relative size of the batch. With both factors, SGD moves the parameters as far
    per document as with batches of ``REFERENCE_BATCH_SIZE`` documents (Goyal et al. 2017, arXiv:1706.02677). Adam
    divides by the root of the second moment. The factor of the gradient keeps the variance of its noise constant while
    batches grow, so the second moment, which is a mean over many steps, still fits.
    """
    return math.sqrt(max(1.0, global_batch_size / REFERENCE_BATCH_SIZE))


class OptimizerSpec:
    """Constants of an optimizer.

    The native kernels and MXNet's operators use the same constants and state, so a resumed run may switch from one to
    the other. In each update, the native kernels read memory once, and MXNet's operators read it several times. With 11
    million parameters on two cores, MXNet takes six times as long as the native kernels for Adam, and three times as
    long for SGD.

    Attributes:
        name: ``adam`` or ``sgd``.
        is_adam: True for Adam, False for SGD.
        betas: Adam: beta1 and beta2. SGD: momentum and 0.
        epsilon: Adam's epsilon. It is 0 for SGD.
        constants: Betas and epsilon as a C array.
        mxnet_kwargs: Keyword arguments of MXNet's optimizer.
        num_moments: Number of moments: 2 for Adam, 1 for SGD with momentum, 0 for SGD without momentum.
        weight_decay: Coefficient of the weight decay.

    Raises:
        KeyError: There is no optimizer of this name.
    """

    def __init__(self, options: OptimizerOptions) -> None:
        self.name = options.name
        self.is_adam = is_adam = {"adam": True, "sgd": False}[options.name]
        self.betas = BETAS if is_adam else (options.momentum, 0.0)
        self.epsilon = EPSILON if is_adam else 0.0
        self.constants = (ctypes.c_double * 3)(*self.betas, self.epsilon)
        names = ("beta1", "beta2", "epsilon") if is_adam else ("momentum",)
        self.mxnet_kwargs = {"wd": options.weight_decay, **dict(zip(names, self.constants))}
        self.num_moments = 2 if is_adam else int(options.momentum != 0)
        self.weight_decay = options.weight_decay

    def bias_corrected_lr(self, learning_rate: float, num_updates: int) -> float:
        """Return the effective learning rate. For Adam, it includes the bias correction of the moments.

        Args:
            learning_rate: Learning rate without bias correction.
            num_updates: Number of updates, including the current one.
        """
        if not self.is_adam:
            return learning_rate
        first, second = (1 - beta**num_updates for beta in self.betas)
        return float(learning_rate * math.sqrt(second) / first)

    def state_shapes(self, parameter: Parameter) -> list[tuple[int, ...]]:
        """Return the shapes of the moments of a parameter."""
        shapes = [tuple(parameter.shape)] * self.num_moments
        if self.num_moments == 2 and parameter.rowwise_second_moment:
            shapes[1] = (parameter.shape[0], 1)
        return shapes


class FusedOptimizer:
    """Optimizer of the dense parameters. One call of a CPU kernel updates all of them (PyTorch: ``fused=True``).

    Args:
        parameters: Dense parameters by name. Their ``grad`` arrays have been allocated.
    """

    def __init__(self, optimizer: OptimizerSpec, parameters: Mapping[str, Parameter], scales: FixedPointScales) -> None:
        self._parameters = dict(parameters)
        self._optimizer = optimizer
        self._scales = scales
        self._functions, self._num_threads = library.functions(), library.num_threads()
        self._moments = {
            name: [np.zeros(shape, np.float32) for shape in optimizer.state_shapes(parameter)]
            for name, parameter in parameters.items()
        }
        # The kernel takes two moments per parameter. A moment that the optimizer does not have is a null pointer.
        firsts, seconds = zip(*[(*moments, None, None)[:2] for moments in self._moments.values()])
        values, gradients = zip(*[(parameter.data, parameter.grad) for parameter in parameters.values()])
        sizes = (ctypes.c_int64 * len(values))(*[array.size for array in values])
        self._kernel_arrays = sizes, *map(pointers, (values, firsts, seconds, gradients))

    def step(self, learning_rate: float, grad_factor: float) -> None:
        """Update the parameters.

        Args:
            learning_rate: Result of ``OptimizerSpec.bias_corrected_lr``.
            grad_factor: Factor that converts the summed gradients to their mean.
        """
        optimizer, parameters = self._optimizer, self._parameters.values()
        double_array = ctypes.c_double * len(parameters)
        learning_rates = double_array(*[learning_rate * parameter.lr_mult for parameter in parameters])
        grad_factors = double_array(*[grad_factor * self._scales.scale_of(name) for name in self._parameters])
        self._functions.crepe_update_parameters(
            optimizer.is_adam, optimizer.constants, len(parameters), *self._kernel_arrays,
            learning_rates, grad_factors, optimizer.weight_decay, self._num_threads,
        )  # fmt: skip

    def state_dict(self) -> Arrays:
        """Return copies of the moments, under the names that ``OptimizerState`` documents."""
        return {f"{name}.{k}": m.copy() for name, moments in self._moments.items() for k, m in enumerate(moments)}

    def load_state_dict(self, state: OptimizerState) -> None:
        """Restore the moments from a saved state. Parameters without moments in the state keep their moments."""
        for name, parameter in self._parameters.items():
            saved_moments = state.moments(name, self._optimizer.state_shapes(parameter)) or ()
            for moment, saved_moment in zip(self._moments[name], saved_moments):
                moment[:] = saved_moment
