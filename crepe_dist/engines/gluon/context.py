"""MXNet's context of a device, and its matrix products."""

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


def product(
    left: npt.NDArray[np.float32], right: npt.NDArray[np.float32], precision: str, device: Device
) -> Callable[[], Any]:
    """Return a function that multiplies two square matrices in a precision and waits for the product."""
    one, other = (mx.nd.array(matrix, ctx=context(device)).astype(precision) for matrix in (left, right))
    return lambda: mx.nd.FullyConnected(one, other, num_hidden=len(left), no_bias=True).wait_to_read()
