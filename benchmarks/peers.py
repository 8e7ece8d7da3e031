"""Environment with PyTorch and ONNX Runtime, and client of the worker process that measures them."""

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


def worker_sizes(sizes: Any, threads: int) -> dict[str, Any]:
    """Return the fields of ``peers_worker.Sizes``."""
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
    """Measurements of the peers, which are PyTorch and ONNX Runtime.

    Attributes:
        about: dictionary with the ``versions`` of the peers, the fastest variant of each measurement (``chosen``), the
            rates of all variants (``tried``), and the errors of variants (``failed``). It is empty if the peers are
            left out.
        runs: functions that return the rate of a measurement in documents/s, or NaN after a failure, by name of the
            measurement.
    """

    about: dict[str, Any]
    runs: dict[str, Callable[[], float]]


@contextmanager
def started(
    python: str | None, sizes: Any, threads: int, seconds: float, patience: float, say: Callable[[str], None]
) -> Iterator[Peers]:
    """Start the worker, which selects the fastest variants, and stop it after the ``with`` block.

    Args:
        python: interpreter that has PyTorch and ONNX Runtime. If it is ``None``, the peers are left out.
        threads: number of threads of a variant.
        seconds: duration of a measurement.
        patience: time limit of a variant in seconds; see ``peers_worker.Peers``.
        say: function that prints progress.
    """
    if python is None:
        yield Peers({}, {})
        return
    # With one thread, torch.compile starts no compiler processes that could outlive the worker.
    thread_settings = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": str(threads)}
    peers = Peers({}, {})
    try:
        # -I: do not import from the script's folder or from the user's site-packages.
        workers = Workers([[python, "-I", str(WORKER)]], 1, environment() | thread_settings)
    except (UserError, OSError) as error:
        say(f"PyTorch and ONNX Runtime are left out: {_one_line(error)}")
        yield peers
        return

    def measure(name: str) -> float:
        try:
            return float(workers.ask("measure", variant=name, seconds=seconds)[0]["rate"])
        except UserError as error:
            say(f"{name} is left out: {_one_line(error)}")
            return math.nan

    with workers:
        try:
            (about,) = workers.ask("prepare", sizes=worker_sizes(sizes, threads), patience=patience)
            peers = Peers(about, {name: partial(measure, name) for name in about["chosen"]})
        except UserError as error:
            say(f"PyTorch and ONNX Runtime are left out: {_one_line(error)}")
        yield peers


def ratios(train: Mapping[str, float], forward: Mapping[str, float], rates: Mapping[str, float]) -> dict[str, float]:
    """Return our rates divided by the rates of the peers.

    Args:
        train: our rates of training by precision.
        forward: our rates of the forward pass by precision.
        rates: all rates by name. Peers that were not measured have none.
    """

    def theirs(kind: str, peer: str) -> dict[str, float]:
        prefix = f"{kind}, {peer}, "
        return {name[len(prefix) :]: rate for name, rate in rates.items() if name.startswith(prefix)}

    result = {}
    if torch := theirs("train", "torch"):
        result["train_vs_torch"] = max(train.values()) / max(torch.values())
        if by_precision := [train[precision] / torch[precision] for precision in train if precision in torch]:
            result["train_vs_torch_same_precision"] = min(by_precision)
    for peer in ("torch", "onnxruntime"):
        if peer_rates := theirs("forward", peer):
            result[f"forward_vs_{peer}"] = max(forward.values()) / max(peer_rates.values())
    return result


def environment() -> dict[str, str]:
    """Return the environment of this process without variables that would make another Python import our modules."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def interpreter(say: Callable[[str], None]) -> str:
    """Return the Python of an environment that has the packages of ``peers.txt``.

    The environment is in the user's cache folder. It is created if it does not exist. It is separate because the tools
    need a newer NumPy than MXNet. The user's configuration of pip applies, and so it can select the build of PyTorch.

    Raises:
        UserError: the environment cannot be created.
    """
    failure = "the tools for the comparison could not be installed"
    identity = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode() + sys.base_prefix.encode())
    folder = cache_folder() / f"peers-{identity.hexdigest()[:16]}"
    if not folder.exists():
        say(f"installing PyTorch, ONNX Runtime and fastText, once, into {folder} (--no-peers skips them)")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as scratch:
            new = Path(scratch) / "environment"
            venv.create(new, with_pip=True, symlinks=True)
            install = [str(new / "bin" / "python"), "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS)]
            pip = subprocess.run(install, env=environment(), capture_output=True, text=True)
            if pip.returncode != 0:
                why = (pip.stderr.strip().splitlines() or ["pip failed"])[-1]
                raise UserError(failure, why, "specify a Python that has them with --peers, or use --no-peers")
            shutil.move(new, folder)
    return str(folder / "bin" / "python")


def _one_line(error: Exception) -> str:
    return " ".join(f"{getattr(error, 'why', '') or error}".split())
