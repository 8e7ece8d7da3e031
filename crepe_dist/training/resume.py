"""Saved state of a run, and its restoration in a resumed one."""

from __future__ import annotations

from dataclasses import replace

from crepe_dist.distributed.world import once
from crepe_dist.runs import checkpoint, state
from crepe_dist.runs.state import Found, Progress, Snapshot
from crepe_dist.training.run import Run
from crepe_dist.training.step import TrainingStep
from crepe_dist.version import __version__


def snapshot(step: TrainingStep, progress: Progress) -> Snapshot:
    """Copy everything that a resumed run needs: parameters, optimizer state, loss scale and position."""
    step.exchange.publish()
    plan = step.engine.plan
    copied = replace(progress.copy(), precision=plan.precision, kernels=plan.build, loss_scale=step.scale.state())
    parameters = {name: array.copy() for name, array in step.engine.values().items()}
    return Snapshot(copied, parameters, step.exchange.arrays())


def restore(saved: Snapshot, step: TrainingStep, progress: Progress) -> None:
    """Restore a snapshot, the same one on every rank.

    Args:
        progress: the position, which is overwritten.
    """
    step.engine.set_values(saved.parameters)
    step.exchange.restore(saved.optimizer)
    step.engine.refresh()
    progress.restore(saved.progress)
    step.scale.restore(saved.progress.loss_scale)


def resume(run: Run) -> Found | None:
    """Restore the newest saved state, if there is one, on every rank.

    Returns:
        The restored state, or ``None`` for a new run.

    Raises:
        UserError: on every rank, if no saved state can be used, or the checkpoint of the best epoch so far is gone.
    """
    world, folder, display, progress, choice = run.world, run.folder, run.display, run.progress, run.choice
    newest: Found | None = world.agree(
        "saved state",
        lambda: state.load_newest(folder.state),
        same=lambda state: state and state.path.name,
    )
    run.metrics.resume(newest.snapshot.progress if newest else progress)
    if newest is None:
        return None
    restore(newest.snapshot, run.step, progress)
    if progress.epochs:
        best = choice.reported(progress)["checkpoint"]
        world.on_root("best checkpoint", once(lambda: checkpoint.check_present(folder.path, best)))
    for damage in newest.damaged:
        display.say(f"skipped a damaged state: {damage}")
    display.say(f"resuming from step {progress.step}, epoch {progress.epoch}, saved in {newest.path}")
    if newest.version not in ("", __version__):
        display.say(f"the state was saved by crepe_dist {newest.version}; version {__version__} continues the run")
    plan = run.engine.plan
    if progress.precision not in ("", plan.precision):
        display.say(f"the precision changes from {progress.precision} to {plan.precision}")
    if progress.kernels not in ("", plan.build):
        display.say(f"the kernels change from {progress.kernels} to {plan.build}, which may compute other bits")
    return newest
