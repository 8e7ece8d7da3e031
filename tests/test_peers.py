"""Peers of the benchmark: protocol, environment and ratios; only one test needs PyTorch."""

from __future__ import annotations

import json
import math
import multiprocessing
import subprocess
import sys
import time

import pytest

from crepe_dist.benchmarking import peers, peers_environment
from crepe_dist.benchmarking.peers_worker import Peers, Variant
from crepe_dist.benchmarking.suite import TINY
from crepe_dist.errors import UserError
from tests.conftest import command, run

ABOUT = {"versions": {}, "chosen": {"train, torch, float32": "eager"}, "tried": {}, "failed": {}}
GOOD = f"""
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "prepare":
        assert request["sizes"]["convolutions"][0] == [7, True] and request["budget"] == 3
        print(json.dumps({{"about": {ABOUT!r}}}), flush=True)
    else:
        print(json.dumps({{"rate": request["seconds"] * 2}}), flush=True)
"""
PREPARED = f"import json, sys, time; sys.stdin.readline(); print(json.dumps({{'about': {ABOUT!r}}}), flush=True);"


@pytest.fixture
def start(tmp_path):
    """Starts a worker that is a Python program given as text; with a list for what it says to the user."""
    workers = []

    def of(program, patience=20.0):
        script = tmp_path / "worker.py"
        script.write_text(program)
        said: list[str] = []
        worker = peers.Worker(said.append, patience)
        workers.append(worker)
        worker.start([sys.executable, str(script)], TINY, threads=1, budget=3)
        return worker, said

    yield of
    for worker in workers:
        worker.stop()


def test_a_worker_is_asked_for_each_rate(start):
    worker, said = start(GOOD)
    runs = worker.runs(4.0)
    assert worker.about() == ABOUT
    assert {name: run() for name, run in runs.items()} == {"train, torch, float32": 8.0}
    assert worker.kept({"ours": 1, "train, torch, float32": 8}) == {"ours": 1, "train, torch, float32": 8}
    assert said == []
    worker.stop()
    assert worker._process.returncode == 0


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import sys; sys.exit('no module torch')", "exit code 1: no module torch"),
        ("import sys; sys.stdin.readline(); print('hello')", "not JSON"),
        ("import sys; sys.stdin.readline(); print('[]')", "is invalid"),
        ("import sys; sys.stdin.readline(); print('{}')", "is invalid"),
        ("import sys; sys.stdin.readline(); sys.stdout.buffer.write(bytes([255, 10]))", "not JSON"),
    ],
)
def test_a_worker_that_does_not_start_leaves_a_line_and_no_rates(start, program, why):
    worker, said = start(program)
    assert len(said) == 1
    assert why in said[0]
    assert "\n" not in said[0]
    assert worker.runs(1.0) == {}
    assert worker.about() == {}


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (PREPARED + "sys.stdin.readline(); sys.exit('boom')", "exit code 1: boom"),
        (PREPARED + "time.sleep(60)", "no reply"),
        (PREPARED + "sys.stdin.readline(); print('\\x1b[2J')", "not JSON"),
    ],
)
def test_a_worker_that_fails_on_the_way_takes_its_rates_with_it(start, program, why):
    worker, said = start(program, patience=1.0)
    ((name, measure),) = worker.runs(1.0).items()
    assert math.isnan(measure())
    assert math.isnan(measure())
    assert len(said) == 1
    assert why in said[0]
    assert worker.kept({"ours": 1.0, name: math.nan}) == {"ours": 1.0}
    assert worker.about() == {}


def test_an_interpreter_that_does_not_run_leaves_a_line(tmp_path):
    said: list[str] = []
    with peers.started(str(tmp_path / "absent"), TINY, 1, 1.0, said.append, 1.0) as worker:
        assert worker.runs(1.0) == {}
    assert len(said) == 1


def test_no_interpreter_no_rates():
    with peers.started(None, TINY, 1, 1.0, pytest.fail, 1.0) as worker:
        assert worker.runs(1.0) == {}
        assert worker.kept({"ours": 1.0}) == {"ours": 1.0}
        assert worker.about() == {}


