"""Selection of the device that this process computes on: the CPU or a GPU."""

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from crepe_dist import invocation
from crepe_dist.cuda import driver
from crepe_dist.distributed.launch import import_mxnet
from crepe_dist.distributed.process_group import SAME_MACHINES_HINT, SINGLE_PROCESS, ProcessGroup
from crepe_dist.errors import UserError
from crepe_dist.formatting import join_words, pluralize
from crepe_dist.settings.fields import DEVICES

MAX_SHOWN_RANKS = 8  # Maximum number of ranks in an error message.


@dataclass(frozen=True)
class Device:
    """Device of a computation. It has the same attributes and the same string form as MXNet's ``Context``."""

    device_type: str
    device_id: int = 0

    def __str__(self) -> str:
        return f"{self.device_type}({self.device_id})"


CPU = Device("cpu")
GpuCheck = Callable[[Device], object]


def select_device(device: str, check: GpuCheck, group: ProcessGroup = SINGLE_PROCESS) -> Device:
    """Select a GPU that no other rank uses, or the CPU. Every rank must call this function.

    The CPU is selected if ``device`` is ``cpu``, or if ``device`` is ``auto`` and no GPU is found. GPUs are identified
    by their UUIDs. The selection therefore works whether a process sees all GPUs of its host or only one of them. The
    selection does not depend on the host names and GPU numbers that containers and schedulers assign.

    Args:
        device: ``auto``, ``cpu`` or ``gpu``.
        check: Function that raises ``UserError`` for a GPU that no engine can use. Such a GPU is not selected.

    Raises:
        UserError: On every rank, if ``device`` is ``gpu`` and a rank finds no usable GPU, if other ranks use all GPUs
            that a rank sees, or if only some ranks have a GPU.
    """
    gpus = group.run_on_all("GPUs", lambda: _usable_gpus(device, check), mismatch_hint=SAME_MACHINES_HINT)
    visible_gpus = group.all_gather_json([socket.gethostname(), list(gpus)], "visible GPUs")
    selected = group.run_on_all(
        "device", lambda: assign_gpus(visible_gpus)[group.rank], mismatch_hint=SAME_MACHINES_HINT
    )
    return CPU if selected is None else list(gpus.values())[selected]


def _usable_gpus(device: str, check: GpuCheck) -> dict[str, Device]:
    """Return the GPUs that this process can use. The keys are their UUIDs, in the order of the GPU numbers.

    If the driver reports no UUID for a GPU, its key consists of the host name and the GPU number in this process.

    Raises:
        UserError: ``device`` is unknown, or it is ``gpu`` and this process can use no GPU.
    """
    if device not in DEVICES:
        raise UserError(f"device {device!r} does not exist", remedy=f"choose one of {', '.join(DEVICES)}")
    gpus = [Device("gpu", number) for number in range(0 if device == "cpu" else driver.gpu_count())]
    if device == "gpu" and not gpus:
        raise driver.no_gpu_error()
    usable, errors = {}, []
    for gpu in gpus:
        try:
            check(gpu)
        except UserError as error:
            errors.append(error)
        else:
            usable[driver.gpu_uuid(gpu.device_id) or f"{socket.gethostname()}:{gpu.device_id}"] = gpu
    if device == "gpu" and not usable:
        raise errors[0]
    return usable


def assign_gpus(visible_gpus: Sequence[tuple[str, Sequence[str]]]) -> list[int | None]:
    """Assign to each rank the first GPU that it sees and that no lower rank has.

    If the processes of a host see the same GPUs, the number of a rank's GPU is its local rank. If each process sees
    only one GPU, the number is 0.

    Args:
        visible_gpus: For each rank, its host and the UUIDs of the GPUs that it sees.

    Returns:
        For each rank, the number of its GPU among the GPUs that the rank sees. If no rank sees a GPU, each item is
        ``None``.

    Raises:
        UserError: All GPUs that a rank sees are assigned to other ranks, or only some ranks see a GPU.
    """
    ranks_without = [f"rank {rank} (host {host})" for rank, (host, gpus) in enumerate(visible_gpus) if not gpus]
    if 0 < len(ranks_without) < len(visible_gpus):
        raise UserError(
            f"some processes have a GPU and others have none: {', '.join(ranks_without[:MAX_SHOWN_RANKS])}",
            remedy=f"run {invocation.command_line('doctor')} on the hosts without a GPU, leave them out, or use "
            f"--device cpu",
        )
    owners: dict[str, int] = {}
    numbers = []
    for rank, (host, gpus) in enumerate(visible_gpus):
        number = next((number for number, gpu in enumerate(gpus) if gpu not in owners), None)
        if gpus and number is None:
            owner_names = join_words([f"rank {owners[gpu]} (host {visible_gpus[owners[gpu]][0]})" for gpu in gpus])
            raise UserError(
                f"rank {rank} (host {host}) has no GPU of its own",
                f"it sees {pluralize(len(gpus), 'GPU')}, used by {owner_names}; each process needs its own GPU",
                "start at most one process per GPU, and let each process see all GPUs of its host or only its own "
                "(srun --gpus-per-task=1, CUDA_VISIBLE_DEVICES), or use --device cpu",
            )
        if number is not None:
            owners[gpus[number]] = rank
        numbers.append(number)
    return numbers


def check_mxnet_gpu(gpu: Device) -> None:
    """Check that MXNet can use a GPU. This function imports MXNet.

    Raises:
        UserError: MXNet does not see the GPU, or the driver does not work.
    """
    import_mxnet("computing on a GPU by MXNet's operators")
    import mxnet as mx

    num_gpus, why = 0, "the CPU build of MXNet is installed, or the driver is too old"
    try:
        num_gpus = mx.context.num_gpus()
    except mx.MXNetError as error:
        why = str(error).strip().splitlines()[-1]
    if gpu.device_id >= num_gpus:
        raise UserError(
            f"MXNet sees no GPU {gpu.device_id}",
            f"it sees {pluralize(num_gpus, 'GPU')}" if num_gpus else why,
            "check nvidia-smi, install the cu112 build of MXNet (docs/install.md), or use --device cpu",
        )
