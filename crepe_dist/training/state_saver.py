"""When the state is saved, and a thread that writes it while training goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from crepe_dist.settings.training_options import CheckpointOptions
from crepe_dist.training import state
from crepe_dist.training.state import Snapshot


class Saver:
    """Of rank 0. Never are more than ``options.every`` steps, or much more than ``options.every_s`` seconds, unsaved.

    A state begins to be written some steps before the limit, as many as writing the last one took, so that training
    need not wait for it; if it is late all the same, training waits.

    Args:
        folder: for the states.
        say: told, in a line, of a state that could not be written.
        beat: called while it waits.
        patience: seconds for which training waits for a state that is late; after them it goes on, and says so.
        good: the state that the run goes on from.
        step: of that state.

    Attributes:
        durable_step: that of the newest state on the disk.
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
        self.durable_step = step
        self._saved = (step, time.monotonic())  # step and time of the newest state on the disk, or of a failed try
        self._writing: tuple[Future[Path], Snapshot, float] | None = None
        self._slow = False
        self._lead = (0, 0.0)  # steps and seconds that writing took the last time
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saver")

    @property
    def seconds(self) -> float:
        """That writing the last state took; 0 if none was written yet."""
        return self._lead[1]

    def due(self, step: int) -> bool:
        """Whether the state after ``step`` is to be saved. Waits where too much would be unsaved otherwise."""
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
        """Begins to write; the snapshot must not change any more."""
        if not self.wait(snapshot.progress.step, self._patience):
            return
        future = self._pool.submit(state.save, self._folder, snapshot, self._good)
        self._writing = (future, snapshot, time.monotonic())

    def wait(self, step: int = 0, patience: float = math.inf) -> bool:
        """Until nothing is being written, or so many seconds; whether nothing is."""
        due = time.monotonic() + patience
        while self._writing is not None and not self._writing[0].done():
            left = due - time.monotonic()
            if left <= 0:
                if not self._slow:
                    self._slow = True
                    self._say(f"a state takes more than {patience:.0f} s to write: more may be lost than was promised")
                return False
            futures.wait([self._writing[0]], min(left, 1.0))
            self._beat()
        self._settle(step)
        return True

    def postpone(self, step: int) -> None:
        """The state after ``step`` could not be taken; not at once again."""
        self._saved = (step, time.monotonic())

    def close(self) -> None:
        self.wait()
        self._pool.shutdown()

    def _settle(self, step: int) -> None:
        """Takes note of a state that has been written, or could not be."""
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
            return
        if not isinstance(error, OSError):
            raise error
        self.postpone(step)
        newest = f"the newest state is {self._good}" if self._good else "there is no saved state yet"
        self._say(f"the state of step {snapshot.progress.step} could not be saved: {error}; {newest}")
