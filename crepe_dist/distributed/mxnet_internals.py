"""Workarounds that use private names or undocumented behaviour of MXNet. Each function contains one workaround.

All workarounds were checked with MXNet 1.9.1 from PyPI. Check them again before you allow another version. They were
not checked with NVIDIA's container. Its MXNet 1.9.1 contains changes by NVIDIA, for example in the engine, and uses
cuDNN 9 since container 24.05. Workarounds that must run before the import of MXNet are in ``distributed/launch.py``.
"""

import ctypes
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import mxnet as mx
import numpy as np


def numpy_view(array: Any) -> Any:
    """Return a NumPy view of an MXNet array in host memory. No operation on the array may be pending.

    The documented ways to read an array either copy it or wait for the engine. Both take ten times as long as filling a
    batch (checked with MXNet 1.9.1).
    """
    address = ctypes.c_void_p()
    mx.base.check_call(mx.base._LIB.MXNDArrayGetData(array.handle, ctypes.byref(address)))
    typestr = np.dtype(array.dtype).str
    interface = {"data": (address.value, False), "shape": array.shape, "typestr": typestr, "version": 3}
    # NumPy keeps the namespace alive while it uses the memory, and the namespace keeps the MXNet array alive.
    return np.asarray(SimpleNamespace(__array_interface__=interface, array=array))


def structural_parameters(block: Any) -> dict[str, Any]:
    """Return the parameters of a block. The keys are the names that ``save_parameters`` writes, such as ``0.weight``.

    The names that ``collect_params`` returns contain a counter of the networks in this process, so they differ between
    two networks of the same kind (checked with MXNet 1.9.1: ``Block._collect_params_with_prefix``).
    """
    parameters: dict[str, Any] = block._collect_params_with_prefix()
    return parameters


def trainer_parameters(trainer: Any) -> list[Any]:
    """Return a trainer's parameters in the order of its indices (checked with MXNet 1.9.1: ``Trainer._params``)."""
    parameters: list[Any] = trainer._params
    return parameters


def disable_averaging(trainer: Any) -> None:
    """Make Horovod's trainer sum gradients instead of averaging them.

    Gluon's update then divides the sum only by the batch size that is passed to it. If Horovod was built with NCCL, it
    averages by default (checked with MXNet 1.9.1 and Horovod 0.28.1: ``DistributedTrainer._average_in_framework``,
    ``Trainer._scale``).
    """
    trainer._average_in_framework, trainer._postscale_factor, trainer._scale = True, 1.0, 1.0


def disable_aggregated_updates(trainer: Any) -> None:
    """Make the optimizer update each array in a separate operator call.

    An aggregated update passes several arrays to one call. It saves kernel launches on a GPU. On a CPU, it takes twice
    as long (checked with MXNet 1.9.1: ``Optimizer.aggregate_num``).
    """
    trainer._optimizer.aggregate_num = 1


def get_optimizer_state(trainer: Any) -> tuple[int, dict[int, tuple[Any, ...]]]:
    """Return the number of updates that the optimizer has made, and its state arrays by parameter index.

    This function replaces ``Trainer.save_states``, which pickles the arrays (checked with MXNet 1.9.1:
    ``Trainer._optimizer``, ``Trainer._updaters``).
    """
    states = {}
    for index, state in trainer._updaters[0].states.items():
        if state is not None:
            states[index] = tuple(state) if isinstance(state, (tuple, list)) else (state,)
    return int(trainer._optimizer.num_update), states


def set_optimizer_state(trainer: Any, updates: int, states: Mapping[int, tuple[Any, ...]], device: Any) -> None:
    """Restore the result of ``get_optimizer_state`` in a new trainer with the same optimizer and parameters.

    The number of updates is set for every parameter, because Adam's bias correction uses a counter per parameter
    (checked with MXNet 1.9.1: ``Optimizer._all_index_update_counts``, ``Optimizer._set_current_context``).
    """
    optimizer, updater = trainer._optimizer, trainer._updaters[0]
    for index, arrays in states.items():
        updater.states[index] = arrays if len(arrays) > 1 else arrays[0]
        updater.states_synced[index] = True
    optimizer.num_update = updates
    counts = dict.fromkeys(range(len(trainer._params)), updates)
    optimizer._all_index_update_counts = {device.device_id: counts}
    optimizer._set_current_context(device.device_id)
