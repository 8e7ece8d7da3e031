"""Choice of the device that this process computes on.

MXNet, which counts GPUs, is imported only if there may be one.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crepe_dist import invocation
from crepe_dist.cuda import driver
from crepe_dist.distributed import cuda
from crepe_dist.distributed.collectives import SAME_MACHINES, Collectives
from crepe_dist.distributed.launch import detect, has_mxnet, import_mxnet
from crepe_dist.errors import UserError
from crepe_dist.settings.allowed_values import DEVICES
from crepe_dist.wording import counted, listed

if TYPE_CHECKING:
    from crepe_dist.distributed.world import World

SHOWN_RANKS = 8
ALONE = Collectives()
DEVICE_FILE, WSL_DEVICE_FILE = Path("/dev/nvidiactl"), Path("/dev/dxg")


@dataclass(frozen=True)
class Device:
    """Device that computes, with the attributes and the text of MXNet's context."""

    device_type: str
    device_id: int = 0

    def __str__(self) -> str:
        return f"{self.device_type}({self.device_id})"


CPU = Device("cpu")


def pick_for_inference(device: str, ranks: Collectives = ALONE) -> Device:
    """Choose as ``pick``, but a GPU for ``auto`` only if there is a driver."""
    return pick("cpu" if device == "auto" and not has_gpu_driver() else device, ranks)


def pick(device: str, ranks: Collectives = ALONE) -> Device:
    """Choose a GPU that no other rank uses, or the CPU on request or if ``auto`` finds no GPU; all ranks call it.

    GPUs are told apart by their UUIDs. So it does not matter whether a process sees all GPUs of its host or only one,
    nor which names or numbers containers and schedulers give to hosts and GPUs.

    Raises:
        UserError: on every rank, if one of them finds no GPU for ``gpu``, no GPU of its own, or one that MXNet cannot
            compute on.
    """
    gpus = ranks.agree("GPUs", lambda: _visible(device), alike=SAME_MACHINES)
    seen = ranks.gather([socket.gethostname(), gpus], "visible GPUs")
    return ranks.agree("device", lambda: _device(assign(seen)[ranks.rank]), alike=SAME_MACHINES)


def pick_on_all(device: str, world: World) -> Device:
    """Choose this rank's device as ``pick`` does, of one kind for all ranks; call it before a network is built.

    Raises:
        UserError: as ``pick``; or on every rank, if some have a GPU and others none, or Horovod cannot handle arrays
            on it.
    """
    picked = pick(device, world)
    kinds = world.gather([socket.gethostname(), picked.device_type], "device types")
    without = [f"rank {rank} (host {host})" for rank, (host, kind) in enumerate(kinds) if kind == "cpu"]
    if 0 < len(without) < len(kinds):
        shown = listed([*without[:SHOWN_RANKS], *[f"{len(without) - SHOWN_RANKS} more"][: len(without) > SHOWN_RANKS]])
        raise UserError(
            f"some processes have a GPU and others have none: {shown}",
            "gradients are summed either on GPUs or on CPUs",
            f"run {invocation.typed('doctor')} on the hosts without a GPU, leave them out, or use --device cpu",
            on_all_ranks=True,
        )
    world.check_device(picked)
    return picked


def _visible(device: str) -> list[str]:
    """List the UUIDs of the GPUs that this process may use, in the order of their numbers.

    A GPU without a UUID is taken for the one that has the same number in the other processes of its host.
    """
    if device not in DEVICES:
        raise UserError(f"device {device!r} does not exist", remedy=f"choose one of {', '.join(DEVICES)}")
    if device == "cpu" or (device == "auto" and not (has_mxnet() and (has_gpu_driver() or cuda.is_installed()))):
        return []
    import_mxnet(detect(), "--device gpu")
    gpus = count_gpus()
    if gpus == 0 and device == "gpu":
        raise UserError(
            "no GPU was found",
            "MXNet sees none: no driver, or the CPU flavour of MXNet is installed",
            "install the cu112 flavour (docs/install.md) and the driver, or use --device cpu",
        )
    return [driver.uuid_of(number) or f"{socket.gethostname()}:{number}" for number in range(gpus)]


def assign(seen: Sequence[tuple[str, Sequence[str]]]) -> list[int | None]:
    """Give each rank the first GPU that it sees and that no lower rank has.

    This is the GPU of the local rank's number where the processes of a host see the same GPUs, and 0 where each of them
    sees one of its own.

    Args:
        seen: host and visible GPUs of each rank.

    Returns:
        The number of each rank's GPU in its own numbering; ``None`` if it sees none.

    Raises:
        UserError: other ranks have all the GPUs that a rank sees.
    """
    owners: dict[str, int] = {}
    numbers = []
    for rank, (host, gpus) in enumerate(seen):
        number = next((number for number, gpu in enumerate(gpus) if gpu not in owners), None)
        if gpus and number is None:
            others = listed([f"rank {owners[gpu]} (host {seen[owners[gpu]][0]})" for gpu in gpus])
            raise UserError(
                f"rank {rank} (host {host}) has no GPU of its own",
                f"it sees {counted(len(gpus), 'GPU')}, used by {others}; each process trains on one GPU of its own",
                "start no more processes than there are GPUs, and let each process see all GPUs of its host or a "
                "GPU of its own (srun --gpus-per-task=1, CUDA_VISIBLE_DEVICES), or use --device cpu",
            )
        if number is not None:
            owners[gpus[number]] = rank
        numbers.append(number)
    return numbers


def _device(gpu: int | None) -> Device:
    if gpu is None:
        return CPU
    if is_pypi_wheel() and (error := cuda.refusal(gpu, driver.name_of(gpu), driver.compute_capability(gpu))):
        raise error
    return Device("gpu", gpu)


def is_pypi_wheel() -> bool:
    """Return whether MXNet is PyPI's wheel of the GPU flavour, the only build whose list of GPUs is known."""
    import mxnet as mx

    return cuda.is_pypi_wheel(Path(mx.libinfo.find_lib_path()[0]))


def count_gpus() -> int:
    """Count the GPUs that MXNet sees, whether or not it has code for them.

    Raises:
        UserError: the driver does not work, or is so old that MXNet would see no GPU.
    """
    import mxnet as mx

    if cuda.is_installed() and (error := cuda.outdated(driver.driver_version())):
        raise error
    try:
        return int(mx.context.num_gpus())
    except mx.MXNetError as error:
        why = str(error).strip().splitlines()[-1]
        remedy = f"run nvidia-smi; restart the machine after an update of the driver; {cuda.WITHOUT}"
        raise UserError("the GPUs cannot be counted", why, remedy) from error


def has_gpu_driver() -> bool:
    """Return whether a driver is present, without calling MXNet or the driver.

    WSL2 has another device file, for GPUs of all makers, so there the driver's library decides. Windows provides it
    (NVIDIA's "CUDA on WSL User Guide").
    """
    return DEVICE_FILE.exists() or (WSL_DEVICE_FILE.exists() and driver.has_driver_library())
