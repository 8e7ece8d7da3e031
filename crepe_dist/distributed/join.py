"""Join the group of processes that a launcher started. MXNet and Horovod are imported for several processes only."""

from __future__ import annotations

import importlib
import os
import socket
import time
from typing import Any

from crepe_dist.cuda import driver
from crepe_dist.distributed import cuda, horovod_internals, rendezvous
from crepe_dist.distributed.endpoint import INTERFACE, interface_address
from crepe_dist.distributed.launch import HOROVODRUN, Launch, detect, has_mxnet, import_mxnet, limit_threads
from crepe_dist.distributed.world import World
from crepe_dist.errors import UserError


def join() -> World:
    """Join the world that the launcher describes, and give this process its share of the host's threads.

    Raises:
        UserError: this is one of many processes, and Horovod is missing, or other ranks do not arrive.
    """
    launch = detect()
    try:
        met = rendezvous.meet(launch) if launch.size > 1 and launch.launcher != HOROVODRUN else None
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
        what = f"{launch.launcher} started {launch.size} processes, but Horovod sees {world.size}"
        raise error_of_all(launch.rank, UserError(what, remedy="run the same command again"))
    return world


def _import_horovod(launch: Launch) -> Any:
    """Import Horovod for MXNet, and choose how often it looks for work."""
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
    placed = detect()  # again: the rendezvous may have set the variables
    # How often Horovod's thread looks for work, in ms. On CPUs its default of 1 takes a twentieth of a core from the
    # computation, which is worth it only if gradients go through Horovod. On GPUs the host has cores to spare, and the
    # last gradients of each step wait half a cycle on average.
    cycle = "10" if placed.local_size == placed.size else "1"
    os.environ.setdefault("HOROVOD_CYCLE_TIME", cycle if driver.missing() else "0.2")
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
