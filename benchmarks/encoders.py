"""Vectors of texts by pre-trained sentence encoders, which a worker computes in an environment of its own."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crepe_dist.errors import UserError
from crepe_dist.files import cache_folder

WORKER = Path(__file__).with_name("encoders_worker.py")
CHUNK = 2048  # texts after which their vectors are saved
Vector = npt.NDArray[np.float32]


def vectors(model: str, texts: list[str]) -> Vector:
    """Return the vectors of texts, float32 [n, d]. Those of a text are computed once, and saved in the user's cache."""
    known, keys = _saved(model), [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    new = {key: text for key, text in zip(keys, texts) if key not in known}
    longest_first = sorted(new, key=lambda key: -len(new[key]))
    for start in range(0, len(longest_first), CHUNK):
        some = longest_first[start : start + CHUNK]
        rows = _encode(model, [new[key] for key in some])
        folder = _folder(model)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / f"{some[0]}.npz", keys=np.array(some), vectors=rows)
        known.update(zip(some, rows))
    return np.stack([known[key] for key in keys])


@functools.cache
def _saved(model: str) -> dict[str, Vector]:
    known: dict[str, Vector] = {}
    for path in _folder(model).glob("*.npz"):
        with np.load(path, allow_pickle=False) as saved:
            known.update(zip(saved["keys"].tolist(), saved["vectors"]))
    return known


def _folder(model: str) -> Path:
    return cache_folder() / "vectors" / model


def _encode(model: str, texts: list[str]) -> Vector:
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "texts.json", Path(scratch) / "vectors.npy"
        source.write_text(json.dumps(texts), encoding="utf-8")
        worker = [os.environ.get("UV", "uv"), "run", "--script", str(WORKER), model, str(source), str(target)]
        done = subprocess.run(worker, capture_output=True, text=True)
        if done.returncode != 0:
            raise UserError(f"{model} failed", done.stderr[-1000:], "run the command by itself")
        encoded: Vector = np.load(target, allow_pickle=False)
        return encoded
