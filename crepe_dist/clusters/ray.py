"""Training on a Ray cluster, with one actor per rank. A placement group packs the actors onto few nodes."""

import os
import re
from typing import Any

from crepe_dist import extras
from crepe_dist.distributed.launch import NUM_THREADS_ENV, default_num_threads
from crepe_dist.distributed.signals import SignalHandler
from crepe_dist.elastic.cluster import Cluster, NodeLostError, Slot
from crepe_dist.elastic.driver import ElasticDriver
from crepe_dist.elastic.process import SAME_VERSIONS_HINT, WorkerProcess
from crepe_dist.errors import UserError
from crepe_dist.runs.result import Result, read_result
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.settings.config import Config

PLACEMENT_TIMEOUT_S = 5.0  # Time limit in seconds for the allocation of a placement group.
# Environment variables that are passed to processes on other hosts. Variables that describe this host are not passed.
PASSED_VARIABLES = re.compile(
    "(LANG|LANGUAGE|TZ|TERM|NO_COLOR)$|LC_|PYTHON|OMP_|KMP_|GOMP_|MXNET_|DNNL_|OPENBLAS_|NPY_|HOROVOD_|NCCL_|CUDA_|"
    "NVIDIA_|CREPE_DIST_|MLFLOW_|COVERAGE_|COV_CORE_|SSL_CERT_"
)
# Without this setting, an actor kills its process when the driver has ended, before the process can save its state.
KEEP_CHILDREN = {"env_vars": {"RAY_kill_child_processes_on_worker_exit": "false"}}


def on_ray(config: Config, processes: int, max_restarts: int = 10) -> Result:
    """Train on a Ray cluster.

    If this program is already connected to a Ray cluster, that cluster is used. Otherwise, Ray determines the address
    of the cluster, for example from ``RAY_ADDRESS``. Each process takes ``OMP_NUM_THREADS`` CPUs, or one CPU if this
    variable is not set. If ``device`` is ``"gpu"``, each process also takes one GPU.

    Args:
        config: Configuration of the training run.
        processes: Maximum number of processes. Training starts with this number, and after the loss of a node it may
            continue with fewer processes.
        max_restarts: Maximum number of restarts after failures. Restarts after preemptions do not count.

    Returns:
        The result of the run.

    Raises:
        UserError: Training has failed, or there is a problem that the user can fix.
        StopRequested: SIGTERM or SIGINT has arrived. If training had started, the workers have saved its state.
    """
    extras.require("ray", "training on Ray")
    cluster = RayCluster(default_num_threads() if os.environ.get(NUM_THREADS_ENV) else 1, config.device == "gpu")
    with SignalHandler() as control, control.defer():
        limit = config.safety.watchdog_s
        group = ElasticDriver(cluster, config.to_arguments(), processes, max_restarts, control, limit).run()
    assert group.checkpoint is not None, "rank 0 names it"
    run = RunDir(group.checkpoint.parent.parent)
    if (result := read_result(run)) is None:
        raise UserError(
            f"the run is finished, but its folder {run.path} is not visible on this host",
            remedy="choose a --run-dir that all nodes and this host share",
        )
    return result


def connect() -> Any:
    """Connect to a Ray cluster, unless this program is already connected. Return the module ``ray``.

    Raises:
        UserError: There is no cluster, or the cluster has other versions of Ray or Python.
    """
    # Without this variable, Ray under `uv run` would also start its workers with `uv run`, in new environments.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    import ray

    if not ray.is_initialized():
        try:
            ray.init(address="auto", log_to_driver=False, logging_level="WARNING")
        except ConnectionError as error:
            raise UserError(
                "no Ray cluster answers",
                str(error).splitlines()[0],
                "start one: `ray start --head` here, and `ray start --address=<this host>:6379` on other hosts; or "
                "name one in RAY_ADDRESS; if the cluster has a token, copy its ~/.ray/auth_token, and set "
                "RAY_AUTH_MODE=token",
            ) from error
        except RuntimeError as error:  # The versions of Ray or Python differ, or this host does not have the token.
            why = " ".join(str(error).split()).rpartition("AuthenticationError: ")[2]
            token = "if the cluster has a token, copy its ~/.ray/auth_token, and set RAY_AUTH_MODE=token"
            remedy = f"{SAME_VERSIONS_HINT}; {token}"
            raise UserError("this Ray cluster cannot be used", why[:300], remedy) from error
    return ray


class RayCluster(Cluster):
    """Ray cluster that runs the process of each rank in an actor.

    Args:
        cpus: Number of CPUs per process.
        gpu: True if each process also takes a GPU.
    """

    name = "Ray"
    poll_seconds = 0.3
    answers_from_start = False  # Ray first starts the actor of the rank.

    def __init__(self, cpus: int, gpu: bool) -> None:
        self._ray = connect()
        self._bundle = {"CPU": float(cpus), **({"GPU": 1.0} if gpu else {})}
        self._group: Any = None
        self._processes = []

    def variables(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if PASSED_VARIABLES.match(name)}

    def free_slots(self) -> int:
        resources, needs = [node["Resources"] for node in self._ray.nodes() if node["Alive"]], self._bundle.items()
        return sum(min(int(node.get(kind, 0) // need) for kind, need in needs) for node in resources)

    def allocate(self, processes: int) -> list[Slot]:
        util = self._ray.util
        self._group = util.placement_group([self._bundle] * processes, strategy="PACK")
        if not self._group.wait(PLACEMENT_TIMEOUT_S):
            self.release()
            return []
        actor = self._ray.remote(WorkerProcess)
        options = {
            "num_cpus": self._bundle["CPU"],
            "num_gpus": self._bundle.get("GPU", 0),
            "runtime_env": KEEP_CHILDREN,
        }
        strategies = (
            util.scheduling_strategies.PlacementGroupSchedulingStrategy(self._group, bundle)
            for bundle in range(processes)
        )
        self._processes = [actor.options(scheduling_strategy=strategy, **options).remote() for strategy in strategies]
        hosts = {node["NodeID"]: node["NodeManagerAddress"] for node in self._ray.nodes()}
        nodes = util.placement_group_table(self._group)["bundles_to_node_id"]
        return [Slot(hosts[nodes[bundle]], int(self._bundle["CPU"])) for bundle in range(processes)]

    def call(self, rank: int, method: str, *arguments: Any) -> Any:
        return getattr(self._processes[rank], method).remote(*arguments)

    def get_result(self, handle: Any) -> Any:
        errors = self._ray.exceptions
        if not self._ray.wait([handle], timeout=0)[0]:
            return None
        try:
            return self._ray.get(handle)
        except errors.RayError as error:
            if "ModuleNotFoundError" in str(error) or not isinstance(error, errors.RayActorError):
                last = str(error).strip().splitlines()[-1]
                raise UserError("a node of the Ray cluster cannot run crepe_dist", last, SAME_VERSIONS_HINT) from error
            raise NodeLostError from error

    def release(self) -> None:
        if self._group is not None:
            self._ray.util.remove_placement_group(self._group)
            self._group, self._processes = None, []
