"""Threads of rank 0 that bring a run to a server during training: to a store of files, or to a tracker."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any, Literal, TypeVar

from crepe_dist.distributed.signals import StopRequested
from crepe_dist.errors import UserError
from crepe_dist.runs.run_dir import RunDir

STOP_SECONDS = 20  # Time limit for the last call after a stop or an error. Launchers usually kill a process after 30 s.
Status = Literal["RUNNING", "FINISHED", "KILLED", "FAILED"]  # Status of a run, in the words of MLflow.
T = TypeVar("T")


def in_background(function: Callable[[], T]) -> Iterator[T | None]:
    """Run a function in a thread. Yield ``None`` every second until it ends, and finally its result.

    The thread does not keep the process alive, because a server that does not answer would block its exit.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True, name="server").start()
    while not future.done():
        futures.wait([future], 1.0)
        yield None
    yield future.result()


class RunSync(ABC):
    """Thread that brings what is new in a run to a server. Training never waits for it, except at the end.

    Args:
        run: Run on the local disk.
        say: Function that prints a warning if the server cannot be used.
    """

    needs_states = False  # Whether the state of the run must be saved after each epoch.

    def __init__(self, run: RunDir, say: Callable[[str], None]) -> None:
        self._run = run
        self._say = say
        self._thread: Thread | None = None

    @abstractmethod
    def sync(self, status: Status) -> None:
        """Bring everything to the server that it does not have.

        Raises:
            UserError: The server cannot be used.
        """

    def __enter__(self) -> "RunSync":
        """Start the first call, so that a warning about the server comes before the first epoch."""
        self.start()
        return self

    def __exit__(self, kind: Any, *error: object) -> None:
        """After a stop or an error, call ``sync`` one more time, but wait for at most ``STOP_SECONDS``."""
        if kind is not None:
            with suppress(UserError):
                for second, _ in enumerate(self.finish("KILLED" if issubclass(kind, StopRequested) else "FAILED")):
                    if second >= STOP_SECONDS:
                        self._say(f"{self} may lack the end of the run: it takes over {STOP_SECONDS} s")
                        break

    def start(self, saving: Future[Path] | None = None) -> None:
        """Call ``sync`` in the background, unless the previous call has not returned.

        Args:
            saving: Save of a state to wait for.
        """

        def run() -> None:
            try:
                if saving is not None:
                    futures.wait([saving])
                self.sync("RUNNING")
            except UserError as error:
                error.remedy += "; training continues, and tries again after the next epoch"
                self._say(error.format_lines("warning"))

        if self._thread is None or not self._thread.is_alive():
            self._thread = Thread(target=run, daemon=True, name="server")
            self._thread.start()

    def finish(self, status: Status = "FINISHED") -> Iterator[None]:
        """Call ``sync`` for the last time. Yield about every second.

        Raises:
            UserError: The server cannot be used.
        """
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(1.0)
            yield
        for _ in in_background(lambda: self.sync(status)):
            yield
