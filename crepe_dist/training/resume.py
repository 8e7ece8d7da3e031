"""Saved state of a run, and its restoration in a resumed one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from crepe_dist.distributed.collectives import once
from crepe_dist.distributed.gradients import Trainer
from crepe_dist.distributed.table import moved_on
from crepe_dist.distributed.world import World
from crepe_dist.engines import block
from crepe_dist.engines.engine import Engine
from crepe_dist.mxnet_internals import structural_parameters, trainer_parameters
from crepe_dist.runs import checkpoint, state
from crepe_dist.runs.best_epoch import EpochChoice
from crepe_dist.runs.metrics import Metrics
from crepe_dist.runs.run_folder import RunFolder
from crepe_dist.runs.state import Arrays, Found, Progress, Snapshot
from crepe_dist.training import optimizer_state
from crepe_dist.training.display import Display
from crepe_dist.training.loss_scale import LossScale
from crepe_dist.version import __version__
from crepe_dist.wording import nth


@dataclass(frozen=True)
class RunState:
    """Everything that a resumed run needs: parameters, optimizer state, loss scale and position.

    Args:
        engine: the network on this rank's device.
        trainer: the trainer.
        scale: the loss scale.
        progress: the position, overwritten by ``restore``.
    """

    engine: Engine
    trainer: Trainer
    scale: LossScale
    progress: Progress

    def snapshot(self) -> Snapshot:
        """Copy the current state."""
        self.trainer.publish()
        plan, quanta = self.engine.plan, self.trainer.sums.state() if self.trainer.sums else []
        progress = replace(
            self.progress.copy(),
            precision=plan.precision,
            kernels=plan.build,
            loss_scale=self.scale.state(),
            quanta=quanta,
        )
        optimizer = {**optimizer_state.optimizer_arrays(self.trainer.gluon), **self.trainer.table_arrays()}
        return Snapshot(progress, block.values(self.engine.network), optimizer)

    def restore(self, snapshot: Snapshot) -> None:
        """Restore a snapshot, the same one on every rank."""
        optimizer_state.check_numbers(snapshot.optimizer)
        values, optimizer = self._without_tables(snapshot.parameters, snapshot.optimizer)
        block.set_values(self.engine.network, values)
        optimizer = self.trainer.restore_tables(optimizer, optimizer_state.updates(optimizer))
        optimizer_state.set_optimizer_arrays(self.trainer.gluon, optimizer, self.engine.device)
        self.engine.refresh()
        self.progress.restore(snapshot.progress)
        self.scale.restore(snapshot.progress.loss_scale)
        if self.trainer.sums:
            self.trainer.sums.restore(snapshot.progress.quanta)

    def _without_tables(self, values: Arrays, optimizer: Arrays) -> tuple[Arrays, Arrays]:
        """Convert the state of parameters that were trained row by row, and no longer are."""
        network, values, kept = self.engine.network, dict(values), {table.index for table in self.trainer.tables}
        names = {each: name for name, each in structural_parameters(network).items()}
        for index, name in enumerate(names[each] for each in trainer_parameters(self.trainer.gluon)):
            if index not in kept and f"{index}.updated" in optimizer and name in values:
                values[name], optimizer = moved_on(values[name], optimizer, index, self.trainer.gluon.optimizer)
        return values, optimizer


def resume(
    run: RunState, choice: EpochChoice, folder: RunFolder, world: World, metrics: Metrics, display: Display
) -> Found | None:
    """Restore the newest saved state, if there is one, on every rank.

    Returns:
        The restored state, or ``None`` for a new run.

    Raises:
        UserError: on every rank, if no saved state can be used, or the checkpoint of the best epoch so far is gone.
    """
    found: Found | None = world.agree(
        "saved state",
        lambda: state.load_newest(folder.state, choice.epochs),
        same=lambda found: found and found.path.name,
    )
    metrics.resume(found.snapshot.progress if found else run.progress)
    if found is None:
        return None
    run.restore(found.snapshot)
    progress = run.progress
    if progress.epochs:
        best = choice.reported(progress)["checkpoint"]
        world.on_root("best checkpoint", once(lambda: checkpoint.check_present(folder.path, best)))
    for each in found.damaged:
        display.say(f"skipped a damaged state: {each}")
    display.say(f"resuming from step {progress.step}, epoch {nth(progress.epoch)}, saved in {found.path}")
    if found.version not in ("", __version__):
        display.say(f"the state was saved by crepe_dist {found.version}; version {__version__} continues the run")
    plan = run.engine.plan
    if progress.precision not in ("", plan.precision):
        display.say(f"the precision changes from {progress.precision} to {plan.precision}")
    if progress.kernels not in ("", plan.build):
        display.say(f"the kernels change from {progress.kernels} to {plan.build}, which may compute other bits")
    return found
