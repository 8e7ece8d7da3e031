"""Pool of worker processes. The workers exit when their parent process exits."""

import gc
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from crepe_dist.errors import UserError
from crepe_dist.formatting import describe_exit_code

# Number of tasks per process that are submitted before the first result is awaited.
TASKS_PER_PROCESS = 3
# Number of rows in a task that counts characters.
TASK_ROWS = 1 << 15
# Function that ``call_inherited`` calls. Forked workers inherit it from their parent.
_inherited: list[Any] = []


# Function that prints a line.
PrintLine = Callable[[str], None]
# Function that shows progress. Its arguments are the name of the phase, the number of bytes or rows done, and the total
# (0 if it is unknown).
ProgressCallback = Callable[[str, int, int], None]


def no_progress(phase: str, done: int, total: int) -> None:
    """Show nothing."""


def print_nothing(line: str) -> None:
    """Print nothing."""


Task = TypeVar("Task")
Done = TypeVar("Done")


@dataclass(frozen=True)
class WorkerPool:
    """Pool of worker processes. If there are no workers, this process does the work.

    Attributes:
        executor: Executor of the processes. If it is ``None``, this process does the work.
        max_tasks: Maximum number of tasks that are submitted and not finished.
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
    """Provide a pool of ``processes`` workers.

    This process does the work if ``processes`` is 1, or if /dev/shm has no space for the semaphores of the workers.

    Args:
        remedy: Instruction for running the command in one process. The error about a killed worker shows it.
        work: Function for ``call_inherited``. Pass it if the function is large or cannot be pickled. The workers are
            then forked from this process and share its memory. Threads of this process must not hold a lock that
            ``work`` needs.

    Raises:
        UserError: A worker ended before its work was done.
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
        raise UserError(f"a worker process {how}", why, f"repeat the command with one process: {remedy}") from error
    finally:
        if executor is not None:
            executor.shutdown(wait=True, cancel_futures=True)


def _describe_failure(executor: Any) -> tuple[str, str]:
    """Describe how the worker that broke the pool ended, and the likely cause.

    The pool terminates the other workers with SIGTERM, so an exit code other than SIGTERM belongs to the worker that
    failed first.
    """
    workers = list((getattr(executor, "_processes", None) or {}).values())
    executor.shutdown(wait=True)  # Wait until all workers have ended, so that their exit codes are known.
    codes = [worker.exitcode for worker in workers if worker.exitcode is not None]
    code = next((code for code in codes if code != -signal.SIGTERM), -signal.SIGTERM)
    if not codes:
        return "ended", ""
    return describe_exit_code(
        code
    ), "perhaps the machine ran out of memory (see dmesg)" if code == -signal.SIGKILL else ""


def call_inherited(task: Any) -> Any:
    """Call the function ``work`` of ``open_worker_pool``. Runs in a worker."""
    return _inherited[0](task)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent process handles Ctrl-C.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()
    # Rows have no reference cycles, but their many objects would trigger garbage collection often.
    gc.set_threshold(1 << 17)
    threading.Thread(target=_exit_with_parent, args=(multiprocessing.parent_process(),), daemon=True).start()


def _exit_with_parent(parent: Any) -> None:
    parent.join()
    os._exit(1)
