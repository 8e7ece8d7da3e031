"""Handling of signals that ask this process to stop, and termination of child processes when their parent ends."""

import ctypes
import enum
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from crepe_dist.errors import SIGNALS, ExitCode

PR_SET_PDEATHSIG = 1  # Option of prctl(2).
libc = ctypes.CDLL(None, use_errno=True)
# Variable with the id of an elastic driver. It is the same in all processes that the driver starts.
SUPERVISION_ID_ENV = "CREPE_DIST_SUPERVISION"


class StepAction(enum.IntEnum):
    """Action that a rank requests after the current step. All ranks take the action with the highest value."""

    CONTINUE = 0
    SAVE = 1
    STOP = 2


class StopRequested(BaseException):
    """Request to stop this process. Like KeyboardInterrupt, it is not caught by ``except Exception``.

    Args:
        why: Source of the request.
        code: Exit code of the process.
        on_all_ranks: True if all ranks stop at the same point of the program. Each can then close the process group.
    """

    def __init__(self, why: str, code: int = ExitCode.STOPPED, *, on_all_ranks: bool = False) -> None:
        super().__init__(why)
        self.code = code
        self.on_all_ranks = on_all_ranks


class SignalHandler:
    """Context manager that turns ``SIGNALS`` into requests to stop.

    It installs its handlers only in the main thread, and not for signals that the process ignores.

    Attributes:
        requested_action: ``STOP`` after a request to stop, otherwise ``CONTINUE``.
        reason: Source of the request to stop. It is empty before the first request.
        code: Exit code after the request.
    """

    def __init__(self) -> None:
        self.requested_action = StepAction.CONTINUE
        self.reason = ""
        self.code: int = ExitCode.STOPPED
        self._deferring = False
        self._previous_handlers: dict[int, Any] = {}

    @property
    def is_supervised(self) -> bool:
        """True if an elastic driver restarts this process after a failure."""
        return SUPERVISION_ID_ENV in os.environ

    @contextmanager
    def defer(self) -> Iterator[None]:
        """Defer requests within the block: a signal only sets ``requested_action``.

        Outside such a block, a signal raises ``StopRequested`` immediately.
        """
        was_deferring, self._deferring = self._deferring, True
        try:
            yield
        finally:
            self._deferring = was_deferring

    def stop_exception(self, *, on_all_ranks: bool = False) -> StopRequested:
        """Return the exception for a request to stop.

        If this process received no request, the reason says that another process received one.
        """
        self.reason = self.reason or "another process was asked to stop"
        return StopRequested(self.reason, self.code, on_all_ranks=on_all_ranks)

    def __enter__(self) -> "SignalHandler":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous_handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        is_repeated = self.requested_action is StepAction.STOP
        self.requested_action = StepAction.STOP
        if not self.reason:
            self.reason = "interrupted" if number == signal.SIGINT else signal.Signals(number).name
            self.code = ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.STOPPED
        if number == signal.SIGINT and (is_repeated or not self._deferring):
            raise KeyboardInterrupt  # A second Ctrl-C stops the process immediately.
        if not self._deferring and not is_repeated:
            raise self.stop_exception()

    def request_stop(self, reason: str) -> None:
        """Ask this process to stop, as SIGTERM does. Any thread may call this method."""
        self.reason = self.reason or reason
        # A signal also interrupts a system call of the main thread, where the handler runs.
        os.kill(os.getpid(), signal.SIGTERM)


def terminate_with_parent() -> None:
    """Ask the kernel to send SIGTERM to this process when the parent thread ends. Call this in the child process."""
    libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
