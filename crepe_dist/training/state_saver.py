"""Saved state of a run: its restoration in a resumed run, and a thread that writes it while training continues."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from crepe_dist.runs import checkpoint, resume_state
from crepe_dist.runs.resume_state import LoadedState, ResumeState
from crepe_dist.settings.options import StateOptions
from crepe_dist.training.context import TrainContext
from crepe_dist.version import __version__


def capture_state(context: TrainContext) -> ResumeState | None:
    """Copy everything that a resumed run needs: parameters, optimizer state, loss scale and position.

    Returns:
        The copy on rank 0, ``None`` on the others; every rank calls it.
    """
    arrays = context.optimizer.state_dict()
    if not context.group.is_root:
        return None
    engine, backend = context.engine, context.engine.backend
    scale = engine.grad_scaler.state_dict()
    copied = replace(context.progress.copy(), precision=backend.precision, kernels=backend.build_name, loss_scale=scale)
    parameters = {
        name: arrays.pop(name) if name in arrays else array.copy() for name, array in engine.state_dict().items()
    }
    return ResumeState(copied, parameters, arrays)


def restore_state(saved: ResumeState, context: TrainContext) -> None:
    """Restore a snapshot, the same one on every rank."""
    context.engine.load_state_dict(saved.parameters)
    context.optimizer.load_state_dict(saved.optimizer)
    context.engine.load_weights()
    context.progress.restore(saved.progress)
    context.engine.grad_scaler.load_state_dict(saved.progress.loss_scale)


def restore_newest_state(context: TrainContext) -> LoadedState | None:
    """Restore the newest saved state, if there is one, on every rank.

    Returns:
        The restored state, or ``None`` for a new run.

    Raises:
        UserError: on every rank, if no saved state can be used, or the checkpoint of the best epoch so far is gone.
    """
    world, folder, display = context.group, context.run_dir, context.display
    progress, choice = context.progress, context.selection
    newest: LoadedState | None = world.run_on_all(
        "saved state",
        lambda: resume_state.load_newest(folder.state),
        compare_by=lambda state: state and state.path.name,
    )
    context.metrics.truncate_to(newest.state.progress if newest else progress)
    if newest is None:
        return None
    restore_state(newest.state, context)
    if progress.epochs and (best := choice.selected_epoch(progress).get("checkpoint")):
        world.run_on_rank0("best checkpoint", lambda: checkpoint.check_present(folder.path, best))
    for damage in newest.damaged:
        display.print(f"skipped a damaged state: {damage}")
    display.print(f"resuming from step {progress.step}, epoch {progress.epoch}, saved in {newest.path}")
    if newest.version not in ("", __version__):
        display.print(f"the state was saved by crepe_dist {newest.version}; version {__version__} continues the run")
    backend = context.engine.backend
    if progress.precision not in ("", backend.precision):
        display.print(f"the precision changes from {progress.precision} to {backend.precision}")
    if progress.kernels not in ("", backend.build_name):
        display.print(
            f"the kernels change from {progress.kernels} to {backend.build_name}, which may compute other bits"
        )
    return newest


class BackgroundStateSaver:
    """Saver of the state on rank 0: saves about every ``options.save_seconds`` seconds, by its own clock.

    A write starts ahead of the limit by as long as the last one took. Training does not wait for a write that takes
    longer than the limit; the next one starts when it ends. A limit of ``options.save_steps`` steps is strict: training
    waits rather than have more steps unsaved.

    Args:
        options: limits of unsaved training.
        say: called with a message about a state that could not be written.
        beat: called while the saver waits.
        patience: seconds that training waits for a late state before it continues with a warning.
        good: folder of the state that the run has resumed from.
        step: step of that state.
        is_root: false on the other ranks, where no save is ever due.

    Attributes:
        durable_step: step of the newest state on disk; ``None`` on ranks other than 0.
    """

    def __init__(
        self,
        folder: Path,
        options: StateOptions,
        say: Callable[[str], None],
        beat: Callable[[], None] = lambda: None,
        patience: float = math.inf,
        good: Path | None = None,
        step: int = 0,
        *,
        is_root: bool = True,
    ) -> None:
        self._folder = folder
        self._is_root = is_root
        self._save_steps = options.save_steps
        self._save_seconds = options.save_seconds
        self._say = say
        self._beat = beat
        self._patience = patience
        self._good = good
        self.last_saved_step = step if is_root else None
        self._saved = (step, time.monotonic())  # step and time of the newest state on disk, or of a failed save
        self._writing: tuple[Future[Path], ResumeState, float] | None = None
        self._slow = False
        self._lead = (0, 0.0)  # steps and seconds of the last write
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saver")

    @property
    def scored_epochs_on_disk(self) -> frozenset[int]:
        """Numbers of scored epochs of the states from which the run may resume."""
        writing = [len(self._writing[1].progress.epochs)] if self._writing else []  # read before the disk
        return frozenset([*writing, *resume_state.num_scored_epochs(self._folder)])

    def should_save(self, step: int) -> bool:
        """Return whether to save the state after ``step``; wait if an earlier save is late."""
        if not self._is_root:
            return False
        now = time.monotonic()
        self._settle(step)
        if self._writing is not None:
            if self._save_steps is None or step - self._saved[0] < self._save_steps:
                if now - self._writing[2] >= self._save_seconds:
                    self._warn(self._save_seconds)
                return False
            if not self.wait(step, self._patience):
                return False
        (saved_step, saved_at), (steps, seconds) = self._saved, self._lead
        if self._save_steps is not None and step - saved_step >= self._save_steps - min(steps, self._save_steps // 2):
            return True
        return now - saved_at >= self._save_seconds - min(seconds, self._save_seconds / 2)

    def save(self, state: ResumeState) -> None:
        """Start to write a snapshot, which must not be modified afterwards; only rank 0 calls it."""
        if not self.wait(state.progress.step, self._patience):
            return
        future = self._pool.submit(resume_state.save, self._folder, state, self._good)
        self._writing = (future, state, time.monotonic())

    def wait(self, step: int = 0, timeout: float = math.inf) -> bool:
        """Wait at most ``patience`` seconds for the current write; return whether it has ended."""
        due = time.monotonic() + timeout
        while self._writing is not None and not self._writing[0].done():
            left = due - time.monotonic()
            if left <= 0:
                self._warn(timeout)
                return False
            futures.wait([self._writing[0]], min(left, 1.0))
            self._beat()
        self._settle(step)
        return True

    def skip(self, step: int) -> None:
        """Skip the state after ``step``, and do not retry at once."""
        self._saved = (step, time.monotonic())

    def close(self) -> None:
        """Wait for the current write, and end the thread."""
        self.wait()
        self._pool.shutdown()

    def _warn(self, seconds: float) -> None:
        """Report once that a write is late."""
        if not self._slow:
            self._slow = True
            self._say(f"writing a state takes over {seconds:g} s: a kill may lose more work than it should")

    def _settle(self, step: int) -> None:
        """Record the outcome of a finished write."""
        if self._writing is None or not self._writing[0].done():
            return
        future, snapshot, began = self._writing
        self._writing = None
        now = time.monotonic()
        error = future.exception()
        if error is None:
            self._good = future.result()
            self.last_saved_step = snapshot.progress.step
            self._saved = (self.last_saved_step, began)
            self._lead = (max(0, step - self.last_saved_step), now - began)
            return
        if not isinstance(error, OSError):
            raise error
        self.skip(step)
        newest = f"the newest state is {self._good}" if self._good else "there is no saved state yet"
        self._say(f"the state of step {snapshot.progress.step} could not be saved: {error}; {newest}")


def open_saver(context: TrainContext, restored: LoadedState | None) -> BackgroundStateSaver:
    """Make the saver of this rank; save a new run at once, so that there is a state if the next one gets damaged.

    Args:
        restored: state that the run resumes from.
    """
    good, step = (restored.path, restored.state.progress.step) if restored else (None, context.progress.step)
    saver = BackgroundStateSaver(
        context.run_dir.state,
        context.config.state,
        context.display.print,
        context.group.heartbeat,
        context.config.safety.watchdog_s / 4,
        good,
        step,
        is_root=context.group.is_root,
    )
    if restored is None and (first := capture_state(context)):
        saver.save(first)
    return saver
