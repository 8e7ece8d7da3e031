"""PyTorch and ONNX Runtime beside ours: a process of its own, that works only while it is asked."""

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
from crepe_dist.model.crepe import CONVOLUTIONS, POOL

WORKER = Path(__file__).with_name("peers_worker.py")
PATIENCE = 600.0


class Sizes(Protocol):
    """What the network and the batch depend on."""

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


class _Gone(Exception):
    """The process ended, or hangs."""


class Worker:
    """The process, or none: then, and after it has failed, there are no rates of it.

    Attributes:
        failure: why there are no more rates; empty while there are.
    """

    def __init__(self, say: Callable[[str], None], patience: float = PATIENCE) -> None:
        self.failure = ""
        self._say = say
        self._patience = patience
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: Any = None
        self._read = b""
        self._about: dict[str, Any] = {}

    def start(self, command: list[str], sizes: Sizes, threads: int, budget: float) -> None:
        """Starts the process, which tries its variants for ``budget`` seconds, or somewhat more."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        # Code is compiled in the worker, not by helpers that would outlive it.
        environment = clean(dict(os.environ)) | {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": str(threads)}
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._errors, env=environment)
        except OSError as error:
            self._fail(str(error))
            return
        names = ("batch_size", "feature_len", "filters", "units", "classes")
        network = {name: getattr(sizes, name) for name in names}
        network |= {"alphabet_size": len(ALPHABET), "convolutions": CONVOLUTIONS, "pool": POOL, "threads": threads}
        self._about = self._ask({"do": "prepare", "sizes": network, "budget": budget}, "about", dict) or {}

    def runs(self, seconds: float) -> dict[str, Callable[[], float]]:
        """Calls that return documents or operations a second; NaN once the process has failed."""

        def run(name: str) -> float:
            share = seconds / 4 if name.startswith("matrix product") else seconds
            got = self._ask({"do": "measure", "name": name, "seconds": share}, "rate", float)
            return math.nan if got is None else got

        chosen = {} if self.failure else self._about.get("chosen", {})
        return {name: partial(run, name) for name in chosen}

    def about(self) -> dict[str, Any]:
        """``versions``, the variant ``chosen`` for each name, the rates ``tried`` and what ``failed``."""
        return {} if self.failure else self._about

    def kept(self, rates: Mapping[str, float]) -> dict[str, float]:
        """Without the process's rates if it failed on the way."""
        lost = self._about.get("chosen", {}) if self.failure else {}
        return {name: rate for name, rate in rates.items() if name not in lost}

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
        """The reply's ``key``; None if there is no good one, now or before."""
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
            self._fail("its reply is not one")
        except _Gone as gone:
            self._fail(str(gone))
        except BrokenPipeError:
            self._fail(self._end())
        except ValueError:
            self._fail("its reply is not JSON")
        return None

    def _line(self) -> bytes:
        assert self._process
        assert self._process.stdout
        end = time.monotonic() + self._patience
        while b"\n" not in self._read:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise _Gone(f"no reply for {self._patience:.0f} seconds")
            got = os.read(self._process.stdout.fileno(), 1 << 16)
            if not got:
                raise _Gone(self._end())
            self._read += got
        line, _, self._read = self._read.partition(b"\n")
        return line

    def _end(self) -> str:
        """How the process ended, and the last that it said."""
        assert self._process
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            return "it stopped speaking"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"it ended with exit code {code}" + (f": {lines[-1]}" if lines else "")

    def _fail(self, why: str) -> None:
        self.failure = "".join(map(shown, why))
        self._say(f"PyTorch and ONNX Runtime are left out: {self.failure}")


@contextmanager
def open(python: str | None, sizes: Sizes, threads: int, budget: float, say: Callable[[str], None]) -> Iterator[Worker]:
    """The worker run by ``python``; without one, a worker that has no rates."""
    worker = Worker(say)
    try:
        if python is not None:
            # -I: neither the script's folder nor the user's modules get in the way of the environment's.
            worker.start([python, "-I", str(WORKER)], sizes, threads, budget)
        yield worker
    finally:
        worker.stop()


def ratios(train: Mapping[str, float], forward: Mapping[str, float], rates: Mapping[str, float]) -> dict[str, float]:
    """Ours / theirs, as far as theirs are in ``rates``; ``train`` and ``forward`` are our rates by precision."""

    def theirs(kind: str, peer: str) -> dict[str, float]:
        start = f"{kind}, {peer}, "
        return {name[len(start) :]: rate for name, rate in rates.items() if name.startswith(start)}

    found = {}
    if torch := theirs("train", "torch"):
        found["train_vs_torch"] = max(train.values()) / max(torch.values())
        if same := [train[precision] / torch[precision] for precision in train if precision in torch]:
            found["train_vs_torch_same_precision"] = min(same)
    for peer in ("torch", "onnxruntime"):
        if fastest := theirs("forward", peer):
            found[f"forward_vs_{peer}"] = max(forward.values()) / max(fastest.values())
    return found
