"""Saved state of a run, and its restoration in a resumed one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from crepe_dist.distributed.collectives import once
from crepe_dist.distributed.world import World
from crepe_dist.engines.engine import Engine
from crepe_dist.exchange.exchange import Exchange
from crepe_dist.runs import checkpoint, state
from crepe_dist.runs.best_epoch import EpochChoice
from crepe_dist.runs.metrics import Metrics
from crepe_dist.runs.run_folder import RunFolder
from crepe_dist.runs.state import Found, Progress, Snapshot
from crepe_dist.training.display import Display
from crepe_dist.training.step import LossScale
from crepe_dist.version import __version__
from crepe_dist.wording import nth


@dataclass(frozen=True)
class RunState:
    """Everything that a resumed run needs: parameters, optimizer state, loss scale and position.

    Args:
        progress: the position, overwritten by ``restore``.
    """

    engine: Engine
    exchange: Exchange
    scale: LossScale
    progress: Progress

    def snapshot(self) -> Snapshot:
        """Copy the current state."""
        self.exchange.publish()
        plan = self.engine.plan
        progress = replace(
            self.progress.copy(), precision=plan.precision, kernels=plan.build, loss_scale=self.scale.state()
        )
        parameters = {name: array.copy() for name, array in self.engine.values().items()}
        return Snapshot(progress, parameters, self.exchange.arrays())

    def restore(self, snapshot: Snapshot) -> None:
        """Restore a snapshot, the same one on every rank."""
        self.engine.set_values(snapshot.parameters)
        self.exchange.restore(snapshot.optimizer)
        self.engine.refresh()
        self.progress.restore(snapshot.progress)
        self.scale.restore(snapshot.progress.loss_scale)


def resume(
    run: RunState, choice: EpochChoice, folder: RunFolder, world: World, metrics: Metrics, display: Display
) -> Found | None:
    """Restore the newest saved state, if there is one, on every rank.

    Returns:
        The restored state, or ``None`` for a new run.

    Raises:
        UserError: on every rank, if no saved state can be used, or the checkpoint of the best epoch so far is gone.
    """
    newest: Found | None = world.agree(
        "saved state",
        lambda: state.load_newest(folder.state, choice.epochs),
        same=lambda state: state and state.path.name,
    )
    metrics.resume(newest.snapshot.progress if newest else run.progress)
    if newest is None:
        return None
    run.restore(newest.snapshot)
    progress = run.progress
    if progress.epochs:
        best = choice.reported(progress)["checkpoint"]
        world.on_root("best checkpoint", once(lambda: checkpoint.check_present(folder.path, best)))
    for damage in newest.damaged:
        display.say(f"skipped a damaged state: {damage}")
    display.say(f"resuming from step {progress.step}, epoch {nth(progress.epoch)}, saved in {newest.path}")
    if newest.version not in ("", __version__):
        display.say(f"the state was saved by crepe_dist {newest.version}; version {__version__} continues the run")
    plan = run.engine.plan
    if progress.precision not in ("", plan.precision):
        display.say(f"the precision changes from {progress.precision} to {plan.precision}")
    if progress.kernels not in ("", plan.build):
        display.say(f"the kernels change from {progress.kernels} to {plan.build}, which may compute other bits")
    return newest
