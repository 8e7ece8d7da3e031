"""Resume state of a run: functions that capture and restore it, and a background thread that writes it."""

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


def capture_state(context: TrainContext) -> ResumeState | None:
    """Copy everything that a resumed run needs: parameters, optimizer state, loss scale and position.

    Every rank calls this function, because the optimizer gathers its state from all ranks.

    Returns:
        The state on rank 0, and ``None`` on other ranks.
    """
    arrays = context.optimizer.state_dict()
    if not context.group.is_root:
        return None
    engine, backend = context.engine, context.engine.backend
    scale = engine.grad_scaler.state_dict()
    progress = replace(
        context.progress.copy(), precision=backend.precision, kernels=backend.build_name, loss_scale=scale
    )
    parameters = {
        name: arrays.pop(name) if name in arrays else array.copy() for name, array in engine.state_dict().items()
    }
    return ResumeState(progress, parameters, arrays)


def restore_state(saved: ResumeState, context: TrainContext) -> None:
    """Restore a saved state. Every rank must call this function, with the same state."""
    context.engine.load_state_dict(saved.parameters)
    context.optimizer.load_state_dict(saved.optimizer)
    context.engine.load_weights()
    context.progress.restore(saved.progress)
    context.engine.grad_scaler.load_state_dict(saved.progress.loss_scale)


def restore_newest_state(context: TrainContext) -> LoadedState | None:
    """Restore the newest saved state on every rank.

    Returns:
        The restored state, or ``None`` if the run has no saved state.

    Raises:
        UserError: All saved states are damaged, or the checkpoint of the selected epoch is missing. Every rank raises
            this error.
    """
    group, folder, display = context.group, context.run_dir, context.display
    progress, selection = context.progress, context.selection
    newest: LoadedState | None = group.run_on_all(
        "saved state",
        lambda: resume_state.load_newest(folder.state),
        compare_by=lambda state: state and state.path.name,
    )
    context.metrics.truncate_to(newest.state.progress if newest else progress)
    if newest is None:
        return None
    restore_state(newest.state, context)
    if progress.epochs and (best := selection.selected_epoch(progress).get("checkpoint")):
        group.run_on_rank0("best checkpoint", lambda: checkpoint.check_present(folder.path, best))
    for damage in newest.damaged:
        display.print(f"skipped a damaged state: {damage}")
    display.log(f"resuming from step {progress.step}, epoch {progress.epoch}, saved in {newest.path}")
    backend = context.engine.backend
    if progress.precision not in ("", backend.precision):
        display.print(f"the precision changes from {progress.precision} to {backend.precision}")
    if progress.kernels not in ("", backend.build_name):
        display.print(
            f"the kernels change from {progress.kernels} to {backend.build_name}, which may round differently"
        )
    return newest


