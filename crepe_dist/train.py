"""Commands `train` and `supervise`. `python -m crepe_dist.train` also runs the command `train`.

``training/job.py`` opens the data and the directory of the run, and ``training/train_loop.py`` trains.
"""

import gc
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from crepe_dist import command_runner, invocation

if __name__ == "__main__":
    command_runner.end_on_signals()

from crepe_dist.distributed.init_process_group import init_process_group
from crepe_dist.distributed.launch import TORCHRUN, read_launcher_env
from crepe_dist.distributed.signals import SignalHandler
from crepe_dist.errors import UserError
from crepe_dist.settings.config import Config, parse, parse_with_cluster, print_help
from crepe_dist.settings.fields import MAX_COUNT, float_range, int_range, setting
from crepe_dist.settings.flags import Command
from crepe_dist.settings.options import SafetyOptions

if TYPE_CHECKING:
    from crepe_dist.distributed.process_group import ProcessGroup
    from crepe_dist.runs.result import Result


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
    """Train with several processes of this host, and restart them after a failure."""

    usage = """
        crepe supervise -np 4 --data data/reviews             train with four processes
        crepe supervise -np 2 --config configs/smoke.yaml     train with two processes on the sample

      All other flags are passed to train. After a failure, the processes restart from the newest saved state. On
      SIGTERM or Ctrl-C, they save their state and stop. Run the same command again to resume. For more than one host,
      see docs/how-to/clusters.md.

      exit codes: 0 done; 1 error in flags, data or installation; 75 stopped and saved; 130 interrupted; otherwise the
      exit code of the failed process
      """

    processes: int = setting(1, "Number of processes.", int_range(1, 1024), "-np")
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
        from crepe_dist.elastic.driver import Cluster, ElasticDriver

        launch = read_launcher_env()
        if launch.launcher == TORCHRUN and launch.size > 1:
            raise UserError(
                f"RANK and WORLD_SIZE are set: this is process {launch.rank} of {launch.size}",
                "supervise starts all processes of a job on one host, so each of these processes would start a job of "
                "its own",
                f"run {invocation.command_line('train')} instead, or unset RANK and WORLD_SIZE",
            )
        with SignalHandler() as control, control.defer():
            cluster = Cluster()
            ElasticDriver(
                cluster, self.worker, self.processes, self.max_restarts, control, self.limit, self.grace
            ).run()
