"""Creation of the process group for the processes that a launcher has started. A single process imports no backend."""

import importlib.util
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from crepe_dist import extras, network_registry
from crepe_dist.cuda import driver, nccl
from crepe_dist.distributed import mxnet_cuda, rendezvous
from crepe_dist.distributed.launch import (
    HOROVODRUN,
    MPI,
    OPEN_MPI,
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
    """Create the process group for the processes of the launcher, and set the number of threads of this process.

    The backend is Horovod under ``horovodrun``, mpi4py under ``mpiexec`` if mpi4py is installed for the MPI of
    ``mpiexec``, and TCP otherwise.

    Args:
        load_config: Function that loads the configuration of the training run. Its ``UserError`` is ignored here.

    Raises:
        UserError: A required package is missing or cannot be loaded, the backend reports another world size than the
            launcher, or other ranks do not arrive.
    """
    launch = read_launcher_env()
    try:
        group = _create_group(launch, load_config)
        if group.size != launch.size:
            what = f"{launch.launcher} started {launch.size} processes, but {group.backend} sees {group.size}"
            remedy = (
                "use mpiexec and mpi4py of the same environment" if group.backend == "MPI" else "run the command again"
            )
            raise UserError(what, remedy=remedy, on_all_ranks=True)
        group.run_on_all("number of threads", lambda: set_omp_threads(group.processes_per_cpuset))
    except UserError as error:
        if error.on_all_ranks and launch.rank != 0:
            # Every process has the same error, and only rank 0 prints it. Wait until rank 0 has done so, because the
            # launcher kills the other processes as soon as one process ends.
            time.sleep(2)
            os._exit(error.code)
        raise error from None
    return group


def _create_group(launch: LauncherEnv, load_config: Callable[[], Config] | None) -> ProcessGroup:
    if launch.size == 1:
        require_complete_rank_env(launch)
        return ProcessGroup()
    if launch.launcher == HOROVODRUN:
        return _create_horovod_group(launch, load_config)
    if launch.launcher in MPI and importlib.util.find_spec("mpi4py") is not None:
        try:
            from crepe_dist.distributed.mpi_group import VENDOR, MpiProcessGroup
        except (ImportError, OSError, RuntimeError) as error:
            remedy = f"install MPI for mpi4py: {extras.install_command('mpi')}"
            raise UserError("mpi4py cannot be loaded", str(error), remedy, on_all_ranks=True) from error
        if (note := _mpi_mismatch_note(launch.launcher, VENDOR)) is None:
            return MpiProcessGroup()
        if launch.rank == 0:
            print(note, file=sys.stderr, flush=True)
    from crepe_dist.distributed.tcp_group import TcpProcessGroup

    return TcpProcessGroup(launch.rank, rendezvous.rendezvous(launch))


def _mpi_mismatch_note(launcher: str, vendor: str) -> str | None:
    """Return a note if the library of mpi4py cannot join the processes of the launcher, or ``None`` if it can.

    MPICH and the libraries that derive from it understand each other's launchers, but not Open MPI's launcher.
    """
    if (launcher == OPEN_MPI) == (vendor == OPEN_MPI):
        return None
    return (
        f"note: mpi4py uses {vendor}, but {launcher} started the processes, so they communicate over TCP\n"
        f"  do:  for MPI, start with mpiexec of {vendor}, or build mpi4py for {launcher}: "
        "pip install --no-binary mpi4py mpi4py"
    )


def _create_horovod_group(launch: LauncherEnv, load_config: Callable[[], Config] | None) -> ProcessGroup:
    try:
        if has_mxnet():
            import_mxnet()
        # This module imports MXNet. It is imported here because `import_mxnet` must first set the number of threads.
        from crepe_dist.distributed.horovod_group import HorovodProcessGroup
    except (ImportError, OSError) as error:
        raise UserError(
            f"this is process {launch.rank} of {launch.size} started by {launch.launcher}, "
            "but Horovod for MXNet is not installed",
            str(error),
            "install it (`uv sync --inexact --group horovod` on Python 3.11; docs/install.md), "
            "or start with crepe supervise",
            on_all_ranks=True,
        ) from error
    _check_hostname()
    config = None
    with suppress(UserError):  # The error is reported later, by all ranks together.
        config = load_config and load_config()
    os.environ.setdefault("HOROVOD_CYCLE_TIME", horovod_cycle_time(launch, config))
    return HorovodProcessGroup()


def horovod_cycle_time(launch: LauncherEnv, config: Config | None) -> str:
    """Return the interval between two polls of Horovod's background thread, in milliseconds.

    Horovod's default is 1 ms. On CPUs, polling at this interval uses 5 % of a core. The cost is worthwhile only if
    Horovod sums the gradients. The interval is therefore 10 ms if shared memory or NCCL sums the gradients. If MXNet
    computes the gradients on GPUs, the last gradients of each step wait for half an interval on average, so the
    interval is 0.2 ms.
    """
    uses_gpus = config is not None and config.device != "cpu" and driver.gpu_count() > 0
    if (
        config
        and uses_gpus
        and mxnet_cuda.is_installed()
        and network_registry.has_network_module(config.model.network, "gluon")
    ):
        return "0.2"
    return "10" if (nccl.version() if uses_gpus else launch.local_size == launch.size) else "1"


def _check_hostname() -> None:
    """Check that this host's name resolves. Otherwise Gloo would end the process without an explanation."""
    name = socket.gethostname()
    try:
        socket.gethostbyname(name)
    except OSError as error:
        raise UserError(
            f"the host {name} cannot resolve its own name",
            f"name resolution on {name} reports: {error.strerror or error}",
            f"add a line to /etc/hosts of {name}: <its address> {name}",
        ) from error
