"""Training on Dask: an actor for each rank, on a worker of its own."""

from __future__ import annotations

import time
from typing import Any

from crepe_dist import extras
from crepe_dist.errors import UserError
from crepe_dist.runs.result import Result
from crepe_dist.settings.config import Config
from crepe_dist.supervising.driver import Engine, Lost, Place, train_on
from crepe_dist.supervising.process import ALIKE, Process

LOOK_SECONDS = 1.0  # between looks at the list of workers


def on_dask(config: Config, processes: int, max_restarts: int = 10) -> Result | None:
    """Train in so many processes, each beside a Dask worker, on the cluster of this program's client.

    Without a client, ``DASK_SCHEDULER_ADDRESS`` names the cluster. A process has as many threads as its worker.

    Args:
        max_restarts: restarts after failures; preemptions do not count.

    Returns:
        The result; ``None`` after a dry run, or with ``training.overfit_batches``.

    Raises:
        UserError: a problem that the caller can fix.
        Stopped: SIGTERM or SIGINT arrived; everything is saved.
    """
    extras.require("dask", "training on Dask")
    return train_on(DaskEngine(), config.to_arguments(), processes, max_restarts)


def connect() -> Any:
    """Return the client of this program, or of the cluster that ``DASK_SCHEDULER_ADDRESS`` names.

    Raises:
        UserError: there is none, or it does not answer.
    """
    import dask
    import distributed

    try:
        return distributed.Client.current()
    except ValueError:
        address = dask.config.get("scheduler-address", None)
    if address is None:
        raise UserError(
            "there is no Dask cluster",
            "no client in this program, and DASK_SCHEDULER_ADDRESS is not set",
            "start one: `dask scheduler` here, and `dask worker tcp://<this host>:8786` on each host; then set "
            "DASK_SCHEDULER_ADDRESS",
        )
    try:
        return distributed.Client(str(address))  # the default: actors look for it
    except (OSError, TypeError, ValueError) as error:
        why = "an address is tcp://HOST:PORT" if isinstance(error, ValueError) else str(error)
        raise UserError(
            f"the Dask cluster {address}, which DASK_SCHEDULER_ADDRESS names, does not answer",
            why,
            "give the address that `dask scheduler` prints when it starts",
        ) from error


class DaskEngine(Engine):
    """The cluster of a Dask client."""

    name = "Dask"

    def __init__(self) -> None:
        self._client = connect()
        self._processes: list[Any] = []
        self._workers: list[str] = []
        self._living: set[str] = set()
        self._looked = 0.0

    def nodes(self) -> dict[str, int]:
        return dict.fromkeys(self._client.ncores(), 1)

    def place(self, processes: int) -> list[Place]:
        workers = dict(sorted(self._client.ncores().items())[:processes])
        if len(workers) < processes:
            return []
        self._workers = list(workers)
        where = [{"workers": [worker], "allow_other_workers": False} for worker in workers]
        futures = [self._client.submit(Process, actor=True, pure=False, retries=0, **each) for each in where]
        try:
            self._processes = [future.result(timeout=30) for future in futures]
        except TimeoutError:  # a worker is gone
            return []
        except ImportError as error:
            raise UserError("a Dask worker cannot run crepe_dist", str(error), ALIKE) from error
        return [Place(worker.rpartition(":")[0].rpartition("/")[2], cores) for worker, cores in workers.items()]

    def call(self, rank: int, method: str, *arguments: Any) -> Any:
        try:
            return rank, getattr(self._processes[rank], method)(*arguments)
        except RuntimeError:  # the actor's worker is gone
            return rank, None

    def answer(self, handle: Any) -> Any:
        rank, future = handle
        if future is None:
            raise Lost
        if not future.done():
            if time.monotonic() > self._looked + LOOK_SECONDS:
                self._living, self._looked = set(self._client.ncores()), time.monotonic()
            if self._workers[rank] not in self._living:
                raise Lost
            return None
        try:
            return future.result()
        except (OSError, ValueError) as error:
            raise Lost from error

    def release(self) -> None:
        self._processes = []  # the workers drop what no client holds
