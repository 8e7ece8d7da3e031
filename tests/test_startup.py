"""The first moments: signals before a command has begun."""

import os
import signal
import subprocess
import sys
import time

import pytest

SLOW = "import pathlib, time\npathlib.Path('importing').touch()\ntime.sleep(60)\n"


@pytest.mark.parametrize(
    ("module", "number", "code"),
    [
        (["crepe_dist.train"], signal.SIGTERM, 75),
        (["crepe_dist", "supervise"], signal.SIGUSR2, 75),
        (["crepe_dist", "supervise"], signal.SIGHUP, 75),
        (["crepe_dist", "train"], signal.SIGINT, 130),
    ],
)
def test_a_signal_during_the_imports(tmp_path, module, number, code):
    (tmp_path / "difflib.py").write_text(SLOW)
    with subprocess.Popen(
        [sys.executable, "-m", *module],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        until = time.monotonic() + 60
        while not (tmp_path / "importing").exists() and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert said == f"stopped by {number.name} before the command started\n"
