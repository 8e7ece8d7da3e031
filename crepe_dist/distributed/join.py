"""Join the group of processes that a launcher started. MXNet and Horovod are imported for several processes only."""

from __future__ import annotations

import importlib
import os
import socket
import time
from typing import Any

from crepe_dist.distributed import cuda, horovod_internals, rendezvous
from crepe_dist.distributed.device import has_gpu_driver
from crepe_dist.distributed.endpoint import INTERFACE, interface_address
from crepe_dist.distributed.launch import Launch, detect, has_mxnet, import_mxnet, limit_threads
from crepe_dist.distributed.world import World
from crepe_dist.errors import UserError


def join() -> World:
    """Join the world that the launcher describes, and give this process its share of the host's threads.

    Raises:
        UserError: this is one of many processes, and Horovod is missing, or other ranks do not arrive.
    """
    launch = detect()
    try:
        met = rendezvous.meet(launch) if rendezvous.is_needed(launch) else None
    except UserError as error:
        if error.on_all_ranks:
            error = error_of_all(launch.rank, error)
        raise error
    try:
        limit_threads(detect())  # again: the rendezvous may have set the variables
        if launch.size == 1:
            return World()
        horovod = _import_horovod(launch)
    except UserError as error:
        raise error_of_all(launch.rank, error) from error
    try:
        _check_network()
    except UserError as error:
        raise error_of_all(launch.local_rank, error) from error
    # Not at the top: it imports MXNet, which must not happen before `import_mxnet` has set its number of threads.
    from crepe_dist.distributed.horovod_world import HorovodWorld

    world = HorovodWorld(horovod, met)
    if world.size != launch.size:
        fewer = UserError(
            f"{launch.launcher} started {launch.size} processes, but Horovod sees {world.size}",
            "with HOROVOD_CONTROLLER=mpi the processes meet through MPI",
            "unset it to let them meet without MPI",
        )
        raise error_of_all(launch.rank, fewer)
    return world


def _import_horovod(launch: Launch) -> Any:
    """Import Horovod for MXNet and choose its settings."""
    if has_mxnet():
        import_mxnet(detect())
    try:
        horovod = importlib.import_module("horovod.mxnet")
    except (ImportError, OSError) as error:
        raise UserError(
            f"this is process {launch.rank} of {launch.size} started by {launch.launcher}, "
            "but Horovod for MXNet is not installed",
            str(error),
            f"{horovod_internals.how_to_install(cuda.is_installed())}, or start one process without a launcher",
        ) from error
    if os.environ.get("HOROVOD_CONTROLLER") == "mpi" and not horovod.mpi_built():
        # Horovod itself would crash.
        remedy = "unset it to let the processes meet without MPI, or build Horovod with HOROVOD_WITH_MPI=1"
        raise UserError("HOROVOD_CONTROLLER is mpi, but Horovod was built without MPI", remedy=remedy)
    placed = detect()  # again: the rendezvous may have set the variables
    horovod_internals.choose_settings(has_gpu_driver(), placed.local_size < placed.size)
    return horovod


def _check_network() -> None:
    """Check interface and host name before Gloo does, which would end the process without an explanation."""
    interface = os.environ.get(INTERFACE)
    if not interface:
        return
    address, name = interface_address(interface), socket.gethostname()
    try:
        socket.gethostbyname(name)
    except OSError as error:
        raise UserError(
            f"the host {name} does not know its own address",
            f"its name does not resolve there: {error.strerror or error}",
            f"add a line to /etc/hosts of {name}: {address} {name}",
        ) from error


def error_of_all(rank: int, error: UserError) -> UserError:
    """Report an error that every process meets: return it on rank 0, and exit the others once it is printed.

    Args:
        rank: rank among the processes that meet the error, in the group or on the host.
    """
    if rank != 0:
        time.sleep(2)
        os._exit(error.code)
    return error
