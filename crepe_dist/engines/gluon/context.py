"""MXNet's context of a device, its memory and its matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mxnet as mx
import numpy as np
import numpy.typing as npt

from crepe_dist.distributed.device import Device


def context(device: Device) -> mx.Context:
    """Return MXNet's context of a device."""
    return mx.gpu(device.device_id) if device.device_type == "gpu" else mx.cpu()


def gpu_memory(device: Device) -> tuple[int, int]:
    """Return the free and the total bytes of a GPU's memory."""
    free, total = mx.context.gpu_memory_info(device.device_id)
    return free, total


def product(
    left: npt.NDArray[np.float32], right: npt.NDArray[np.float32], precision: str, device: Device
) -> Callable[[], Any]:
    """Return a function that multiplies two square matrices in a precision and waits for the product."""
    one, other = (mx.nd.array(matrix, ctx=context(device)).astype(precision) for matrix in (left, right))
    return lambda: mx.nd.FullyConnected(one, other, num_hidden=len(left), no_bias=True).wait_to_read()