class BackgroundStateSaver:
    """Saver that writes the state in a background thread of rank 0, while training continues.

    A save must finish at least every ``options.save_seconds`` seconds and, if ``options.save_steps`` is set, every
    ``options.save_steps`` steps. To meet these deadlines, a save is started early by the duration of the previous save,
    but by at most half of the interval.

    * The time limit is soft: training does not wait for a slow save. The next save starts after the slow save has
      finished.
    * The step limit is strict: training waits until the save has finished, for at most ``timeout`` seconds.

    Args:
        folder: Directory of the saved states.
        options: Time limit and step limit.
        say: Function that prints a message if a save is late or fails.
        beat: Function that sends a heartbeat to the watchdog. It is called about once a second while the saver waits.
        timeout: Maximum number of seconds that training waits for a late save. Training then continues with a warning.
        last_intact: Directory of the state that the run was resumed from; ``None`` for a new run.
        step: Step that the run starts from.
        is_root: Whether this is rank 0. On other ranks, a save is never due.

    Attributes:
        last_saved_step: Step of the newest state on disk. Before the first save, it is the step that the run started
            from. On ranks other than 0, it is ``None``.
    """

    def __init__(
        self,
        folder: Path,
        options: StateOptions,
        say: Callable[[str], None],
        beat: Callable[[], None] = lambda: None,
        timeout: float = math.inf,
        last_intact: Path | None = None,
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
        self._timeout = timeout
        self._last_intact = last_intact
        self.last_saved_step = step if is_root else None
        self._last_save = (step, time.monotonic())  # Step and time of the last save, even if it failed.
        # The save in progress: its future, its state and its start time.
        self._writing: tuple[Future[Path], ResumeState, float] | None = None
        self._has_warned = False
        self._duration = (0, 0.0)  # Duration of the last save, in steps and in seconds.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saver")

    @property
    def scored_epochs_on_disk(self) -> frozenset[int]:
        """Numbers of scored epochs of all states that the run may be resumed from, including the save in progress."""
        # The save in progress is checked before the disk. In the reverse order, a save that finishes in between would
        # be missed.
        writing = [len(self._writing[1].progress.epochs)] if self._writing else []
        return frozenset([*writing, *resume_state.num_scored_epochs(self._folder)])

    def should_save(self, step: int) -> bool:
        """Return whether a save is due after ``step``.

        If the step limit is reached while an earlier save is in progress, wait for that save first.
        """
        if not self._is_root:
            return False
        now = time.monotonic()
        self._settle(step)
        if self._writing is not None:
            if self._save_steps is None or step - self._last_save[0] < self._save_steps:
                if now - self._writing[2] >= self._save_seconds:
                    self._warn_slow(self._save_seconds)
                return False
            if not self.wait(step, self._timeout):
                return False
        (saved_step, saved_at), (steps, seconds) = self._last_save, self._duration
        if self._save_steps is not None and step - saved_step >= self._save_steps - min(steps, self._save_steps // 2):
            return True
        return now - saved_at >= self._save_seconds - min(seconds, self._save_seconds / 2)

    def save(self, state: ResumeState) -> None:
        """Start writing a state in the background. Only rank 0 may call this method. The caller must no longer modify
        the state.

        If an earlier save is still in progress after ``timeout`` seconds, the state is not saved.
        """
        if not self.wait(state.progress.step, self._timeout):
            return
        future = self._pool.submit(resume_state.save, self._folder, state, self._last_intact)
        self._writing = (future, state, time.monotonic())

    def wait(self, step: int = 0, timeout: float = math.inf) -> bool:
        """Wait up to ``timeout`` seconds for the save in progress. Return whether it has finished.

        Args:
            step: Current step of the training.
        """
        due = time.monotonic() + timeout
        while self._writing is not None and not self._writing[0].done():
            remaining = due - time.monotonic()
            if remaining <= 0:
                self._warn_slow(timeout)
                return False
            futures.wait([self._writing[0]], min(remaining, 1.0))
            self._beat()
        self._settle(step)
        return True

    def skip(self, step: int) -> None:
        """Skip the save after ``step``. The next save is due after the usual interval."""
        self._last_save = (step, time.monotonic())

    def close(self) -> None:
        """Wait for the save in progress, and stop the thread."""
        self.wait()
        self._pool.shutdown()

    def _warn_slow(self, seconds: float) -> None:
        """Warn that a save is late. The warning is printed only once."""
        if not self._has_warned:
            self._has_warned = True
            self._say(f"writing a state takes over {seconds:g} s: a kill may lose more work than it should")

    def _settle(self, step: int) -> None:
        """If the save in progress has finished, record its outcome."""
        if self._writing is None or not self._writing[0].done():
            return
        future, state, start = self._writing
        self._writing = None
        now = time.monotonic()
        error = future.exception()
        if error is None:
            self._last_intact = future.result()
            self.last_saved_step = state.progress.step
            self._last_save = (self.last_saved_step, start)
            self._duration = (max(0, step - self.last_saved_step), now - start)
            return
        if not isinstance(error, OSError):
            raise error
        self.skip(step)
        newest = f"the newest state is {self._last_intact}" if self._last_intact else "there is no saved state yet"
        self._say(f"the state of step {state.progress.step} could not be saved: {error}; {newest}")


def open_saver(context: TrainContext, restored: LoadedState | None) -> BackgroundStateSaver:
    """Create this rank's saver. Every rank must call this function.

    The initial state of a new run is saved immediately. If a later state is damaged, the run can be resumed from the
    initial state.

    Args:
        restored: State that the run was resumed from; ``None`` for a new run.
    """
    last_intact, step = (restored.path, restored.state.progress.step) if restored else (None, context.progress.step)
    saver = BackgroundStateSaver(
        context.run_dir.state,
        context.config.state,
        context.display.log,
        context.group.heartbeat,
        context.config.safety.watchdog_s / 4,
        last_intact,
        step,
        is_root=context.group.is_root,
    )
    if restored is None and (initial := capture_state(context)):
        saver.save(initial)
    return saver
