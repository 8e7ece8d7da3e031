from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.chaos import harness


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("chaos")


@pytest.fixture(scope="session")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run of that many processes, with more settings, that nothing happened to."""
    folder = tmp_path_factory.mktemp("unbroken")

    @cache
    def of(processes: int, *more: str) -> Path:
        run_dir = folder / "-".join([str(processes), *(each.lstrip("-") for each in more)])
        code, printed = harness.run(harness.command(run_dir, data, processes, *more), folder)
        assert code == 0, printed
        return run_dir

    return of
