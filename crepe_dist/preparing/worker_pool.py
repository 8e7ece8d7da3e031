"""A pool of worker processes that end with their parent, and the progress of what they do."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Callable, TypeVar

from crepe_dist.errors import UserError
from crepe_dist.formatting import describe_exit_code

TASKS_PER_PROCESS = 3  # tasks in flight per process
_inherited: list[Any] = []


PrintLine = Callable[[str], None]  # prints a line
ProgressCallback = Callable[
    [str, int, int], None
]  # shows a phase, and the bytes read or rows processed, of 0 if unknown


def no_progress(phase: str, done: int, total: int) -> None:
    """Show nothing."""


def print_nothing(line: str) -> None:
    """Print nothing."""


Task = TypeVar("Task")
Done = TypeVar("Done")


@dataclass(frozen=True)
class WorkerPool:
    """Worker processes, or this process in place of a single one.

    Attributes:
        ahead: most tasks in flight.
    """

    executor: Executor | None
    max_tasks: int

    def map_in_order(self, work: Callable[[Task], Done], tasks: Iterable[Task]) -> Iterator[Done]:
        """Yield the results of ``work`` in the order of the tasks."""
        if self.executor is None:
            yield from map(work, tasks)
            return
        waiting: deque[Future[Done]] = deque()
        for task in tasks:
            waiting.append(self.executor.submit(work, task))
            if len(waiting) >= self.max_tasks:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def open_worker_pool(processes: int, remedy: str, work: Callable[[Any], Any] | None = None) -> Iterator[WorkerPool]:
    """Provide ``processes`` workers.

    With one, and where /dev/shm has no room for their semaphores, calls run at once in this process.

    Args:
        fewer: how the user runs the command in one process, for the error about a worker that was killed.
        work: what ``inherited`` calls, if it is large or cannot be pickled: the workers are forked from this process,
            and share its memory. Its threads must not hold a lock that ``work`` needs.

    Raises:
        UserError: A worker ended before its work did.
    """
    _inherited[:] = [work]
    executor: Executor | None = None
    if processes > 1:
        context = multiprocessing.get_context("forkserver" if work is None else "fork")
        with suppress(OSError):
            executor = ProcessPoolExecutor(processes, context, initializer=_start_worker)
    try:
        yield WorkerPool(executor, TASKS_PER_PROCESS * processes)
    except BrokenProcessPool as error:
        how, why = _describe_failure(executor)
        raise UserError(f"a worker process {how}", why, f"run the command again, in one process: {remedy}") from error
    finally:
        if executor is not None:
            executor.shutdown(wait=True, cancel_futures=True)


def _describe_failure(executor: Any) -> tuple[str, str]:
    """Describe the end of the worker that broke a pool, and its likely cause; the pool terminates the other workers."""
    workers = list((getattr(executor, "_processes", None) or {}).values())
    executor.shutdown(wait=True)  # Then all workers have ended, and their exit codes are known.
    codes = [worker.exitcode for worker in workers if worker.exitcode is not None]
    code = next((code for code in codes if code != -signal.SIGTERM), -signal.SIGTERM)
    if not codes:
        return "ended", ""
    return describe_exit_code(
        code
    ), "perhaps the machine ran out of memory (see dmesg)" if code == -signal.SIGKILL else ""


def call_inherited(task: Any) -> Any:
    """Do the work that ``pool`` was given."""
    return _inherited[0](task)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()
    gc.set_threshold(1 << 17)  # rows make no cycles, but as many objects as otherwise start a search for some
    threading.Thread(target=_exit_with_parent, args=(multiprocessing.parent_process(),), daemon=True).start()


def _exit_with_parent(parent: Any) -> None:
    parent.join()
    os._exit(1)
