"""Environment with PyTorch and ONNX Runtime, and client of the worker process that measures them."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from workers import Workers

from crepe_dist.data.char_encoder import ALPHABET
from crepe_dist.errors import UserError
from crepe_dist.files.folders import cache_folder
from crepe_dist.native.constants import PAPER_POOL
from crepe_dist.networks.paper.config import CONVOLUTIONS

WORKER = Path(__file__).with_name("peers_worker.py")
REQUIREMENTS = Path(__file__).with_name("peers.txt")
NEEDED = (3, 11)  # Python


def described(sizes: Any, threads: int) -> dict[str, Any]:
    """Return the arguments of ``peers_worker.Sizes``."""
    names = ("batch_size", "feature_len", "filters", "units", "classes")
    network = {name: getattr(sizes, name) for name in names}
    return {
        **network,
        "alphabet_size": len(ALPHABET),
        "convolutions": CONVOLUTIONS,
        "pool": PAPER_POOL,
        "threads": threads,
    }


class Peers(NamedTuple):
    """Rates of the peers.

    Attributes:
        about: ``versions``, the variants ``chosen`` by name, the rates ``tried``, and errors as ``failed``; empty if
            the peers are left out.
        runs: functions, by name, that measure documents or operations per second; NaN after a failure.
    """

    about: dict[str, Any]
    runs: dict[str, Callable[[], float]]


@contextmanager
def started(
    python: str | None, sizes: Any, threads: int, seconds: float, patience: float, say: Callable[[str], None]
) -> Iterator[Peers]:
    """Start the worker with the interpreter ``python``, if any, and let it choose the fastest variants.

    Args:
        seconds: duration of a measurement.
        patience: time limit of a variant in seconds; see ``peers_worker.Peers``.
    """
    if python is None:
        yield Peers({}, {})
        return
    # With one thread, torch.compile starts no compiler processes that could outlive the worker.
    threads_of = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": str(threads)}
    peers = Peers({}, {})
    try:
        # -I: import neither from the script's folder nor from the user's site-packages.
        workers = Workers([[python, "-I", str(WORKER)]], 1, environment() | threads_of)
    except (UserError, OSError) as error:
        say(f"PyTorch and ONNX Runtime are left out: {_in_a_line(error)}")
        yield peers
        return

    def measure(name: str) -> float:
        try:
            return float(workers.ask("measure", variant=name, seconds=seconds)[0]["rate"])
        except UserError as error:
            say(f"{name} is left out: {_in_a_line(error)}")
            return math.nan

    with workers:
        try:
            (about,) = workers.ask("prepare", sizes=described(sizes, threads), patience=patience)
            peers = Peers(about, {name: partial(measure, name) for name in about["chosen"]})
        except UserError as error:
            say(f"PyTorch and ONNX Runtime are left out: {_in_a_line(error)}")
        yield peers


def ratios(train: Mapping[str, float], forward: Mapping[str, float], rates: Mapping[str, float]) -> dict[str, float]:
    """Compute ratios ours / theirs.

    Args:
        train, forward: our rates by precision.
        rates: rates by name, with those of the peers that were measured.
    """

    def theirs(kind: str, peer: str) -> dict[str, float]:
        start = f"{kind}, {peer}, "
        return {name[len(start) :]: rate for name, rate in rates.items() if name.startswith(start)}

    result = {}
    if torch := theirs("train", "torch"):
        result["train_vs_torch"] = max(train.values()) / max(torch.values())
        if same := [train[precision] / torch[precision] for precision in train if precision in torch]:
            result["train_vs_torch_same_precision"] = min(same)
    for peer in ("torch", "onnxruntime"):
        if peer_rates := theirs("forward", peer):
            result[f"forward_vs_{peer}"] = max(forward.values()) / max(peer_rates.values())
    return result


def environment() -> dict[str, str]:
    """Return our environment without the variables that would make another Python import our modules."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def interpreter(say: Callable[[str], None]) -> str:
    """Return the Python of an environment with ``peers.txt`` in the user's cache; install it if necessary.

    The tools need a newer NumPy than MXNet. The user's settings of pip apply, so they select the build of PyTorch.

    Raises:
        UserError: the environment cannot be made.
    """
    failed = "the tools to compare with could not be installed"
    if sys.version_info < NEEDED:
        raise UserError(failed, "they need Python 3.11 or newer", "name a Python that has them with --peers")
    identity = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode() + sys.base_prefix.encode())
    folder = cache_folder() / f"peers-{identity.hexdigest()[:16]}"
    if not folder.exists():
        say(f"installing PyTorch, ONNX Runtime and fastText, once, into {folder} (--no-peers skips them)")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as scratch:
            made = Path(scratch) / "environment"
            venv.create(made, with_pip=True, symlinks=True)
            install = [str(made / "bin" / "python"), "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS)]
            done = subprocess.run(install, env=environment(), capture_output=True, text=True)
            if done.returncode != 0:
                why = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
                raise UserError(failed, why, "name a Python that has them with --peers, or use --no-peers")
            shutil.move(made, folder)
    return str(folder / "bin" / "python")


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{getattr(error, 'why', '') or error}".split())
