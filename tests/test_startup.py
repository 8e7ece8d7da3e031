"""The first moments: signals before a command has begun, and a Python that is too old."""

from __future__ import annotations

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
    assert said == f"stopped: {number.name}, before the command began\n"


@pytest.mark.parametrize("version", [(3, 7, 16), (3, 8, 20)])
@pytest.mark.parametrize(
    ("started", "begins"), [("-m", "error: "), ("/usr/bin/crepe", "error: "), ("mine.py", "Trace")]
)
def test_an_old_python_is_refused_with_the_command_to_type(version, started, begins):
    pretend = f"import sys; sys.version_info = {(*version, 'final', 0)}; sys.argv = [{started!r}]; import crepe_dist"
    done = subprocess.run([sys.executable, "-c", pretend], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(begins)
    assert f"error: Python {'.'.join(map(str, version))} is too old\n" in done.stderr
    assert "uv run -p 3.11 crepe train" in done.stderr.splitlines()[-1]
