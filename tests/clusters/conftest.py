"""An environment with Ray, a Ray cluster of this machine, and the run of one process to compare with."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters.cluster import SETTINGS, Cluster
from tests.conftest import command, run

ROOT = Path(__file__).parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and "environment" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of an environment with Ray, made from this checkout."""
    folder = tmp_path_factory.mktemp("ray") / "venv"
    sync = ["uv", "sync", "-q", "-p", sys.executable, "--no-default-groups", "--extra", "ray"]
    subprocess.run(sync, cwd=ROOT, env={**os.environ, "UV_PROJECT_ENVIRONMENT": str(folder)}, check=True)
    return folder / "bin"


@pytest.fixture(scope="session")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    run(command("train", "--data", data, "--run-dir", folder / "run", *SETTINGS), folder)
    return folder / "run"


@pytest.fixture
def cluster(environment: Path, data: Path, tmp_path: Path) -> Iterator[Cluster]:
    started = Cluster(environment, data, tmp_path)
    yield started
    started.end()
