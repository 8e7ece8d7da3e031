import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos import harness


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("chaos")


@pytest.fixture(scope="session")
def data(data_with_capitals: Path) -> Path:
    return data_with_capitals


@pytest.fixture(scope="session")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Function that returns the folder of an undisturbed run of one process with further flags."""
    base = tmp_path_factory.getbasetemp()
    # Shared by the workers of pytest.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "unbroken"
    folder.mkdir(exist_ok=True)

    def of(*more: str) -> Path:
        run_dir = folder / "-".join(["run", *(each.lstrip("-") for each in more)])
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (run_dir / "result.json").is_file():
                code, printed = harness.finish(harness.start(harness.command(run_dir, data, 1, *more), folder))
                assert code == 0, printed
        return run_dir

    return of


@pytest.fixture
def trial(data: Path, tmp_path: Path, unbroken: Callable[..., Path]) -> harness.Trial:
    return harness.Trial(data, tmp_path, unbroken)
