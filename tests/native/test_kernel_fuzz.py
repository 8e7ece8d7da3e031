"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer, with random shapes, batches and tables."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crepe_dist.native.library import FOLDER

CASES = 100
FLAGS = (
    "-std=c++17 -O1 -g -march=native -fno-strict-aliasing -fopenmp -fPIC -shared -Wno-psabi "
    "-fsanitize=address,undefined -fno-sanitize-recover=undefined"
)


@pytest.mark.slow
def test_no_access_is_out_of_bounds_and_no_behaviour_undefined(tmp_path):
    compiler = shutil.which("g++")
    sanitizer = subprocess.run([compiler or "true", "-print-file-name=libasan.so"], capture_output=True, text=True)
    if not compiler or not Path(sanitizer.stdout.strip()).is_absolute():
        pytest.skip("there is no g++ with AddressSanitizer")
    library = tmp_path / "crepe_watched.so"
    subprocess.run([compiler, *FLAGS.split(), *map(str, FOLDER.glob("*.cpp")), "-o", str(library)], check=True)
    watched = {"LD_PRELOAD": sanitizer.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}  # Python leaks on purpose
    command = [sys.executable, "-m", "tests.helpers.kernel_fuzz", str(tmp_path), "0", str(CASES)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env={**os.environ, **watched}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-6000:]
    assert done.stdout.endswith("all well\n")
