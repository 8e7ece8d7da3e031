"""Distributed optimizer for the floating-point gradients that MXNet computes: all-reduce by Horovod, updates by Gluon.

This optimizer trains the paper's network: ``horovodrun -np 2 crepe train --model paper --kernels mxnet``. Horovod's
``DistributedTrainer`` sums the gradients of all processes. A single process uses Gluon's own ``Trainer``.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import mxnet as mx
import numpy as np
import numpy.typing as npt
from mxnet import gluon

from crepe_dist.data.arrays import Arrays
from crepe_dist.distributed import mxnet_cuda
from crepe_dist.distributed.mxnet_internals import (
    disable_aggregated_updates,
    disable_averaging,
    get_optimizer_state,
    numpy_view,
    set_optimizer_state,
    trainer_parameters,
)
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.errors import UserError
from crepe_dist.optim.optimizer_state import OptimizerState
from crepe_dist.optim.optimizers import OptimizerSpec, batch_factor
from crepe_dist.parallel.distributed_optimizer import DistributedOptimizer, StepStats


class HorovodOptimizer(DistributedOptimizer):
    """All-reduce by Horovod's ``DistributedTrainer``, and updates by MXNet's optimizers.

    Args:
        group: Process group.
        parameters: Gluon's parameters, by Gluon's names.
        optimizer: Hyperparameters of the optimizer.
        names: Structural names of the parameters, by Gluon's names.
    """

    def __init__(
        self, group: ProcessGroup, parameters: Mapping[str, Any], optimizer: OptimizerSpec, names: Mapping[str, str]
    ) -> None:
        self._group = group
        self._optimizer = optimizer
        self._device = next(iter(parameters.values())).list_ctx()[0]
        mxnet_optimizer = mx.optimizer.create(optimizer.name, **optimizer.mxnet_kwargs)  # `step` sets its learning rate
        self._collective: Callable[[], AbstractContextManager[None]] = nullcontext
        if group.size == 1:
            self._trainer = gluon.Trainer(parameters, mxnet_optimizer, kvstore=None)
        else:
            self.reduce_backend = "Horovod"
            if group.backend != "Horovod":
                remedy = "start it with horovodrun, or train this network on CPUs with the native kernels"
                raise UserError("MXNet's trainer in several processes needs Horovod", remedy=remedy, on_all_ranks=True)
            import horovod.mxnet as hvd

            from crepe_dist.distributed.horovod_group import detect_lost_peer

            self._collective = detect_lost_peer
            if self._device.device_type == "gpu" and not hvd.cuda_built():  # Horovod would crash.
                hint = mxnet_cuda.HOROVOD_BUILD_HINT
                remedy = f"{hint}; or train in one process on one GPU, or in several with --device cpu"
                raise UserError("Horovod was built without CUDA", remedy=remedy, on_all_ranks=True)
            # If there is a single group, Horovod sums all gradients in one collective, and the order of the additions
            # is fixed. If there were several groups, the order would depend on timing. A single group also avoids a
            # race in MXNet's handling of a failed collective.
            self._trainer = hvd.DistributedTrainer(parameters, mxnet_optimizer, num_groups=1)
            disable_averaging(self._trainer)
        if self._device.device_type == "cpu":
            disable_aggregated_updates(self._trainer)
        self._parameters = trainer_parameters(self._trainer)
        self._names = [names[parameter.name] for parameter in self._parameters]

    @property
    def gradients(self) -> list[Any]:
        return [parameter.grad() for parameter in self._parameters]

    def _all_reduce(
        self, loss: mx.nd.NDArray, step_info: Sequence[int]
    ) -> tuple[list[StepStats], tuple[int, ...], bool]:
        # The all-reduce overwrites the gradients, so the squared norms of this rank's gradients are computed first.
        # The norms are read only if the sums are not finite, to find out which ranks have non-finite gradients.
        norms = mx.nd.multi_sum_sq(*self.gradients, num_arrays=len(self._parameters))
        with self._collective():
            self._trainer.allreduce_grads()
            losses, sums_are_finite = read_and_check_finite(loss, self.gradients)
        own_are_finite = sums_are_finite or bool(np.isfinite(norms.asnumpy()).all())
        stats = self._group.all_gather_json([own_are_finite, float(losses[0]), *step_info], "step")
        nonfinite_ranks: tuple[int, ...] = ()
        if not sums_are_finite:
            nonfinite_ranks = tuple(rank for rank, rank_stats in enumerate(stats) if not rank_stats[0])
            # If the gradients of every rank are finite, their sum has overflowed, and all ranks are reported.
            nonfinite_ranks = nonfinite_ranks or tuple(range(self._group.size))
        return [rank_stats[1:] for rank_stats in stats], nonfinite_ranks, False

    def step(self, global_batch_size: float, learning_rate: float) -> None:
        if self._optimizer.clip_norm is not None:
            max_norm = self._optimizer.clip_norm * global_batch_size
            gluon.utils.clip_global_norm(self.gradients, max_norm, check_isfinite=False)
        factor = batch_factor(global_batch_size)
        self._trainer.set_learning_rate(factor * learning_rate)
        self._trainer.update(global_batch_size / factor)  # Gluon divides the summed gradients by this number.

    def state_dict(self) -> Arrays:
        if not self._group.is_root:
            return {}
        num_updates, moments = get_optimizer_state(self._trainer)
        arrays: Arrays = {"updates": np.array([num_updates], dtype=np.int64)}
        for index, parameter_moments in moments.items():
            arrays.update({f"{self._names[index]}.{k}": array.asnumpy() for k, array in enumerate(parameter_moments)})
        return arrays

    def load_state_dict(self, arrays: Arrays) -> None:
        state, mxnet_states = OptimizerState(arrays), {}
        for index, (name, parameter) in enumerate(zip(self._names, self._parameters)):
            moments = state.moments(name, [tuple(parameter.shape)] * self._optimizer.num_moments)
            if moments is not None:
                mxnet_states[index] = tuple(mx.nd.array(moment, ctx=self._device) for moment in moments)
        set_optimizer_state(self._trainer, state.num_updates, mxnet_states, self._device)


def read_and_check_finite(array: mx.nd.NDArray, gradients: list[Any]) -> tuple[npt.NDArray[np.float32], bool]:
    """Read a small array, and check whether all gradients are finite. Wait for the device only once.

    Returns:
        The array, and True if all gradients are finite.
    """
    if array.context.device_type == "cpu":
        # On a CPU, MXNet's operator takes about a second for 12 million gradients (MXNet 1.9.1). NumPy is faster.
        mx.nd.waitall()
        return numpy_view(array).copy(), all(_is_finite(numpy_view(gradient).reshape(-1)) for gradient in gradients)
    are_finite = mx.nd.multi_all_finite(*gradients, num_arrays=len(gradients))
    values = mx.nd.concat(array, are_finite, dim=0).asnumpy()
    return values[:-1], bool(values[-1])


def _is_finite(numbers: npt.NDArray[np.float32]) -> bool:
    # Computing the sum of squares takes a third as long as checking each number. The sum can overflow although all
    # numbers are finite, so each number is checked if the sum is not finite.
    return bool(np.isfinite(np.dot(numbers, numbers)) or np.isfinite(numbers).all())
