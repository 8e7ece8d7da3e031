"""The benchmark runs and its baselines do the same work; nothing is timed here."""

from __future__ import annotations

import json

import numpy as np
import pytest

from crepe_dist.benchmarking import notebook, scaling
from crepe_dist.data.alphabet import ALPHABET, BLANK, Encoding
from crepe_dist.networks.paper.shape import PaperShape
from crepe_dist.timing import alternate, paired, rate
from tests.conftest import command, run

RATIOS = {
    "train_vs_notebook", "train_vs_matmul_ceiling", "forward_vs_matmul_ceiling", "encode_vs_notebook",
    "loader_documents_per_second",
}  # fmt: skip
SCALING = set() if scaling.obstacle() else {"scaling_np2", "ngrams_scaling_np2", "crepe_scaling_np2"}
SHORT_TEXTS = {f"{kind}_{work}_vs_fasttext" for kind in ("ngrams", "crepe") for work in ("train", "predict")}
OTHER_TOOL = """#!/bin/sh
case "$2" in
*/short_texts_worker.py) echo '{"train_rate": 1e-3, "predict_rate": 1e-3, "seconds": 1.0, "accuracy": 0.5}' ;;
*) exit 1 ;;
esac
"""


@pytest.mark.slow
def test_it_writes_its_figures_and_leaves_out_peers_that_fail(tmp_path):
    other = tmp_path / "other-python"
    other.write_text(OTHER_TOOL, encoding="utf-8")
    other.chmod(0o700)
    flags = ("--tiny", "--peers", str(other), "--device", "cpu", "--json", "figures.json")
    printed = run(command("bench", *flags), tmp_path)
    figures = json.loads((tmp_path / "figures.json").read_text())
    ratios = {name: value for name, value in figures.items() if isinstance(value, float) and name != "waiting"}
    by_precision = {name for name in ratios if name.endswith(("_float32", "_bfloat16"))}
    assert set(ratios) - by_precision == RATIOS | SCALING | SHORT_TEXTS
    assert all(value > 0 for part in (figures["rates"], ratios) for value in part.values())
    assert all(figures[name] > 1 for name in SHORT_TEXTS)
    assert 0 <= figures["waiting"] <= 1
    assert all(name in printed for name in RATIOS)
    assert "PyTorch and ONNX Runtime are left out" in printed
    assert figures["machine"]["OMP_NUM_THREADS"]
    ours = {"crepe_dist, ngrams", "crepe_dist, crepe"}
    assert set(figures["short_texts"]) > ours
    assert all(value > 0 for name in ours for value in figures["short_texts"][name].values())


@pytest.mark.parametrize("text", ["", "plain words, 12 of them!", "Über-CAPITALS é", "x" * 200])
def test_the_baseline_encodes_as_the_notebook_s_mode_does(text):
    codes = Encoding("notebook", 123).encode([text])[0]
    one_hot = notebook.encode(text, 123)
    assert one_hot.shape == (len(ALPHABET), 123)
    assert np.array_equal(one_hot.any(axis=0), codes != BLANK)
    assert np.array_equal(one_hot.argmax(axis=0)[codes != BLANK], codes[codes != BLANK])


def test_operations_of_the_notebook_s_network():
    """The paper's small network on 1014 characters, added up by hand, in millions of multiplications."""
    shape = PaperShape(69, 1014, 7, 256, 1024)
    by_hand = [
        7 * 69 * 256 * 1008, 7 * 256 * 256 * 330, 3 * 256 * 256 * 108, 3 * 256 * 256 * 106, 3 * 256 * 256 * 104,
        3 * 256 * 256 * 102, 34 * 256 * 1024, 1024 * 1024, 1024 * 7,
    ]  # fmt: skip
    assert shape.forward_operations() == 2 * sum(by_hand)
    assert shape.training_operations() == 2 * (3 * sum(by_hand) - by_hand[0])


def test_rates_are_taken_in_turns():
    calls: list[str] = []

    def of(name, values):
        left = iter(values)

        def run():
            calls.append(name)
            return next(left)

        return run

    got = alternate({"a": of("a", [99, 1, 5, 2]), "b": of("b", [0, 7, 7, 8])}, rounds=3)
    assert got == {"a": 2, "b": 7}
    assert calls == ["a", "b"] * 4
    assert alternate({"a": of("a", [99, 1])}, rounds=9, until=0) == {"a": 99}
    assert rate(lambda: 5, 0) > 0


def test_a_ratio_of_rounds_does_not_see_what_slows_both():
    assert paired([4, 40, 8], [2, 20, 4]) == 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--json", "missing/x.json"), "there is no such folder"),
        (("--json", "."), "it is a folder"),
        (("--step-ms", "15"), "requires --project"),
        (("--link-gbps", "10"), "requires --project"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(flags, said, tmp_path, complaint):
    assert said in complaint("bench", "--tiny", "--no-peers", *flags, cwd=tmp_path)
