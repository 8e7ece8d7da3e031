"""Which device this process computes on."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from crepe_dist.errors import UserError

DEVICES = ("auto", "gpu", "cpu")


def pick(device: str, local_rank: int, local_size: int) -> Any:
    """``mx.gpu(local_rank)``, or ``mx.cpu()`` if asked for or if ``auto`` finds no GPU.

    Raises:
        UserError: no GPU for ``gpu``, or fewer GPUs than processes on this host.
    """
    import mxnet as mx

    if device not in DEVICES:
        raise UserError(f"device {device!r} does not exist", remedy=f"choose one of {', '.join(DEVICES)}")
    if device == "cpu":
        return mx.cpu()
    gpus = mx.context.num_gpus()
    if gpus == 0:
        if device == "auto":
            return mx.cpu()
        raise UserError(
            "no GPU was found",
            "MXNet sees none: no driver, or the CPU flavour of MXNet is installed",
            "install the cu112 flavour (docs/install.md) and the driver, or use --device cpu",
        )
    if local_size > gpus:
        raise UserError(
            f"{local_size} processes on this host, but only {gpus} GPU{'s' if gpus > 1 else ''}",
            "each process trains on one GPU of its own",
            f"start at most {gpus} on this host (horovodrun -np {gpus}), or use --device cpu",
        )
    return mx.gpu(local_rank)


def compute_capability(gpu: int) -> tuple[int, int] | None:
    """(major, minor) of a GPU as the driver numbers them, or ``None`` if the driver cannot be asked."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        # Attributes 75 and 76 of cuDeviceGetAttribute: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
        failed = (
            driver.cuInit(0)
            or driver.cuDeviceGetAttribute(ctypes.byref(major), 75, gpu)
            or driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, gpu)
        )
    except (OSError, AttributeError):
        return None
    return None if failed else (major.value, minor.value)


def name_of(gpu: int) -> str:
    """Of a GPU as the driver numbers them; empty if the driver cannot be asked."""
    text = ctypes.create_string_buffer(256)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        failed = driver.cuInit(0) or driver.cuDeviceGetName(text, len(text), gpu)
    except (OSError, AttributeError):
        return ""
    return "" if failed else text.value.decode("utf-8", "replace")


def count() -> int:
    """GPUs that the driver shows to this process, whatever MXNet can do with them; 0 if it cannot be asked."""
    number = ctypes.c_int()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(number))
    except (OSError, AttributeError):
        return 0
    return 0 if failed else number.value


def has_gpu_driver() -> bool:
    """Whether a GPU could be used at all; asks neither MXNet nor the driver."""
    return Path("/dev/nvidiactl").exists()
