"""Private names and undocumented behaviour of MXNet that the package relies on, one function per trick.

Each was checked with MXNet 1.9.1; check them all before another version is allowed. What has to happen before MXNet
is imported is in ``distributed/launch.py``.

MXNet is imported inside the functions: ``distributed`` imports this module before ``OMP_NUM_THREADS`` is set, and MXNet
reads that variable once, when it is imported.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

# MXNet's casts take NumPy's dtypes. NumPy has no bfloat16, and MXNet recognises it by the name of this dtype's field.
BFLOAT16 = np.dtype([("bfloat16", np.uint16)])


def pointer(array: Any) -> int:
    """Return the address of an array in host memory; it must not outlive the array.

    No operation may be pending on the array. The documented ways to its contents copy it, or wait for the engine, which
    takes ten times as long as filling a batch (checked with MXNet 1.9.1).
    """
    import mxnet as mx

    address = ctypes.c_void_p()
    mx.base.check_call(mx.base._LIB.MXNDArrayGetData(array.handle, ctypes.byref(address)))
    assert address.value is not None
    return address.value


def pointers(arrays: Iterable[Any]) -> Any:
    """Return a C array of the addresses of several arrays; see ``pointer``."""
    addresses = [pointer(array) for array in arrays]
    return (ctypes.c_void_p * len(addresses))(*addresses)


def structural_parameters(block: Any) -> dict[str, Any]:
    """Return a block's parameters by the names that ``save_parameters`` writes, such as ``0.weight``.

    ``collect_params`` numbers the networks of a process, so its names differ from one network to the next (checked with
    MXNet 1.9.1: ``Block._collect_params_with_prefix``).
    """
    found: dict[str, Any] = block._collect_params_with_prefix()
    return found


def drop_compiled_graph(block: Any) -> None:
    """Compile the graph of a hybridized block and of its children anew at the next forward pass.

    ``hybridize`` does so too, but would also hybridize a block that is not (checked with MXNet 1.9.1:
    ``HybridBlock._clear_cached_op``).
    """
    block.apply(lambda each: each._clear_cached_op())


def set_gradients(parameter: Any, arrays: list[Any]) -> None:
    """Make ``arrays``, one a device, the gradients of a parameter: backward passes write into them.

    Has no effect on a graph that is compiled already: it keeps writing into the old arrays (checked with MXNet 1.9.1:
    ``Parameter._grad``).
    """
    import mxnet as mx

    parameter._grad = arrays
    mx.autograd.mark_variables(parameter.list_data(), parameter.list_grad(), parameter.grad_req)


def mark_gradient_fresh(parameter: Any) -> None:
    """Note that a gradient was written other than by MXNet's backward pass.

    Otherwise ``Trainer.update`` raises an error about a stale gradient (checked with MXNet 1.9.1:
    ``NDArray._fresh_grad``).
    """
    parameter.data()._fresh_grad = True


def trainer_parameters(trainer: Any) -> list[Any]:
    """Return a trainer's parameters in the order of its indices (checked with MXNet 1.9.1: ``Trainer._params``)."""
    found: list[Any] = trainer._params
    return found


def gradient_scale(trainer: Any) -> float:
    """Return the factor by which ``Trainer.update(1)`` multiplies gradients.

    Horovod folds 1 / size into it where it sums (checked with MXNet 1.9.1 and Horovod 0.28.1: ``Trainer._scale``).
    """
    return float(trainer._scale)


def replace_allreduce(trainer: Any, allreduce: Callable[[], None]) -> None:
    """Have ``Trainer.step`` and ``allreduce_grads`` call ``allreduce``.

    Gradients in shared memory need no Horovod (checked with MXNet 1.9.1: ``Trainer._allreduce_grads``).
    """
    trainer._allreduce_grads = allreduce


def update_arrays_one_by_one(trainer: Any) -> None:
    """Give each optimizer operator a single array.

    Several arrays an operator are made for the many small kernels of a GPU and take twice as long on a CPU (checked
    with MXNet 1.9.1: ``Optimizer.aggregate_num``).
    """
    trainer._optimizer.aggregate_num = 1


def optimizer_state(trainer: Any) -> tuple[int, dict[int, tuple[Any, ...]]]:
    """Return the optimizer's count of updates, and its arrays by the index of their parameter.

    ``Trainer.save_states`` would pickle them (checked with MXNet 1.9.1: ``Trainer._optimizer``, ``Trainer._updaters``).
    """
    states = {}
    for index, state in trainer._updaters[0].states.items():
        if state is not None:
            states[index] = tuple(state) if isinstance(state, (tuple, list)) else (state,)
    return int(trainer._optimizer.num_update), states


def set_optimizer_state(trainer: Any, updates: int, states: Mapping[int, tuple[Any, ...]], device: Any) -> None:
    """Restore what ``optimizer_state`` returned on a new trainer of the same optimizer and parameters.

    Every parameter gets the count of updates: Adam corrects its bias by a count of each parameter (checked with MXNet
    1.9.1: ``Optimizer._all_index_update_counts``, ``Optimizer._set_current_context``).
    """
    optimizer, updater = trainer._optimizer, trainer._updaters[0]
    for index, arrays in states.items():
        updater.states[index] = arrays if len(arrays) > 1 else arrays[0]
        updater.states_synced[index] = True
    optimizer.num_update = updates
    counts = dict.fromkeys(range(len(trainer._params)), updates)
    optimizer._all_index_update_counts = {device.device_id: counts}
    optimizer._set_current_context(device.device_id)
