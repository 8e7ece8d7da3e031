"""Messages of the agents and signals, collected for the one thread that decides."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from contextlib import suppress

from crepe_dist.distributed.messages import Message
from crepe_dist.supervising.console import Console
from crepe_dist.supervising.link import Link

Arrival = tuple[Link, "Message | str", float]  # with the time of ``time.monotonic``


class Inbox:
    """A queue filled by the threads of links and by signal handlers.

    Args:
        console: shows the output of workers, which is not queued.

    Attributes:
        signals: their numbers in the order in which they came, once ``take`` has passed them.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        # A SimpleQueue, because a signal's handler may put into it while the deciding thread takes from it.
        self._events: queue.SimpleQueue[int | Arrival] = queue.SimpleQueue()
        self.signals: list[int] = []

    def signal(self, number: int) -> None:
        """Add a signal; for signal handlers."""
        self._events.put(number)

    def deliver(self, link: Link, message: Message | str) -> None:
        """Add a message; called from the threads of links.

        They show output themselves: a terminal that is held up must hold up nothing else.
        """
        if isinstance(message, dict) and message["kind"] == "output":
            self._console.show(message.get("worker"), str(message.get("stream")), str(message.get("line")))
        else:
            self._events.put((link, message, time.monotonic()))

    def take(self, until: float) -> Iterator[Arrival]:
        """Wait for an event until then; yield its message and all others that are there by now."""
        wait = max(0.0, min(until - time.monotonic(), 3600.0))
        with suppress(queue.Empty):
            event = self._events.get(timeout=wait)
            while True:
                if isinstance(event, int):
                    self.signals.append(event)
                else:
                    yield event
                event = self._events.get_nowait()
