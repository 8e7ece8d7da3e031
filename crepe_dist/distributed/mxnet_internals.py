"""Workarounds that use private names or undocumented behaviour of MXNet, one function each.

Each was checked with MXNet 1.9.1 as PyPI has it. Check them all before allowing another version. None was checked with
NVIDIA's container, whose MXNet 1.9.1 has NVIDIA's own changes, to the engine among others, and cuDNN 9 from 24.05 on.
Workarounds that must run before MXNet is imported are in ``distributed/launch.py``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import mxnet as mx
import numpy as np


class _Memory:
    """Memory of an MXNet array for NumPy, which keeps the array as long as it uses the memory."""

    def __init__(self, array: Any) -> None:
        self._array = array
        address = ctypes.c_void_p()
        mx.base.check_call(mx.base._LIB.MXNDArrayGetData(array.handle, ctypes.byref(address)))
        kind = np.dtype(array.dtype).str
        self.__array_interface__ = {"data": (address.value, False), "shape": array.shape, "typestr": kind, "version": 3}


def numpy_view(array: Any) -> Any:
    """Return a NumPy view of an array in host memory, on which no operation may be pending.

    The documented ways to read an array copy it or wait for the engine, which takes ten times as long as filling a
    batch (checked with MXNet 1.9.1).
    """
    return np.asarray(_Memory(array))


def structural_parameters(block: Any) -> dict[str, Any]:
    """Return a block's parameters under the names that ``save_parameters`` writes, such as ``0.weight``.

    Names from ``collect_params`` count the networks of a process, so they differ from one network to the next (checked
    with MXNet 1.9.1: ``Block._collect_params_with_prefix``).
    """
    found: dict[str, Any] = block._collect_params_with_prefix()
    return found


def trainer_parameters(trainer: Any) -> list[Any]:
    """Return a trainer's parameters in the order of its indices (checked with MXNet 1.9.1: ``Trainer._params``)."""
    found: list[Any] = trainer._params
    return found


def disable_averaging(trainer: Any) -> None:
    """Let Horovod's trainer sum gradients, and Gluon's update divide them by what it is given alone.

    Built with NCCL, Horovod averages (checked with MXNet 1.9.1 and Horovod 0.28.1:
    ``DistributedTrainer._average_in_framework``, ``Trainer._scale``).
    """
    trainer._average_in_framework, trainer._postscale_factor, trainer._scale = True, 1.0, 1.0


def disable_aggregated_updates(trainer: Any) -> None:
    """Update one array per optimizer operator.

    Aggregated updates reduce the number of kernel launches on a GPU, but take twice as long on a CPU (checked with
    MXNet 1.9.1: ``Optimizer.aggregate_num``).
    """
    trainer._optimizer.aggregate_num = 1


def get_optimizer_state(trainer: Any) -> tuple[int, dict[int, tuple[Any, ...]]]:
    """Return the optimizer's number of updates, and its state arrays by parameter index.

    ``Trainer.save_states`` would pickle them (checked with MXNet 1.9.1: ``Trainer._optimizer``, ``Trainer._updaters``).
    """
    states = {}
    for index, state in trainer._updaters[0].states.items():
        if state is not None:
            states[index] = tuple(state) if isinstance(state, (tuple, list)) else (state,)
    return int(trainer._optimizer.num_update), states


def set_optimizer_state(trainer: Any, updates: int, states: Mapping[int, tuple[Any, ...]], device: Any) -> None:
    """Restore the result of ``optimizer_state`` in a new trainer with the same optimizer and parameters.

    Every parameter gets the number of updates, because Adam's bias correction counts updates per parameter (checked
    with MXNet 1.9.1: ``Optimizer._all_index_update_counts``, ``Optimizer._set_current_context``).
    """
    optimizer, updater = trainer._optimizer, trainer._updaters[0]
    for index, arrays in states.items():
        updater.states[index] = arrays if len(arrays) > 1 else arrays[0]
        updater.states_synced[index] = True
    optimizer.num_update = updates
    counts = dict.fromkeys(range(len(trainer._params)), updates)
    optimizer._all_index_update_counts = {device.device_id: counts}
    optimizer._set_current_context(device.device_id)
