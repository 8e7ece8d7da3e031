"""Resuming a run: what is saved of it, and where it continues."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from crepe_dist.distributed.world import World
from crepe_dist.model import parameters
from crepe_dist.model.engine import Engine
from crepe_dist.runs import state
from crepe_dist.runs.metrics import Metrics
from crepe_dist.runs.run_folder import RunFolder
from crepe_dist.runs.state import Found, Progress, Snapshot
from crepe_dist.training.display import Display
from crepe_dist.training.loss_scale import LossScale


@dataclass(frozen=True)
class RunState:
    """Everything that a resumed run needs: parameters, optimiser and position.

    Args:
        trainer: the Gluon trainer.
        scale: of the loss.
        progress: filled in by ``restore``.
    """

    engine: Engine
    trainer: Any
    scale: LossScale
    progress: Progress

    def snapshot(self) -> Snapshot:
        progress = replace(self.progress.copy(), precision=self.engine.plan.precision, loss_scale=self.scale.state())
        return Snapshot(progress, parameters.values(self.engine.network), state.optimizer_arrays(self.trainer))

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot, the same on every rank."""
        parameters.set_values(self.engine.network, snapshot.parameters)
        state.set_optimizer_arrays(self.trainer, snapshot.optimizer, self.engine.device)
        self.progress.restore(snapshot.progress)
        self.scale.restore(snapshot.progress.loss_scale)


def resume(run: RunState, folder: RunFolder, world: World, metrics: Metrics, display: Display) -> Found | None:
    """Restore the newest saved state, if there is one; every rank reads the same.

    Returns:
        The state, ``None`` for a run that starts.
    """
    found: Found | None = world.agree(
        "saved state", lambda: state.load_newest(folder.state), same=lambda found: found and found.path.name
    )
    metrics.resume(found.snapshot.progress if found else run.progress)
    if found is None:
        return None
    run.restore(found.snapshot)
    progress = run.progress
    for each in found.damaged:
        display.say(f"skipped a damaged state: {each}")
    display.say(f"resuming from step {progress.step}, epoch {progress.epoch}, saved in {found.path}")
    precision = run.engine.plan.precision
    if progress.precision not in ("", precision):
        display.say(f"the precision changes from {progress.precision} to {precision}")
    return found
