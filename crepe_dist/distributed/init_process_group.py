"""Join the group of processes that a launcher started; what carries its collectives is imported for several only."""

from __future__ import annotations

import importlib.util
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from crepe_dist import extras, network_registry
from crepe_dist.cuda import driver, nccl
from crepe_dist.distributed import mxnet_cuda, rendezvous
from crepe_dist.distributed.launch import (
    HOROVODRUN,
    MPI,
    LauncherEnv,
    has_mxnet,
    import_mxnet,
    read_launcher_env,
    require_complete_rank_env,
    set_omp_threads,
)
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.errors import UserError
from crepe_dist.settings.config import Config


def init_process_group(load_config: Callable[[], Config] | None = None) -> ProcessGroup:
    """Join the world that the launcher describes, and give this process its share of the host's threads.

    Horovod carries the collectives under ``horovodrun``, mpi4py under ``mpiexec`` if it is installed, else TCP.

    Args:
        configured: returns the settings of a training, which need not be right.

    Raises:
        UserError: this is one of many processes, and what it needs is missing, or other ranks do not arrive.
    """
    launch = read_launcher_env()
    try:
        world = _create_group(launch, load_config)
        if world.size != launch.size:
            what = f"{launch.launcher} started {launch.size} processes, but {world.backend} sees {world.size}"
            remedy = "take mpiexec and mpi4py of one environment" if world.backend == "MPI" else "run the command again"
            raise UserError(what, remedy=remedy, on_all_ranks=True)
        world.run_on_all("number of threads", lambda: set_omp_threads(world.processes_per_cpuset))
    except UserError as error:
        if error.on_all_ranks and launch.rank != 0:
            time.sleep(2)  # until rank 0 has printed the error, which every process meets
            os._exit(error.code)
        raise error from None
    return world


def _create_group(launch: LauncherEnv, load_config: Callable[[], Config] | None) -> ProcessGroup:
    if launch.size == 1:
        require_complete_rank_env(launch)
        return ProcessGroup()
    if launch.launcher == HOROVODRUN:
        return _create_horovod_group(launch, load_config)
    if launch.launcher in MPI and importlib.util.find_spec("mpi4py") is not None:
        try:
            from crepe_dist.distributed.mpi_group import MpiProcessGroup
        except (ImportError, OSError, RuntimeError) as error:
            why, remedy = str(error), f"install MPI for it: {extras.install_command('mpi')}"
            raise UserError("mpi4py cannot be loaded", why, remedy, on_all_ranks=True) from error
        return MpiProcessGroup()
    from crepe_dist.distributed.tcp_group import TcpProcessGroup

    return TcpProcessGroup(launch.rank, rendezvous.rendezvous(launch))


def _create_horovod_group(launch: LauncherEnv, load_config: Callable[[], Config] | None) -> ProcessGroup:
    try:
        if has_mxnet():
            import_mxnet()
        # Not at the top: it imports MXNet, which must not happen before `import_mxnet` has set its number of threads.
        from crepe_dist.distributed.horovod_group import HorovodProcessGroup
    except (ImportError, OSError) as error:
        raise UserError(
            f"this is process {launch.rank} of {launch.size} started by {launch.launcher}, "
            "but Horovod for MXNet is not installed",
            str(error),
            "install it (`uv sync --inexact --group horovod` on Python 3.9 to 3.11; docs/install.md), "
            "or start with crepe supervise",
            on_all_ranks=True,
        ) from error
    _check_hostname()
    config = None
    with suppress(UserError):  # told later, when all ranks can
        config = load_config and load_config()
    os.environ.setdefault("HOROVOD_CYCLE_TIME", horovod_cycle_time(launch, config))
    return HorovodProcessGroup()


def horovod_cycle_time(launch: LauncherEnv, config: Config | None) -> str:
    """Return how often Horovod's thread shall look for work, in ms.

    On CPUs its default of 1 takes a twentieth of a core from the computation, which is worth it only if gradients go
    through Horovod. If MXNet computes them on GPUs, the last ones of each step wait half a cycle on average.
    """
    on_gpus = config is not None and config.device != "cpu" and driver.gpu_count() > 0
    if (
        config
        and on_gpus
        and mxnet_cuda.is_installed()
        and network_registry.has_network_module(config.model.network, "gluon")
    ):
        return "0.2"
    return "10" if (nccl.version() if on_gpus else launch.local_size == launch.size) else "1"


def _check_hostname() -> None:
    """Check this host's name before Gloo does, which would end the process without an explanation."""
    name = socket.gethostname()
    try:
        socket.gethostbyname(name)
    except OSError as error:
        raise UserError(
            f"the host {name} does not know its own address",
            f"its name does not resolve there: {error.strerror or error}",
            f"add a line to /etc/hosts of {name}: <its address> {name}",
        ) from error
