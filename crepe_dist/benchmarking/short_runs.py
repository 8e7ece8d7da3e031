"""Short runs of ``crepe_dist.train`` that a benchmark starts: comparing two, and finding the processes of one.

It does not import MXNet: ``benchmarks/gpu.py`` reports that MXNet cannot be imported.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from crepe_dist.files import read_json
from crepe_dist.model import params_file

TRAIN = (sys.executable, "-m", "crepe_dist.train")


def compared(mine: Path, theirs: Path, tolerance: float) -> dict[str, Any]:
    """Compare the runs in two folders, both of which are finished and recorded every step.

    Args:
        tolerance: largest difference of two losses that is ``ok``, in nats.

    Returns:
        ``steps``, how many both runs recorded; the largest difference of the losses of the first, the second and any
        of them; of ``parameters`` at the end; and ``ok``.
    """
    losses, ends = _losses(mine), _losses(theirs)
    common = sorted(losses.keys() & ends.keys())
    apart = [abs(losses[step] - ends[step]) for step in common]
    arrays, others = _parameters(mine), _parameters(theirs)
    worst = max(float(np.abs(arrays[name] - others[name]).max()) for name in others)
    found = {"steps": len(common), "first": apart[0], "second": apart[1], "any": max(apart), "parameters": worst}
    return {**found, "tolerance": tolerance, "ok": max(apart) <= tolerance}


def _losses(run: Path) -> dict[int, float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {each["step"]: each["loss"] for each in lines if each["event"] == "step"}


def _parameters(run: Path) -> Any:
    return params_file.read(run / read_json(run / "result.json")["checkpoint"])


def ranks(run: Path) -> dict[int, int]:
    """Map the rank of each process that trains in that folder to its process id."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words, settings = ((path / name).read_text(errors="replace").split("\0") for name in ("cmdline", "environ"))
            if words[:3] == list(TRAIN) and str(run) in words:
                found[int(dict(each.partition("=")[::2] for each in settings).get("HOROVOD_RANK", 0))] = int(path.name)
    return found
