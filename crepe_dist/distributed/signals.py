"""Requests to stop, by signals, and the end of our children."""

from __future__ import annotations

import ctypes
import enum
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from crepe_dist.errors import SIGNALS, ExitCode

PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None, use_errno=True)
SUPERVISION_ID_ENV = "CREPE_DIST_SUPERVISION"  # id of a driver, the same in all processes that it starts


class StepAction(enum.IntEnum):
    """Action that a rank votes for after the current step; all ranks follow the strongest vote of any rank."""

    CONTINUE = 0
    SAVE = 1
    STOP = 2


class StopRequested(BaseException):
    """Raised when this process was asked to stop. Like KeyboardInterrupt, ``except Exception`` does not catch it.

    Args:
        on_all_ranks: all ranks agreed to stop, so each can leave the group cleanly.
    """

    def __init__(self, why: str, code: int = ExitCode.STOPPED, *, on_all_ranks: bool = False) -> None:
        super().__init__(why)
        self.code = code
        self.on_all_ranks = on_all_ranks


class SignalHandler:
    """Context manager of the main thread that turns ``SIGNALS`` into requests.

    Attributes:
        vote: STOP after a request to stop, else GO_ON.
        why: source of the request to stop, once there was one.
        code: exit code after that request.
    """

    def __init__(self) -> None:
        self.requested_action = StepAction.CONTINUE
        self.reason = ""
        self.code: int = ExitCode.STOPPED
        self._deferring = False
        self._before: dict[int, Any] = {}

    @property
    def is_supervised(self) -> bool:
        """True if another program restarts this process after a failure."""
        return SUPERVISION_ID_ENV in os.environ

    @contextmanager
    def defer(self) -> Iterator[None]:
        """Defer requests within the block: there they only set ``vote``; elsewhere they raise ``StopRequested``
        at once.
        """
        before, self._deferring = self._deferring, True
        try:
            yield
        finally:
            self._deferring = before

    def stop_exception(self, *, on_all_ranks: bool = False) -> StopRequested:
        self.reason = self.reason or "another process was asked to stop"
        return StopRequested(self.reason, self.code, on_all_ranks=on_all_ranks)

    def __enter__(self) -> SignalHandler:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again, self.requested_action = self.requested_action is StepAction.STOP, StepAction.STOP
        if not self.reason:
            self.reason = "interrupted" if number == signal.SIGINT else signal.Signals(number).name
            self.code = ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.STOPPED
        if number == signal.SIGINT and (again or not self._deferring):
            raise KeyboardInterrupt  # a second Ctrl-C stops at once
        if not self._deferring and not again:
            raise self.stop_exception()

    def request_stop(self, why: str) -> None:
        """Ask this process to stop, as SIGTERM does; callable from any thread."""
        self.reason = self.reason or why
        os.kill(os.getpid(), signal.SIGTERM)  # the handler runs in the main thread, which may have to be interrupted


def terminate_with_parent() -> None:
    """Ask the kernel to send SIGTERM when the thread that starts this process ends; runs in the new process."""
    libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
