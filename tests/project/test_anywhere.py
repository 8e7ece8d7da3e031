"""Tests of the wheel with all versions of Python and without MXNet: all commands, and bit-identical predictions."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from crepe_dist.data.dataset import Split, open_dataset
from crepe_dist.distributed.device import CPU
from crepe_dist.engines.engine import create_engine
from crepe_dist.model.backend import choose_backend
from crepe_dist.optim.parameter import Parameter
from crepe_dist.predicting.loading import load
from crepe_dist.runs import checkpoint
from crepe_dist.settings.options import ModelOptions
from tests.conftest import NGRAMS, PAPER, QUICK, command, run
from tests.helpers.needs import needs

ROOT = Path(__file__).parents[2]
MINORS = range(11, 15)
NETWORKS = {"crepe": (), "ngrams": NGRAMS, "paper": PAPER}
pytestmark = [pytest.mark.slow, needs("uv")]


def python_of(minor: int) -> str | None:
    """Find a Python 3.``minor`` in PATH, of pyenv or of uv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for path in sorted(pyenv.glob(f"versions/3.{minor}.*/bin/python")):
        return str(path)
    requested = ["uv", "python", "find", "--no-project", "--no-python-downloads", f"3.{minor}"]
    found = subprocess.run(requested, capture_output=True, text=True, check=False).stdout.strip()
    return found or shutil.which(f"python3.{minor}")


PYTHONS = {f"3.{minor}": found for minor in MINORS if (found := python_of(minor)) is not None}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Path of the wheel: that in ``CREPE_DIST_TEST_WHEEL``, or a newly built one."""
    if given := os.environ.get("CREPE_DIST_TEST_WHEEL"):
        return Path(given)
    out = tmp_path_factory.mktemp("wheel")
    run(["uv", "build", "--wheel", "-q", "-o", str(out)], ROOT)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> dict[str, Path]:
    """Folder of a run of each network."""
    folder = tmp_path_factory.mktemp("runs")
    for name, flags in NETWORKS.items():
        train = command("train", "--data", data, "--run-dir", folder / name, *QUICK, *flags, "--epochs=1")
        run(train, folder)
    return {name: folder / name for name in NETWORKS}


@pytest.fixture(scope="module", params=PYTHONS)
def python(request, wheel, tmp_path_factory) -> Path:
    """Python of an environment with the wheel and its dependencies."""
    folder = tmp_path_factory.mktemp(f"python{request.param}") / "venv"
    run(["uv", "venv", "-q", "-p", PYTHONS[request.param], str(folder)], folder.parent)
    found = folder / "bin" / "python"
    run(
        ["uv", "pip", "install", "-q", "-p", str(found), f"{wheel}[reports,sklearn]"],
        folder.parent,
    )
    return found


def training_logits(path: Path, split: Split) -> np.ndarray:
    """Return the logits that the engine of training computes with the parameters of a checkpoint."""
    opened = load(path).engine
    given = {name: Parameter(array) for name, array in opened.arrays.items()}
    engine = create_engine(opened.config, given, choose_backend(ModelOptions(), CPU, opened.config))
    return np.concatenate([logits for _, _, logits in engine.iter_logits(split, 50, 0, 1)])


def test_the_wheel_is_of_this_platform_and_has_the_kernels(wheel):
    assert wheel.name.endswith(f"-py3-none-manylinux_2_28_{os.uname().machine}.whl")
    listed = run(["python3", "-m", "zipfile", "-l", str(wheel)], wheel.parent)
    assert "crepe_dist/native/crepe_generic.so" in listed
    shown = run(["uvx", "auditwheel==6.8.2", "show", str(wheel)], wheel.parent)
    (minor,) = set(re.findall(r"tag:\s+\"manylinux_2_(\d+)_", shown))
    assert int(minor) <= 28


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_training(python, runs, data, name, tmp_path):
    run([str(python), str(Path(__file__).with_name("save_logits.py")), str(runs[name]), str(data)], tmp_path)
    split = open_dataset(data).splits["test"]
    expected = training_logits(checkpoint.resolve_model(str(runs[name])), split)
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), expected)


def test_every_command(python, tmp_path):
    print(run([str(python), str(ROOT / "tools" / "try_wheel.py"), "--seconds=1800"], tmp_path))
