"""Commands `train` and `supervise`. `python -m crepe_dist.train` also runs the command `train`.

``training/job.py`` opens the data and the directory of the run, and ``training/train_loop.py`` trains.
"""

import gc
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from crepe_dist import command_runner, invocation

if __name__ == "__main__":
    command_runner.end_on_signals()

from crepe_dist.distributed.endpoint import ADDRESS_ENV, PORT_ENV, Endpoint
from crepe_dist.distributed.handshake import LocalProcess, read_secret
from crepe_dist.distributed.init_process_group import init_process_group
from crepe_dist.distributed.launch import HOROVODRUN, LauncherEnv, read_launcher_env
from crepe_dist.distributed.signals import SignalHandler
from crepe_dist.errors import UserError
from crepe_dist.settings.config import Config, parse, parse_with_cluster, print_help
from crepe_dist.settings.fields import MAX_COUNT, NON_EMPTY, float_range, int_range, setting
from crepe_dist.settings.flags import Command
from crepe_dist.settings.options import SafetyOptions

if TYPE_CHECKING:
    from crepe_dist.distributed.process_group import ProcessGroup
    from crepe_dist.runs.result import Result

MAX_NODES = 1024  # Maximum number of nodes of ``supervise``.


def main() -> None:
    gc.disable()  # Imports create no garbage, but the collector would take a fifth of their time.
    print_help(sys.argv[1:])  # Before ``init_process_group``, which imports MXNet if there are several processes.
    if any(word.partition("=")[0] == "--on" for word in sys.argv[1:]):
        config, cluster = parse_with_cluster(sys.argv[1:])
        if cluster is not None:
            from crepe_dist.clusters.ray import on_ray

            _show_next(on_ray(config, **cluster))
        return
    with SignalHandler() as control, init_process_group(lambda: parse(sys.argv[1:])) as group:
        config = group.run_on_all("settings", lambda: parse(sys.argv[1:]), compare_by=asdict)
        result = _train(config, group, control)
        if group.is_root:
            _show_next(result)


def train(config: Config) -> "Result":
    """Train with these settings, in this process alone or as one process of a group.

    An unfinished run is resumed. If the run is already finished, its result is returned immediately.

    Raises:
        UserError: A problem that the user can fix.
        StopRequested: SIGTERM or SIGINT arrived. If the run had started, its state has been saved.
        KeyboardInterrupt: SIGINT arrived before the run started, or a second time.
    """
    with SignalHandler() as control, init_process_group(lambda: config) as group:
        return _train(config, group, control)


def _train(config: Config, group: "ProcessGroup", control: SignalHandler) -> "Result":
    # This import takes seconds. It comes after ``init_process_group``, which rejects a process that cannot train.
    from crepe_dist.training import job

    gc.freeze()  # Otherwise, each collection would traverse the objects of all modules (60 ms, not 1 ms).
    gc.enable()
    return job.run_training_job(config, group, control)


def _show_next(result: "Result") -> None:
    """Print commands that use the model, ready to paste into a shell."""
    from crepe_dist.training.display import ProgressDisplay

    run = shlex.quote(str(result.run_dir))
    ends = {"evaluate": "", "predict": ' --text "a text to classify"', "serve": ""}
    lines = [f"{invocation.command_line(name)} {run}{end}" for name, end in ends.items()]
    ProgressDisplay(is_root=True).print_lines(f"{'next' * (not row):<8}{line}" for row, line in enumerate(lines))


