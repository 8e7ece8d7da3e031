"""The environment of what `bench` compares with: made once, in the user's cache, apart from MXNet's old NumPy."""

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
PEERS = "name a Python that has them with --peers, or use --no-peers"
NEEDED = (3, 11)
_MARKER = "complete"


def interpreter(say: Callable[[str], None]) -> str:
    """The environment's Python; makes the environment if it is not there, in minutes and with a download.

    pip installs, with the user's settings, so that these decide which build of PyTorch it is.

    Raises:
        UserError: it cannot be made here.
    """
    if sys.version_info < NEEDED:
        raise UserError("PyTorch and ONNX Runtime are not compared with", "they need Python 3.11 or newer", PEERS)
    folder = cache_folder() / f"peers-{_identity()}"
    if not (folder / _MARKER).exists():
        say(f"installing PyTorch and ONNX Runtime for comparison, once, into {folder} (--no-peers leaves them out)")
        _make(folder)
    return str(folder / "bin" / "python")


def clean(environment: dict[str, str]) -> dict[str, str]:
    """Without the variables by which this Python's modules would get into another's."""
    return {name: value for name, value in environment.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def _identity() -> str:
    parts = REQUIREMENTS.read_bytes(), sys.version.encode(), sys.base_prefix.encode()
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _make(folder: Path) -> None:
    failed = "PyTorch and ONNX Runtime could not be installed"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as scratch:
            made = Path(scratch) / "environment"
            venv.create(made, with_pip=True, symlinks=True)
            _install(made / "bin" / "python")
            (made / _MARKER).touch()
            if (folder / _MARKER).exists():  # another process was faster
                return
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
    except subprocess.CalledProcessError as error:
        lines = str(error.stderr or error.output or error).strip().splitlines()
        raise UserError(failed, lines[-1] if lines else str(error), PEERS) from None
    except OSError as error:
        raise UserError(failed, str(error), PEERS) from None


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
