"""Trial of the doctor: prepare a few texts and train on them, as a user would."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from crepe_dist.errors import UserError
from crepe_dist.files import write_text
from crepe_dist.scratch import scratch
from crepe_dist.supervising.training_process import LOG, QUIET, train

SECONDS = 120.0  # enough for imports from a slow disk, and for a GPU to compile its first step
ROWS = 64
SETTINGS = {"data.source": "data", "data.batch_size": ROWS, "model.buckets": 4096, "model.embeddings": 1024}
PREPARE = ("-m", "crepe_dist", "prepare", "rows.csv", "--out=data", "--test=0.5")
COMPUTED = re.compile(r"\d+ process(?:es)?, .*")


def trial(processes: int, device: str) -> str:
    """Train two steps in so many processes on this machine; return train's line about them.

    Raises:
        UserError: it failed.
    """
    with scratch() as folder:
        rows = [f"{'sunny,a warm' if row % 2 else 'rainy,a wet'} day number {row}" for row in range(2 * ROWS)]
        write_text(folder / "rows.csv", "\n".join(["label,text", *rows]) + "\n")
        done = subprocess.run([sys.executable, *PREPARE], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError("a few texts cannot be prepared", done.stderr.strip()[-1000:], "reinstall crepe_dist")
        settings = {**QUIET, **SETTINGS, "device": device, "training.epochs": 2, "run_dir": "run"}
        if not train(settings, folder, processes, SECONDS):
            why = f"not done within {SECONDS:g} s; its last line: {_log(folder).splitlines()[-1:]}"
            raise UserError("training a few texts hangs", why, "report this with the doctor's whole output")
        found = COMPUTED.search(_log(folder))
        return found[0] if found else "trained"


def _log(folder: Path) -> str:
    return (folder / LOG).read_text(encoding="utf-8", errors="replace")
