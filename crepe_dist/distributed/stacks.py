"""Stacks of this process, written when another process asks for them by SIGUSR1.

faulthandler's own signal handler would walk the frames of threads that keep running, and crash the process: with four
busy threads within tens of signals (seen with CPython 3.11). Here the signal only wakes a thread, which holds the
interpreter's lock while it writes.
"""

from __future__ import annotations

import faulthandler
import signal
import socket
import threading
from contextlib import suppress
from typing import IO

REQUEST = signal.SIGUSR1


def write(stream: IO[str]) -> None:
    """Write the stacks of all threads."""
    faulthandler.dump_traceback(file=stream, all_threads=True)


class StackRequests:
    """Handler of requests for the stacks of this process; without effect outside the main thread."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        self._handles = threading.current_thread() is threading.main_thread()
        if self._handles:
            self._handler = signal.signal(REQUEST, lambda *_: None)
            signal.siginterrupt(REQUEST, False)  # system calls of MXNet and Horovod continue
            self._descriptor = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._answer, name="stacks", daemon=True).start()

    def close(self) -> None:
        """Answer no more requests."""
        if self._handles:
            signal.set_wakeup_fd(self._descriptor)
            signal.signal(REQUEST, self._handler)
        self._wake.close()

    def _answer(self) -> None:
        while numbers := self._woken.recv(4096):  # every signal arrives here, by its number
            if REQUEST in numbers:
                with suppress(OSError, ValueError):  # a full disk; closed
                    write(self._stream)
