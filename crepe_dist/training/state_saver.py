"""Schedule of state saves, and a thread that writes them while training continues."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from crepe_dist.distributed.collectives import Collectives
from crepe_dist.runs import state
from crepe_dist.runs.state import Found, Snapshot
from crepe_dist.settings.config import Config
from crepe_dist.settings.training_options import CheckpointOptions
from crepe_dist.training.resume import RunState


class Saver:
    """Saves nothing: the ranks beside rank 0.

    Attributes:
        durable_step: step of the newest state on the disk.
        seconds: time that writing the last state took; 0 if none was written yet.
    """

    durable_step: int | None = None
    seconds = 0.0

    def due(self, step: int) -> bool:
        """Return whether the state after ``step`` is to be saved; waits where too much would be unsaved otherwise."""
        return False

    def save(self, snapshot: Snapshot) -> None:
        """Start to write a snapshot, which must not change any more."""

    def wait(self, step: int = 0, patience: float = math.inf) -> bool:
        """Wait until nothing is being written, for at most ``patience`` seconds; return whether nothing is."""
        return True

    def postpone(self, step: int) -> None:
        """Give up the state after ``step``, and do not try again at once."""

    def close(self) -> None:
        """Wait until everything is written, and end the thread."""


class StateSaver(Saver):
    """Saves on rank 0, so that at most ``options.every`` steps, or about ``options.every_s`` seconds, are unsaved.

    Writing starts some steps before the limit, as many as it took the last time, so that training need not wait; if
    the state is late all the same, training waits.

    Args:
        folder: folder of the states.
        say: called with a message about a state that could not be written.
        beat: called while the saver waits.
        patience: seconds that training waits for a late state before it continues with a warning.
        good: the state that the run resumes from.
        step: of that state.
    """

    def __init__(
        self,
        folder: Path,
        options: CheckpointOptions,
        say: Callable[[str], None],
        beat: Callable[[], None] = lambda: None,
        patience: float = math.inf,
        good: Path | None = None,
        step: int = 0,
    ) -> None:
        self._folder = folder
        self._every = options.every
        self._every_s = options.every_s
        self._say = say
        self._beat = beat
        self._patience = patience
        self._good = good
        self.durable_step: int = step
        self._saved = (step, time.monotonic())  # step and time of the newest state on the disk, or of a failed try
        self._writing: tuple[Future[Path], Snapshot, float] | None = None
        self._slow = False
        self._lead = (0, 0.0)  # steps and seconds that writing took the last time
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saver")

    def due(self, step: int) -> bool:
        now = time.monotonic()
        self._settle(step)
        if self._writing is not None:
            if step - self._saved[0] < self._every and now - self._saved[1] < self._every_s:
                return False
            if not self.wait(step, self._patience):
                return False
        (saved_step, saved_at), (steps, seconds) = self._saved, self._lead
        enough_steps = step - saved_step >= self._every - min(steps, self._every // 2)
        return enough_steps or now - saved_at >= self._every_s - min(seconds, self._every_s / 2)

    def save(self, snapshot: Snapshot) -> None:
        if not self.wait(snapshot.progress.step, self._patience):
            return
        future = self._pool.submit(state.save, self._folder, snapshot, self._good)
        self._writing = (future, snapshot, time.monotonic())

    def wait(self, step: int = 0, patience: float = math.inf) -> bool:
        due = time.monotonic() + patience
        while self._writing is not None and not self._writing[0].done():
            left = due - time.monotonic()
            if left <= 0:
                if not self._slow:
                    self._slow = True
                    self._say(f"writing a state takes over {patience:.0f} s: a kill may lose more steps than promised")
                return False
            futures.wait([self._writing[0]], min(left, 1.0))
            self._beat()
        self._settle(step)
        return True

    def postpone(self, step: int) -> None:
        self._saved = (step, time.monotonic())

    def close(self) -> None:
        self.wait()
        self._pool.shutdown()

    def _settle(self, step: int) -> None:
        """Record a state that has been written, or could not be."""
        if self._writing is None or not self._writing[0].done():
            return
        future, snapshot, began = self._writing
        self._writing = None
        now = time.monotonic()
        error = future.exception()
        if error is None:
            self._good = future.result()
            self.durable_step = snapshot.progress.step
            self._saved = (self.durable_step, began)
            self._lead = (max(0, step - self.durable_step), now - began)
            self.seconds = now - began
            return
        if not isinstance(error, OSError):
            raise error
        self.postpone(step)
        newest = f"the newest state is {self._good}" if self._good else "there is no saved state yet"
        self._say(f"the state of step {snapshot.progress.step} could not be saved: {error}; {newest}")


def open_saver(
    folder: Path,
    config: Config,
    run: RunState,
    found: Found | None,
    ranks: Collectives,
    say: Callable[[str], None],
) -> Saver:
    """Make the saver of this rank; a new run is saved at once, so that there is always a state to resume from.

    Args:
        found: the state that the run was resumed from.
    """
    if not ranks.is_root:
        return Saver()
    good, step = (found.path, found.snapshot.progress.step) if found else (None, run.progress.step)
    saver = StateSaver(folder, config.checkpoint, say, ranks.beat, config.safety.watchdog_s / 4, good, step)
    if found is None:
        saver.save(run.snapshot())
    return saver
