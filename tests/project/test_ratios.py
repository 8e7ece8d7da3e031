"""benchmarks/ratios.py and gpu.py run; nothing is timed here."""

import json
import sys
from pathlib import Path

import pytest
import scaling

from tests.conftest import run
from tests.helpers.needs import needs

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RATIOS = {"train_vs_notebook", "encode_vs_notebook", "loader_documents_per_second"}
SCALING = set() if scaling.obstacle() else {"scaling_np2", "ngrams_scaling_np2", "crepe_scaling_np2"}
MEASURED = ("train_vs_fasttext", "predict_vs_fasttext", "predict_file_vs_memory")
SHORT_TEXTS = {f"{kind}_{measured}" for kind in ("ngrams", "crepe") for measured in MEASURED}
OTHER_TOOL = Path(__file__).with_name("other_tool.sh")


@pytest.mark.slow
def test_it_writes_its_figures_and_leaves_out_tools_that_fail(tmp_path):
    flags = ("--tiny", "--peers", str(OTHER_TOOL), "--device", "cpu", "--json", "figures.json")
    printed = run([sys.executable, str(BENCHMARKS / "ratios.py"), *flags], tmp_path)
    figures = json.loads((tmp_path / "figures.json").read_text())
    ratios = {name: value for name, value in figures.items() if isinstance(value, float) and name != "waiting"}
    assert set(ratios) == RATIOS | SCALING | SHORT_TEXTS
    assert all(value > 0 for rates in (figures["rates"], ratios) for value in rates.values())
    assert 0 <= figures["waiting"] <= 1
    assert all(name in printed for name in RATIOS)
    assert "PyTorch and ONNX Runtime are left out" in printed
    assert "no module torch" in printed
    assert set(figures["short_texts"]) > {"crepe_dist, ngrams", "crepe_dist, crepe"}


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
