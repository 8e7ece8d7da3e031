"""Train a classifier: `python -m crepe_dist.train`, or `horovodrun -np N python -m crepe_dist.train`.

``training/session.py`` opens data and folder, and ``training/recipe.py`` trains.
"""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

from crepe_dist import command, extras

if __name__ == "__main__":
    command.end_on_signals()
    gc.disable()  # imports leave no garbage, and looking for it takes a fifth of their time

from crepe_dist.distributed.control import Control
from crepe_dist.distributed.join import join
from crepe_dist.settings.config import Config, parse, parse_all, print_help

if TYPE_CHECKING:
    from crepe_dist.distributed.world import World
    from crepe_dist.runs.run_folder import Result
    from crepe_dist.training.run import Pages


def main() -> None:
    print_help(sys.argv[1:])  # before ``join``, which imports MXNet for several processes
    if any(word.partition("=")[0] == "--on" for word in sys.argv[1:]):
        config, cluster = parse_all(sys.argv[1:])
        if cluster is not None:
            from crepe_dist.clusters.ray import on_ray

            on_ray(config, cluster.processes, cluster.max_restarts)
        return
    with Control() as control, join() as world:
        config = world.agree("settings", lambda: parse(sys.argv[1:]), same=lambda config: config.to_dict())
        _train(config, world, control)


def train(config: Config) -> Result:
    """Train as ``config`` says, in this process or as one of many; resume an unfinished run, report a finished one.

    Raises:
        UserError: a problem that the caller can fix.
        Stopped: SIGTERM or SIGINT arrived; everything is saved.
    """
    with Control() as control, join() as world:
        return _train(config, world, control)


def _train(config: Config, world: World, control: Control) -> Result:
    # Imported after `join` has sent away a process that cannot train.
    from crepe_dist.training import session

    gc.freeze()  # a collection takes 60 ms with all the modules, else 1 ms
    if __name__ == "__main__":
        gc.enable()
    return session.train(config, world, control, _pages(config, world))


def _pages(config: Config, world: World) -> Pages:
    """Return the functions that draw reports; none where rank 0 lacks their libraries, which it says."""
    from crepe_dist.training.run import Pages

    left_out = world.broadcast(extras.left_out("reports", "report and no TensorBoard events"), "reports")
    if left_out:
        if world.is_root and (config.logging.report or config.logging.tensorboard):
            print(f"note: {left_out}", flush=True)
        return Pages()
    from crepe_dist.reports import data_page, run_page

    return Pages(data_page.page, run_page.write_for)


if __name__ == "__main__":
    again = "the same command" + " without --fresh" * ("--fresh" in sys.argv)
    command.run(main, f"interrupted; {again} resumes from the last saved state, if there is one")
