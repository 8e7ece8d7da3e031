"""Peak throughput of matrix products on this machine, in floating-point operations per second."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, Callable

import numpy as np

from crepe_dist.distributed.device import Device
from crepe_dist.native import library

SIZE = 1536  # of the matrices that NumPy multiplies
KERNEL_SIZE, TIMES = 384, 500  # the fastest size of our kernels, and the products per call


def products(seconds: float, device: Device) -> dict[str, Callable[[], float]]:
    """Return measurements by name, ``<library>, <precision>``, for NumPy and our kernels on a CPU.

    Each measurement takes about ``seconds`` and returns floating-point operations per second.
    """
    if device.device_type == "gpu":
        return {}
    left, right = (np.random.default_rng(seed).standard_normal((SIZE, SIZE), dtype=np.float32) for seed in (0, 1))
    rates = {"numpy, float32": _rate(lambda: left @ right, SIZE, seconds)}
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
