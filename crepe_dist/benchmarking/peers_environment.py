"""Virtual environment with PyTorch, ONNX Runtime, fastText and scikit-learn; kept in the user's cache.

The first two need a newer NumPy than MXNet, and MXNet imports scikit-learn wherever it is installed, which takes time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Callable

from crepe_dist.errors import UserError
from crepe_dist.files import cache_folder

REQUIREMENTS = Path(__file__).with_name("peers.txt")
REMEDY = "give a Python that has them with --peers, or use --no-peers"
NEEDED = (3, 11)
_MARKER = "complete"


def interpreter(say: Callable[[str], None]) -> str:
    """Return the environment's Python; create the environment first if necessary, which takes minutes and a download.

    The user's pip settings apply, so they select the build of PyTorch.

    Raises:
        UserError: the environment cannot be created.
    """
    if sys.version_info < NEEDED:
        raise UserError("PyTorch and ONNX Runtime are left out", "they need Python 3.11 or newer", REMEDY)
    folder = cache_folder() / f"peers-{_identity()}"
    if not (folder / _MARKER).exists():
        names = "PyTorch, ONNX Runtime, fastText and scikit-learn"
        say(f"installing {names} for comparison, once, into {folder} (--no-peers skips them)")
        _create(folder)
    return str(folder / "bin" / "python")


def clean(environment: dict[str, str]) -> dict[str, str]:
    """Remove the variables that would make another Python import this Python's modules."""
    return {name: value for name, value in environment.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def _identity() -> str:
    parts = REQUIREMENTS.read_bytes(), sys.version.encode(), sys.base_prefix.encode()
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _create(folder: Path) -> None:
    failed = "PyTorch and ONNX Runtime could not be installed"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as scratch:
            environment = Path(scratch) / "environment"
            venv.create(environment, with_pip=True, symlinks=True)
            _install(environment / "bin" / "python")
            (environment / _MARKER).touch()
            if (folder / _MARKER).exists():  # another process was faster
                return
            shutil.rmtree(folder, ignore_errors=True)
            environment.rename(folder)
    except subprocess.CalledProcessError as error:
        lines = str(error.stderr or error.output or error).strip().splitlines()
        raise UserError(failed, lines[-1] if lines else str(error), REMEDY) from None
    except OSError as error:
        raise UserError(failed, str(error), REMEDY) from None


def _install(python: Path) -> None:
    arguments = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(REQUIREMENTS)]
    subprocess.run(
        [str(python), *arguments],
        check=True,
        env=clean(dict(os.environ)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
