"""Queue of agents' messages and signals for the supervisor's deciding thread."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from contextlib import suppress

from crepe_dist.distributed.messages import Message
from crepe_dist.supervising.console import Console
from crepe_dist.supervising.link import Link

Arrival = tuple[Link, "Message | str", float]  # sender, message, reading of ``time.monotonic``


class Inbox:
    """Queue filled by the links' threads and by signal handlers.

    Args:
        console: printer of the workers' output, which is not queued.

    Attributes:
        signals: numbers of the signals that ``take`` has met, in order.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        # A SimpleQueue: a signal handler may put into it while it interrupts a get.
        self._events: queue.SimpleQueue[int | Arrival] = queue.SimpleQueue()
        self.signals: list[int] = []

    def signal(self, number: int) -> None:
        """Add a signal; for signal handlers."""
        self._events.put(number)

    def deliver(self, link: Link, message: Message | str) -> None:
        """Add a message; called from the links' threads.

        Workers' output is printed at once, in the link's thread: a blocked terminal must not block the supervisor.
        """
        if isinstance(message, dict) and message["kind"] == "output":
            self._console.show(message.get("worker"), str(message.get("stream")), str(message.get("line")))
        else:
            self._events.put((link, message, time.monotonic()))

    def take(self, until: float) -> Iterator[Arrival]:
        """Wait for an event, at most until the time ``until``; yield all messages that have arrived."""
        wait = max(0.0, min(until - time.monotonic(), 3600.0))
        with suppress(queue.Empty):
            event = self._events.get(timeout=wait)
            while True:
                if isinstance(event, int):
                    self.signals.append(event)
                else:
                    yield event
                event = self._events.get_nowait()
