"""Choice of the device that this process computes on.

MXNet is imported inside the functions: commands import this module before they set the number of MXNet's threads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crepe_dist.distributed import cuda
from crepe_dist.errors import UserError
from crepe_dist.settings.allowed_values import DEVICES


def pick(device: str, local_rank: int, local_size: int) -> Any:
    """Choose ``mx.gpu(local_rank)``, or ``mx.cpu()`` on request or if ``auto`` finds no GPU.

    Raises:
        UserError: no GPU for ``gpu``, fewer GPUs than processes on this host, or one that MXNet cannot compute on.
    """
    import mxnet as mx

    if device not in DEVICES:
        raise UserError(f"device {device!r} does not exist", remedy=f"choose one of {', '.join(DEVICES)}")
    if device == "cpu":
        return mx.cpu()
    gpus = count_gpus()
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
    if error := cuda.refusal(local_rank, cuda.name_of(local_rank), cuda.compute_capability(local_rank)):
        raise error
    return mx.gpu(local_rank)


def count_gpus() -> int:
    """Count the GPUs that MXNet sees, whether or not it has code for them.

    Raises:
        UserError: the driver does not work, or is so old that MXNet would see no GPU.
    """
    import mxnet as mx

    if cuda.is_installed() and (error := cuda.outdated(cuda.driver_version())):
        raise error
    try:
        return int(mx.context.num_gpus())
    except mx.MXNetError as error:
        why = str(error).strip().splitlines()[-1]
        remedy = f"run nvidia-smi; restart the machine after an update of the driver; {cuda.WITHOUT}"
        raise UserError("the GPUs cannot be counted", why, remedy) from error


def has_gpu_driver() -> bool:
    """Return whether a driver is present, without calling MXNet or the driver."""
    return Path("/dev/nvidiactl").exists()
