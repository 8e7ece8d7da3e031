"""State of a trainer's optimizer as plain arrays."""

from __future__ import annotations

import re
from typing import Any

import mxnet as mx
import numpy as np

from crepe_dist.distributed.optimizers import other_optimizer
from crepe_dist.mxnet_internals import optimizer_state, set_optimizer_state, trainer_parameters
from crepe_dist.runs.state import Arrays

OPTIMIZER_NAME = re.compile(r"(\d{1,4})\.([01])", re.ASCII)  # index of the parameter, and of its array


def optimizer_arrays(trainer: Any) -> Arrays:
    """Copy the optimizer's arrays as ``<parameter>.<k>`` (momentum, or mean and variance) and its update count."""
    updates, states = optimizer_state(trainer)
    arrays: Arrays = {"updates": np.array([updates], dtype=np.int64)}
    for index, state in states.items():
        arrays.update({f"{index}.{k}": array.asnumpy() for k, array in enumerate(state)})
    return arrays


def set_optimizer_arrays(trainer: Any, arrays: Arrays, device: Any) -> None:
    """Restore ``optimizer_arrays`` on a new trainer with the same optimizer and parameters.

    Raises:
        UserError: the arrays do not fit this optimizer or these parameters.
    """
    shapes = [tuple(parameter.shape) for parameter in trainer_parameters(trainer)]
    by_index: dict[int, dict[int, Any]] = {}
    for name, array in arrays.items():
        if name == "updates":
            continue
        place = OPTIMIZER_NAME.fullmatch(name)
        if place is None or int(place[1]) >= len(shapes):
            raise other_optimizer(f"it has an array {name[:80]!r}")
        index, k = int(place[1]), int(place[2])
        if array.shape != shapes[index] or array.dtype != np.float32:
            found, expected = f"{array.dtype} {list(array.shape)}", f"float32 {list(shapes[index])}"
            raise other_optimizer(f"array {name} is {found} instead of {expected}")
        by_index.setdefault(index, {})[k] = mx.nd.array(array, ctx=device, dtype=array.dtype)
    number = moments(trainer.optimizer)
    for index, given in by_index.items():
        if len(given) != number:
            raise other_optimizer(f"it has {len(given)} arrays for parameter {index} instead of {number}")
    states = {index: tuple(states[k] for k in sorted(states)) for index, states in by_index.items()}
    set_optimizer_state(trainer, updates(arrays), states, device)


def moments(optimizer: mx.optimizer.Optimizer) -> int:
    """Return the number of arrays that an optimizer keeps for a parameter."""
    if isinstance(optimizer, mx.optimizer.Adam):
        return 2
    return 1 if optimizer.momentum else 0


def check_numbers(arrays: Arrays) -> None:
    """Refuse numbers that no optimizer computes; NaNs of rows that are not read would reach the parameters unnoticed.

    Raises:
        UserError: an array holds a NaN or an infinity, or a mean of squares is negative.
    """
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise other_optimizer(f"array {name[:80]!r} has NaN or infinity")
        if name.endswith(".1") and (array < 0).any():
            raise other_optimizer(f"array {name[:80]!r} has a negative mean of squares")


def updates(arrays: Arrays) -> int:
    """Return the number of updates in ``optimizer_arrays``.

    Raises:
        UserError: there is none.
    """
    count = arrays.get("updates")
    if count is None or count.shape != (1,) or count.dtype != np.int64 or count[0] < 0:
        raise other_optimizer("it has no count of updates")
    return int(count[0])
