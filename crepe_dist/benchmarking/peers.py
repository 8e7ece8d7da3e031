"""Client of the worker process that measures PyTorch and ONNX Runtime; the worker idles between requests."""

from __future__ import annotations

import json
import math
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Callable, Protocol

from crepe_dist.benchmarking.peers_environment import clean
from crepe_dist.data.alphabet import ALPHABET
from crepe_dist.errors import shown
from crepe_dist.networks.paper.shape import CONVOLUTIONS, POOL

WORKER = Path(__file__).with_name("peers_worker.py")
REPLY_SECONDS = 600.0


class Sizes(Protocol):
    """Sizes of the network and of the batch."""

    @property
    def batch_size(self) -> int: ...
    @property
    def feature_len(self) -> int: ...
    @property
    def filters(self) -> int: ...
    @property
    def units(self) -> int: ...
    @property
    def classes(self) -> int: ...


def described(sizes: Sizes, threads: int) -> dict[str, Any]:
    """Return the arguments of ``peers_worker.Sizes``."""
    names = ("batch_size", "feature_len", "filters", "units", "classes")
    network = {name: getattr(sizes, name) for name in names}
    return {**network, "alphabet_size": len(ALPHABET), "convolutions": CONVOLUTIONS, "pool": POOL, "threads": threads}


class _WorkerLost(Exception):
    """Loss of the worker process: it ended or hangs."""


class Worker:
    """Worker process. Before it is started and after it has failed, it has no rates.

    Attributes:
        failure: reason of the failure; empty while the worker works.
    """

    def __init__(self, say: Callable[[str], None], reply_seconds: float = REPLY_SECONDS) -> None:
        self.failure = ""
        self._say = say
        self._reply_seconds = reply_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: Any = None
        self._buffer = b""
        self._about: dict[str, Any] = {}

    def start(
        self, command: list[str], sizes: Sizes, threads: int, budget: float, patience: float = REPLY_SECONDS
    ) -> None:
        """Start the process; see ``peers_worker.Peers`` for ``budget`` and ``patience``."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        # With one thread, torch.compile starts no compiler processes that could outlive the worker.
        environment = clean(dict(os.environ)) | {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": str(threads)}
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._errors, env=environment)
        except OSError as error:
            self._fail(str(error))
            return
        request = {"do": "prepare", "sizes": described(sizes, threads), "budget": budget, "patience": patience}
        self._about = self._ask(request, "about", dict) or {}

    def runs(self, seconds: float) -> dict[str, Callable[[], float]]:
        """Return functions, by name, that measure documents or operations a second; NaN after a failure."""

        def run(name: str) -> float:
            share = seconds / 4 if name.startswith("matrix product") else seconds
            rate = self._ask({"do": "measure", "name": name, "seconds": share}, "rate", float)
            return math.nan if rate is None else rate

        chosen = {} if self.failure else self._about.get("chosen", {})
        return {name: partial(run, name) for name in chosen}

    def about(self) -> dict[str, Any]:
        """Return ``versions``, the variants ``chosen`` by name, the rates ``tried``, and errors as ``failed``."""
        return {} if self.failure else self._about

    def kept(self, rates: Mapping[str, float]) -> dict[str, float]:
        """Drop the rates of the worker if it has failed."""
        dropped = self._about.get("chosen", {}) if self.failure else {}
        return {name: rate for name, rate in rates.items() if name not in dropped}

    def stop(self) -> None:
        if self._process is None:
            return
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.close()
            self._process.wait(0 if self.failure else 10)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _ask(self, request: dict[str, Any], key: str, kind: type) -> Any:
        """Send a request and return ``key`` of the reply; ``None`` after a failure."""
        if self.failure:
            return None
        assert self._process
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            reply = json.loads(self._line())
            if isinstance(reply, dict) and isinstance(reply.get(key), kind):
                return reply[key]
            self._fail("its reply is invalid")
        except _WorkerLost as error:
            self._fail(str(error))
        except BrokenPipeError:
            self._fail(self._last_words())
        except ValueError:
            self._fail("its reply is not JSON")
        return None

    def _line(self) -> bytes:
        assert self._process
        assert self._process.stdout
        deadline = time.monotonic() + self._reply_seconds
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise _WorkerLost(f"no reply for {self._reply_seconds:.0f} seconds")
            received = os.read(self._process.stdout.fileno(), 1 << 16)
            if not received:
                raise _WorkerLost(self._last_words())
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _last_words(self) -> str:
        """Describe the exit code of the process and its last line of standard error."""
        assert self._process
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"it ended with exit code {code}" + (f": {lines[-1]}" if lines else "")

    def _fail(self, why: str) -> None:
        self.failure = "".join(map(shown, why))
        self._say(f"PyTorch and ONNX Runtime are left out: {self.failure}")


@contextmanager
def started(
    python: str | None, sizes: Sizes, threads: int, budget: float, say: Callable[[str], None], patience: float
) -> Iterator[Worker]:
    """Start a worker with the interpreter ``python``; with ``None``, yield a worker without rates."""
    worker = Worker(say, max(REPLY_SECONDS, 10 * patience))
    try:
        if python is not None:
            # -I: import neither from the script's folder nor from the user's site-packages.
            worker.start([python, "-I", str(WORKER)], sizes, threads, budget, patience)
        yield worker
    finally:
        worker.stop()


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
