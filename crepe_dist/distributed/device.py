"""Choice of the device that this process computes on."""

from __future__ import annotations

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

MAX_SHOWN_RANKS = 8


@dataclass(frozen=True)
class Device:
    """Device that computes, with the attributes and the text of MXNet's context."""

    device_type: str
    device_id: int = 0

    def __str__(self) -> str:
        return f"{self.device_type}({self.device_id})"


CPU = Device("cpu")
GpuCheck = Callable[[Device], object]


def select_device(device: str, check: GpuCheck, group: ProcessGroup = SINGLE_PROCESS) -> Device:
    """Choose a GPU that no other rank uses, or the CPU on request or if ``auto`` finds no GPU; all ranks call it.

    GPUs are told apart by their UUIDs. So it does not matter whether a process sees all GPUs of its host or only one,
    nor which names or numbers containers and schedulers give to hosts and GPUs.

    Args:
        check: raises ``UserError`` for a GPU that no engine can use; such a GPU is not chosen.

    Raises:
        UserError: on every rank, if one of them finds no GPU for ``gpu``, or no GPU of its own, or if some have none.
    """
    gpus = group.run_on_all("GPUs", lambda: _usable_gpus(device, check), mismatch_hint=SAME_MACHINES_HINT)
    seen = group.all_gather_object([socket.gethostname(), list(gpus)], "visible GPUs")
    chosen = group.run_on_all("device", lambda: assign_gpus(seen)[group.rank], mismatch_hint=SAME_MACHINES_HINT)
    return CPU if chosen is None else list(gpus.values())[chosen]


def _usable_gpus(device: str, check: GpuCheck) -> dict[str, Device]:
    """Return the GPUs that this process may use, in the order of their numbers, by UUID.

    A GPU without a UUID is taken for the one that has the same number in the other processes of its host.
    """
    if device not in DEVICES:
        raise UserError(f"device {device!r} does not exist", remedy=f"choose one of {', '.join(DEVICES)}")
    gpus = [Device("gpu", number) for number in range(0 if device == "cpu" else driver.gpu_count())]
    if device == "gpu" and not gpus:
        why, remedy = driver.ERROR_HELP[driver.NO_DEVICE]
        none = driver.load_error() or driver.init_error() or UserError(why, remedy=remedy)
        raise UserError("no GPU was found", f"{none.what}: {none.why}".rstrip(": "), none.remedy)
    usable, refusals = {}, []
    for gpu in gpus:
        try:
            check(gpu)
        except UserError as error:
            refusals.append(error)
        else:
            usable[driver.gpu_uuid(gpu.device_id) or f"{socket.gethostname()}:{gpu.device_id}"] = gpu
    if device == "gpu" and not usable:
        raise refusals[0]
    return usable


def assign_gpus(visible_gpus: Sequence[tuple[str, Sequence[str]]]) -> list[int | None]:
    """Give each rank the first GPU that it sees and that no lower rank has.

    This is the GPU of the local rank's number where the processes of a host see the same GPUs, and 0 where each of them
    sees one of its own.

    Args:
        seen: host and visible GPUs of each rank.

    Returns:
        The number of each rank's GPU in its own numbering; ``None`` if no rank sees any.

    Raises:
        UserError: other ranks have all the GPUs that a rank sees, or only some ranks see any.
    """
    without = [f"rank {rank} (host {host})" for rank, (host, gpus) in enumerate(visible_gpus) if not gpus]
    if 0 < len(without) < len(visible_gpus):
        raise UserError(
            f"some processes have a GPU and others have none: {', '.join(without[:MAX_SHOWN_RANKS])}",
            remedy=f"run {invocation.command_line('doctor')} on the hosts without a GPU, leave them out, or use "
            f"--device cpu",
        )
    owners: dict[str, int] = {}
    numbers = []
    for rank, (host, gpus) in enumerate(visible_gpus):
        number = next((number for number, gpu in enumerate(gpus) if gpu not in owners), None)
        if gpus and number is None:
            others = join_words([f"rank {owners[gpu]} (host {visible_gpus[owners[gpu]][0]})" for gpu in gpus])
            raise UserError(
                f"rank {rank} (host {host}) has no GPU of its own",
                f"it sees {pluralize(len(gpus), 'GPU')}, used by {others}; each process trains on one GPU of its own",
                "start no more processes than there are GPUs, and let each process see all GPUs of its host or a "
                "GPU of its own (srun --gpus-per-task=1, CUDA_VISIBLE_DEVICES), or use --device cpu",
            )
        if number is not None:
            owners[gpus[number]] = rank
        numbers.append(number)
    return numbers


def check_mxnet_gpu(gpu: Device) -> None:
    """Check that MXNet sees a GPU, which imports MXNet.

    Raises:
        UserError: it does not, or its driver does not work.
    """
    import_mxnet("computing on a GPU by MXNet's operators")
    import mxnet as mx

    seen, why = 0, "its CPU flavour is installed, or the driver is too old"
    try:
        seen = mx.context.num_gpus()
    except mx.MXNetError as error:
        why = str(error).strip().splitlines()[-1]
    if gpu.device_id >= seen:
        raise UserError(
            f"MXNet sees no GPU {gpu.device_id}",
            f"it sees {pluralize(seen, 'GPU')}" if seen else why,
            "check nvidia-smi, install MXNet's cu112 flavour (docs/install.md), or use --device cpu",
        )
