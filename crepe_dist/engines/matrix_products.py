"""Peak throughput of matrix products on this machine, in floating-point operations per second."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, Callable

import mxnet as mx
import numpy as np

from crepe_dist.native import library

SIZE = 1536  # of the matrices that NumPy and MXNet multiply
KERNEL_SIZE, TIMES = 384, 500  # the fastest size of our kernels, and the products per call


def products(seconds: float, device: Any) -> dict[str, Callable[[], float]]:
    """Return measurements by name, ``<library>, <precision>``, for the libraries available on the device.

    Each measurement takes about ``seconds`` and returns floating-point operations per second.
    """
    left, right = (np.random.default_rng(seed).standard_normal((SIZE, SIZE), dtype=np.float32) for seed in (0, 1))

    def by_mxnet(precision: str) -> Callable[[], float]:
        one, other = (mx.nd.array(matrix, ctx=device).astype(precision) for matrix in (left, right))

        def multiply() -> Any:
            return mx.nd.FullyConnected(one, other, num_hidden=SIZE, no_bias=True).wait_to_read()

        return _rate(multiply, SIZE, seconds)

    if device.device_type == "gpu":
        return {f"mxnet, {precision}": by_mxnet(precision) for precision in ("float32", "float16")}
    rates = {"numpy, float32": _rate(lambda: left @ right, SIZE, seconds), "mxnet, float32": by_mxnet("float32")}
    native, _ = library.find()
    if native is not None:
        precisions = ("float32", "bfloat16") if native.bfloat16 else ("float32",)
        for precision in precisions:
            threads = library.threads()
            multiply = partial(native.functions.crepe_products, precision == "bfloat16", KERNEL_SIZE, threads, TIMES)
            rates[f"ours, {precision}"] = _rate(multiply, KERNEL_SIZE, seconds, TIMES * threads)
    return rates


def _rate(multiply: Callable[[], Any], size: int, seconds: float, times: int = 1) -> Callable[[], float]:
    def measure() -> float:
        calls, start, passed = 0, time.perf_counter(), 0.0
        while not calls or passed < seconds:
            multiply()
            calls, passed = calls + 1, time.perf_counter() - start
        return 2 * size**3 * times * calls / passed

    return measure
