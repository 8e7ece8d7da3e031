"""Training in several processes of this host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crepe_dist import invocation
from crepe_dist.supervising.driver import Engine, Place
from crepe_dist.supervising.process import Process

ADDRESS = "127.0.0.1"
MAX_PROCESSES = 1 << 16


class LocalEngine(Engine):
    """This host, with room for any number of processes.

    Args:
        variables: variables that the processes get beside those of this one.
    """

    name = "supervise"
    poll_seconds = 0.05

    def __init__(self, variables: Mapping[str, str] | None = None) -> None:
        self._variables = variables or {}
        self._processes: list[Process] = []

    def variables(self) -> dict[str, str]:
        return {**invocation.passed_on(), **self._variables}

    def nodes(self) -> dict[str, int]:
        return {ADDRESS: MAX_PROCESSES}

    def place(self, processes: int) -> list[Place]:
        self._processes = [Process() for _ in range(processes)]
        return [Place(ADDRESS, None)] * processes

    def call(self, rank: int, method: str, *arguments: Any) -> Any:
        return getattr(self._processes[rank], method)(*arguments)

    def answer(self, handle: Any) -> Any:
        return handle

    def release(self) -> None:
        for process in self._processes:
            process.kill()
        self._processes = []
