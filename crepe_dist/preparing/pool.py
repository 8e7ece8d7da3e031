"""Worker processes that end with their parent, or this process where one is enough."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Callable, TypeVar

from crepe_dist.errors import UserError

Task = TypeVar("Task")
Done = TypeVar("Done")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def pool(processes: int) -> Iterator[Executor]:
    """An executor of so many processes; for 1, calls run at once in this one.

    Raises:
        UserError: a worker was killed.
    """
    if processes == 1:
        yield _Here()
        return
    # Not forked: a child would inherit locks that threads of this process hold.
    context = multiprocessing.get_context("forkserver")
    executor = ProcessPoolExecutor(processes, context, initializer=_begin)
    try:
        yield executor
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed", "most often for want of memory", "try again with fewer --processes"
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def in_turn(executor: Executor, work: Callable[[Task], Done], tasks: Iterable[Task], ahead: int) -> Iterator[Done]:
    """What ``work`` makes of each task, in their order; at most ``ahead`` are on their way at a time."""
    waiting: deque[Future[Done]] = deque()
    for task in tasks:
        waiting.append(executor.submit(work, task))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class _Here(Executor):
    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
