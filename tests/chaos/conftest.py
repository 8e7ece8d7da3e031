from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from crepe_dist.native import library
from tests.chaos import harness


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("chaos")


@pytest.fixture(scope="session")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run that nothing happened to, with more settings.

    It is of one process, because their number does not matter; MXNet's operators need as many as given.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "unbroken"  # one for pytest's workers
    folder.mkdir(exist_ok=True)

    def of(processes: int, *more: str) -> Path:
        processes = 1 if library.find()[0] else processes
        run_dir = folder / "-".join([str(processes), *(each.lstrip("-") for each in more)])
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (run_dir / "result.json").is_file():
                code, printed = harness.run(harness.command(run_dir, data, processes, *more), folder)
                assert code == 0, printed
        return run_dir

    return of