@dataclass
class Supervise(Command):
    """Train with several processes of one or several hosts, and restart them after a failure."""

    usage = """
        crepe supervise -np 4 --data data/reviews             train with four processes
        crepe supervise -np 2 --config configs/smoke.yaml     train with two processes on the sample
        crepe supervise -np 4 --nnodes 2 --node-rank 0 --master-addr node0 --data data/reviews
                                                              on the first of two nodes with four processes each

      On several nodes, run the same command on each node, with another --node-rank. CREPE_DIST_SECRET must be the same
      on all nodes. Node 0 prints the output of all processes. If a process fails, the processes of all nodes restart.

      All other flags are passed to train. After a failure, the processes restart from the newest saved state. On
      SIGTERM or Ctrl-C, they save their state and stop. Run the same command again to resume. See
      docs/how-to/many-hosts.md.

      exit codes: 0 done; 1 error in flags, data or installation; 78 such an error on some hosts only; 75 stopped and
      saved; 130 interrupted; otherwise the exit code of the failed process
      """

    processes: int = setting(1, "Number of processes of each node.", int_range(1, 1024), "-np")
    nnodes: int | None = setting(
        None,
        "Number of nodes. Default: PET_NNODES, WORLD_SIZE or the launcher's number, otherwise 1.",
        int_range(1, MAX_NODES),
    )
    node_rank: int | None = setting(
        None,
        "Rank of this node, from 0. Default: PET_NODE_RANK, RANK, the launcher's rank, or JOB_COMPLETION_INDEX.",
        int_range(0, MAX_NODES - 1),
    )
    master_addr: str | None = setting(
        None, "Name or address of node 0, which all nodes can reach. Default: MASTER_ADDR.", NON_EMPTY
    )
    master_port: int | None = setting(
        None, "Port of node 0. Default: MASTER_PORT, otherwise 29500.", int_range(1, 65535)
    )
    node_timeout: float = setting(
        120.0,
        "Seconds to wait for a lost node, before training continues without it. A node that returns later takes part "
        "again.",
        float_range(0, 1e6),
    )
    max_restarts: int = setting(
        10, "Maximum number of restarts after failures. Preemptions do not count.", int_range(0, MAX_COUNT)
    )
    grace: float = setting(30.0, "Seconds that a process has to stop before it is killed.", float_range(0, 1e6))
    worker: Sequence[str] = ()  # arguments of Python
    limit: float = SafetyOptions.watchdog_s

    @classmethod
    def parsed(cls, words: Any = None) -> Any:
        values, rest = cls.parser().parse_known_args(words)
        config = parse(rest)  # An error in the flags of train is reported here, before any process starts.
        return cls(**vars(values), worker=["-m", "crepe_dist.train", *rest], limit=config.safety.watchdog_s)

    def run(self) -> None:
        from crepe_dist.elastic.cluster import Cluster
        from crepe_dist.elastic.driver import ElasticDriver

        rank, size = self._read_node()
        os.environ[invocation.PROGRAM_ENV] = invocation.program_name("").rstrip()  # Rank 0 prints commands to type.
        with SignalHandler() as control:
            cluster = Cluster()
            if size > 1:
                from crepe_dist.elastic.nodes import NodeCluster, NodeSupervisor

                endpoint = self._read_endpoint(rank, size)
                own = LocalProcess(rank, size, read_secret(os.environ), "node")
                if rank > 0:
                    NodeSupervisor(endpoint, own, self.processes, self.worker, control, self.grace).run()
                    return
                cluster = NodeCluster(endpoint, own, self.processes, self.node_timeout)
            with control.defer(), cluster:
                processes = self.processes * size
                ElasticDriver(cluster, self.worker, processes, self.max_restarts, control, self.limit, self.grace).run()

    def _read_node(self) -> tuple[int, int]:
        """Return the rank of this node, and the number of nodes."""
        launch = read_launcher_env()
        if launch.launcher == HOROVODRUN:  # A command that a process of horovodrun runs is no node of its job.
            launch = LauncherEnv()
        size = self.nnodes or _read_count("PET_NNODES") or launch.size
        ranks = self.node_rank, _read_count("PET_NODE_RANK"), launch.rank if launch.launcher else None
        rank = next((rank for rank in (*ranks, _read_count("JOB_COMPLETION_INDEX")) if rank is not None), size)
        if size > 1 and rank >= size:
            raise UserError(
                f"this is one of {size} nodes, and its rank is not a number below {size}",
                remedy="pass --node-rank R on each node, from 0; or, for a job on this host only, --nnodes 1",
            )
        return rank if size > 1 else 0, size

    def _read_endpoint(self, rank: int, size: int) -> Endpoint:
        """Return the address of node 0 from the flags or the environment."""
        environment = dict(os.environ)
        for name, value in ((ADDRESS_ENV, self.master_addr), (PORT_ENV, self.master_port)):
            environment[name] = str(value or os.environ.get(name) or os.environ.get(f"PET_{name}", ""))
        if not environment[ADDRESS_ENV]:
            raise UserError(
                f"this is node {rank} of {size}, and {ADDRESS_ENV} is not set",
                "the supervisors of all nodes connect to the supervisor of node 0",
                "pass --master-addr HOST on each node; or, for a job on this host only, --nnodes 1",
            )
        return Endpoint.from_environment(LauncherEnv("supervise", rank, size), environment)


def _read_count(name: str) -> int | None:
    """Return the value of an environment variable if it is an integer from 0 to 9999."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() and len(value) <= 4 else None
