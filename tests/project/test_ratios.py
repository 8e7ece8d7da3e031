"""benchmarks/gpu.py runs; nothing is timed here."""

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import run
from tests.helpers.needs import needs

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@needs("g++")
def test_the_first_hour_on_a_gpu_on_emulated_ones(tmp_path):
    steps = ["machine", "squares", "sanitizer", "kernels", "throughput"]
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--emulator", "--only", *steps]
    printed = run(command, tmp_path)
    assert "2 × GPU of a test (an emulator: " in printed
    found = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert [step["outcome"] for step in found] == ["passed", "passed", "skipped", "passed", "passed"]
    assert any(row["sectors"] > 0 for row in found[3]["rows"]), "the emulator counts instead of timing"
    runs = [(row["network"], row["processes"]) for row in found[4]["rows"] if row["documents/s"] > 0]
    assert runs == [*(("crepe", processes) for processes in (1, 1, 2, 2, 1, 1)), ("paper", 1), ("paper", 2)]
