"""Saved state of a run, and its restoration in a resumed one."""

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
    """Everything that a resumed run needs: parameters, optimizer state, loss scale and position.

    Args:
        engine: the network on this rank's device.
        trainer: the Gluon trainer.
        scale: the loss scale.
        progress: the position, overwritten by ``restore``.
    """

    engine: Engine
    trainer: Any
    scale: LossScale
    progress: Progress

    def snapshot(self) -> Snapshot:
        """Copy the current state."""
        progress = replace(self.progress.copy(), precision=self.engine.plan.precision, loss_scale=self.scale.state())
        return Snapshot(progress, parameters.values(self.engine.network), state.optimizer_arrays(self.trainer))

    def restore(self, snapshot: Snapshot) -> None:
        """Restore a snapshot, the same one on every rank."""
        parameters.set_values(self.engine.network, snapshot.parameters)
        state.set_optimizer_arrays(self.trainer, snapshot.optimizer, self.engine.device)
        self.progress.restore(snapshot.progress)
        self.scale.restore(snapshot.progress.loss_scale)


def resume(run: RunState, folder: RunFolder, world: World, metrics: Metrics, display: Display) -> Found | None:
    """Restore the newest saved state, if there is one, on every rank.

    Returns:
        The restored state, or ``None`` for a new run.
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