def test_a_variant_that_takes_too_long_is_ended_and_its_like_are_not_tried():
    def variant(name: str, how: str, units: int, seconds: float) -> Variant:
        def work() -> int:
            time.sleep(seconds)
            return units

        return Variant(name, how, lambda: work)

    def failing():
        raise ValueError("no compiler\n...")

    variants = [
        variant("train", "eager", 1, 0.01),
        Variant("train", "compiled", failing),
        variant("train", "fast", 1000, 0.01),
        variant("bfloat16", "eager", 1, 60),
        variant("bfloat16", "compiled", 1, 0.01),
        variant("slow", "eager", 1, 0.3),
    ]
    peers = Peers(variants, budget=10, patience=2)
    about = peers.about()
    assert about["chosen"] == {"train": "fast", "slow": "eager"}
    assert about["failed"] == {
        "train: compiled": "ValueError: no compiler",
        "bfloat16: eager": "not finished in 2 s",
        "bfloat16: compiled": "not tried, as another was not finished",
    }
    assert peers.rate("train", 0.01) > 0
    assert peers.rate("slow", 0.1) == about["tried"]["slow"]["eager"]  # a unit takes longer than two measurements
    assert len(multiprocessing.active_children()) == 2
    peers.end()
    assert not multiprocessing.active_children()


def test_ratios():
    rates = {
        "train, torch, float32": 50.0, "train, torch, bfloat16": 400.0, "forward, torch, float32": 300.0,
        "forward, torch, bfloat16": 1000.0, "forward, onnxruntime, float32": 200.0, "train, documents": 100.0,
    }  # fmt: skip
    both = {"float32": 100.0, "bfloat16": 200.0}
    assert peers.ratios(both, {"float32": 250.0}, rates) == {
        "train_vs_torch": 0.5,
        "train_vs_torch_same_precision": 0.5,
        "forward_vs_torch": 0.25,
        "forward_vs_onnxruntime": 1.25,
    }
    assert peers.ratios({"float32": 100.0}, {"float32": 1.0}, rates)["train_vs_torch_same_precision"] == 2.0
    assert peers.ratios(both, both, {"train, documents": 1.0}) == {}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache; environments get no pip, and one that installs by noting that it was asked."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(peers_environment, "NEEDED", (3, 9))
    monkeypatch.setattr(peers_environment.venv, "create", lambda folder, **_: (folder / "bin").mkdir(parents=True))
    return tmp_path / "crepe_dist"


def test_the_environment_is_made_once(cache, monkeypatch):
    installed: list[object] = []
    monkeypatch.setattr(peers_environment, "_install", installed.append)
    said: list[str] = []
    first = peers_environment.interpreter(said.append)
    assert peers_environment.interpreter(said.append) == first
    assert len(installed) == len(said) == 1
    (folder,) = cache.iterdir()
    assert first == str(folder / "bin" / "python")
    (folder / "complete").unlink()
    assert peers_environment.interpreter(said.append) == first
    assert len(installed) == 2


@pytest.mark.parametrize(
    "error", [subprocess.CalledProcessError(1, "pip", stderr="a\nno such version\n"), OSError("x")]
)
def test_an_environment_that_cannot_be_installed_is_not_left_behind(cache, monkeypatch, error):
    def install(python):
        raise error

    monkeypatch.setattr(peers_environment, "_install", install)
    with pytest.raises(UserError, match="could not be installed") as raised:
        peers_environment.interpreter(lambda _: None)
    assert raised.value.why in ("no such version", "x")
    assert list(cache.iterdir()) == []


def test_an_old_python_has_none(cache, monkeypatch):
    monkeypatch.setattr(peers_environment, "NEEDED", (4, 0))
    with pytest.raises(UserError):
        peers_environment.interpreter(pytest.fail)


def test_a_wrong_interpreter_is_a_mistake(complaint, tmp_path):
    assert "absent" in complaint("bench", "--tiny", "--peers", "absent", cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(sys.version_info < peers_environment.NEEDED, reason="PyTorch and ONNX Runtime need a newer Python")
def test_it_really_compares(tmp_path):
    run(command("bench", "--tiny", "--json", "figures.json"), tmp_path, seconds=1200)
    figures = json.loads((tmp_path / "figures.json").read_text())
    names = {"train_vs_torch", "train_vs_torch_same_precision", "forward_vs_torch", "forward_vs_onnxruntime"}
    assert names < set(figures)
    assert set(figures["peers"]["versions"]) == {"torch", "onnx", "onnxruntime"}
