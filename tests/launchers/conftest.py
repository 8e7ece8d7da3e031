import os
import sys
from pathlib import Path

import pytest

from tests.chaos import harness
from tests.conftest import run


def flags(run_dir: Path, data: Path, *more: str) -> list[str]:
    """Return the flags of a short training run."""
    return harness.command(run_dir, data, 1, *more)[3:]


@pytest.fixture(scope="session")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an undisturbed run of two supervised processes with one thread each."""
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "OMP_NUM_THREADS", "1")
        run([sys.executable, "-m", "crepe_dist", "supervise", "-np", "2", *flags(run_dir, data)], run_dir.parent)
    return run_dir
