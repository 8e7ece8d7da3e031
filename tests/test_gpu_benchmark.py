"""benchmarks/gpu.py on the CPU, and its parts; nothing is timed here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from crepe_dist.benchmarking import peers_environment, scaling, timeline
from crepe_dist.benchmarking.commands import call, started
from crepe_dist.benchmarking.sections import measured, table, tried
from crepe_dist.benchmarking.short_runs import TRAIN, compared, ranks
from crepe_dist.model import parameters
from tests import cuda_driver
from tests.conftest import run

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"
SITE = Path(__file__).parent / "gpu" / "site"
several = pytest.mark.skipif(bool(scaling.obstacle()), reason=scaling.obstacle() or "there are several processes")


def benchmark(data: Path, folder: Path, *flags: str, device: str = "cpu", seconds: float = 300) -> dict[str, dict]:
    """Run it with small sizes, and return its sections."""
    given = ("--device", device, "--small", "--data", str(data), "--json", "gpu.json", *flags)
    printed = run([sys.executable, str(SCRIPT), *given], folder, seconds=seconds)
    sections: dict[str, dict] = json.loads((folder / "gpu.json").read_text())["sections"]
    assert all(f"## {name}, " in printed for name in sections)
    return sections


@several
@pytest.mark.slow
def test_overlap_of_two_processes(data, tmp_path):
    found = benchmark(data, tmp_path, "--no-peers", "--only", "overlap")
    assert "error" not in found["overlap"]
    (row,) = found["overlap"]["rows"]
    assert row["allreduce_ms"] > 0
    assert row["overlap"] == 0, "on a CPU, all gradients are sent together, after the last one"


def test_a_section_that_cannot_run_leaves_the_others(data, tmp_path):
    found = benchmark(data, tmp_path, "--no-peers", "--processes", "1", "--only", "overlap", "correctness")
    assert found["overlap"]["error"].startswith("UserError: error: it needs several processes")
    assert found["overlap"]["rows"] == []
    assert "error" not in found["correctness"]
    (row,) = found["correctness"]["rows"]
    assert row["ok"]
    assert row["steps"] == 4
    assert row["parameters"] < 1e-4


@several
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_section(data, tmp_path):
    peers = () if sys.version_info >= peers_environment.NEEDED else ("--no-peers",)
    found = benchmark(data, tmp_path, *peers, seconds=1800)
    assert [name for name, section in found.items() if "error" in section] == []
    assert found["doctor"]["rows"][0]["ready"]
    assert [row["processes"] for row in found["parity"]["rows"]] == [2]
    assert found["parity"]["rows"][0]["ok"]
    by = {"crepe_dist"} if peers else {"crepe_dist", "PyTorch, eager", "PyTorch, compiled"}
    rows = found["throughput"]["rows"]
    assert {(row["processes"], row["batch"], row["by"]) for row in rows} == {
        (processes, batch, each) for processes in (1, 2) for batch in (8, 16) for each in by
    }
    assert all(row["rate"] > 0 for row in rows if "error" not in row)
    assert all(row["by"] == "PyTorch, compiled" for row in rows if "error" in row), "it needs a C++ compiler"
    assert [row["processes"] for row in found["scaling"]["rows"]] == [1, 2]
    (row,) = found["resume"]["rows"]
    assert row["ok"]
    assert row["parameters"] == row["any"] == 0, "a resumed run is bit-identical"


@several
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_on_gpus_that_are_none(data, tmp_path, monkeypatch):
    """Two contexts that say they are GPUs; see tests/gpu/stand_in.py."""
    for folder in ("site", "driver"):
        (tmp_path / folder).mkdir()
    site = cuda_driver.packages(tmp_path / "site")
    told = cuda_driver.environment(cuda_driver.driver(tmp_path / "driver"), DRIVER_GPUS=2)
    told["PYTHONPATH"] = os.pathsep.join([str(SITE), str(site), told["PYTHONPATH"]])
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    sections = ("correctness", "parity", "scaling", "overlap")
    found = benchmark(data, tmp_path, "--no-peers", "--only", *sections, device="gpu", seconds=1200)
    assert [name for name, section in found.items() if "error" in section] == []
    assert [row["precision"] for row in found["correctness"]["rows"]] == ["float32", "float16"]
    assert all(row["ok"] for name in ("correctness", "parity") for row in found[name]["rows"])
    assert [row["processes"] for row in found["scaling"]["rows"]] == [1, 2]
    assert [row["processes"] for row in found["overlap"]["rows"]] == [2, 2]


def test_a_section_that_fails_keeps_its_rows():
    def section():
        yield {"batch": 128, "rate": 12.5, "rates": [12.0, 13.0]}
        raise RuntimeError("out of\nmemory")

    found = measured(section, 60)
    assert found["rows"] == [{"batch": 128, "rate": 12.5, "rates": [12.0, 13.0]}]
    assert found["error"] == "RuntimeError: out of memory"
    lines = table("throughput", found).splitlines()
    assert lines[-3:] == ["| --- | --- |", "| 128 | 12.5 |", "RuntimeError: out of memory"]


def test_a_section_that_hangs_is_ended():
    def sleep():
        time.sleep(60)
        return {}

    def section():
        yield {"processes": 1}
        yield tried(sleep)

    begun = time.monotonic()
    found = measured(section, 0.2)
    assert time.monotonic() - begun < 30
    assert found["rows"] == [{"processes": 1}]
    assert found["error"] == "not finished after 0 s"
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_row_that_fails_leaves_the_others():
    assert tried(lambda: {"rate": 1.0}) == {"rate": 1.0}
    assert tried(lambda: {"rate": 1 / 0}) == {"error": "ZeroDivisionError: division by zero"}


def test_a_command_that_fails_says_its_last_words():
    program = "import sys; print('one'); sys.exit('no GPU')"
    with pytest.raises(RuntimeError, match=r"exit code 1: one \| no GPU"):
        call([sys.executable, "-c", program])
    assert call([sys.executable, "-c", program], codes=(1,)) == "one\n"


def test_a_command_does_not_outlive_its_block():
    with pytest.raises(KeyError), started([sys.executable, "-c", "import time; time.sleep(60)"]) as (process, _):
        raise KeyError
    assert process.returncode == -signal.SIGTERM


def test_processes_of_a_run_are_found_by_rank(tmp_path):
    arguments = [*TRAIN, "--run-dir", str(tmp_path)]
    assert ranks(tmp_path) == {}
    program = "import time; print(flush=True); time.sleep(60)"
    (tmp_path / "crepe_dist").mkdir()
    (tmp_path / "crepe_dist" / "__init__.py").touch()
    (tmp_path / "crepe_dist" / "train.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HOROVOD_RANK": "3"}
    with subprocess.Popen(arguments, env=environment, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        assert ranks(tmp_path) == {3: process.pid}
        process.kill()


def write_run(folder: Path, losses: dict[int, float], weight: float) -> Path:
    folder.mkdir()
    lines = [json.dumps({"event": "step", "step": step, "loss": loss}) for step, loss in losses.items()]
    (folder / "metrics.jsonl").write_text("\n".join([json.dumps({"event": "epoch"}), *lines]) + "\n")
    parameters.save({"0.weight": np.full((2, 3), weight, np.float32)}, folder / "last.params")
    (folder / "result.json").write_text(json.dumps({"checkpoint": "last.params"}))
    return folder


def test_two_runs_are_compared_by_step(tmp_path):
    """In float16, steps that overflow are skipped and recorded by neither name nor loss."""
    one = write_run(tmp_path / "one", {1: 1.0, 2: 0.5, 3: 0.25, 4: 0.125}, 1.0)
    other = write_run(tmp_path / "other", {2: 0.5, 3: 0.75, 4: 0.375}, 1.5)
    found = compared(one, other, 0.5)
    assert found == {
        "steps": 3, "first": 0.0, "second": 0.5, "any": 0.5, "parameters": 0.5, "tolerance": 0.5, "ok": True,
    }  # fmt: skip
    assert not compared(one, other, 0.4)["ok"]


def events(tensor: int, name: str, *spans: tuple[int, int, int]) -> list[dict]:
    """A tensor in Horovod's timeline: negotiated from the first time on, all-reduced from the second to the third."""
    found: list[dict] = [{"name": "process_name", "ph": "M", "pid": tensor, "args": {"name": name}}]
    for ready, began, ended in spans:
        inner = [{"ph": "B", "name": "NCCL_ALLREDUCE", "ts": began + 1}, {"ph": "E", "ts": ended - 1}]
        whole = [
            {"ph": "B", "name": "NEGOTIATE_ALLREDUCE", "ts": ready}, {"ph": "X", "name": "0", "ts": ready, "dur": 0},
            {"ph": "E", "ts": began}, {"ph": "B", "name": "ALLREDUCE", "ts": began}, *inner, {"ph": "E", "ts": ended},
        ]  # fmt: skip
        found += [{**each, "pid": tensor} for each in whole]
    return found


def test_overlap_is_what_travels_before_the_last_gradient_is_ready(tmp_path):
    """The first gradient travels for 30 µs, 20 of them before the second is ready, which takes another 10."""
    steps = range(0, 6000, 1000)
    found = [
        *events(1, "horovod_allreduce.0:17_1of2", *((at, at + 10, at + 40) for at in steps)),
        *events(2, "horovod_allreduce.0:17_2of2", *((at, at + 10, at + 40) for at in steps)),
        *events(3, "horovod_allreduce.17:17_1of1", *((at + 30, at + 40, at + 50) for at in steps)),
        *events(4, "horovod_allgather.hosts", (0, 1, 900)),
    ]
    path = tmp_path / "timeline.json"
    path.write_text("[\n" + "".join(json.dumps(each) + ",\n" for each in found))  # as of a process that was killed
    assert timeline.overlap(path) == {"steps": 3, "allreduce_ms": 0.04, "overlap": 0.5}
    path.write_text(json.dumps(events(4, "horovod_allgather.hosts", (0, 1, 900))))
    with pytest.raises(ValueError, match="no all-reduces"):
        timeline.overlap(path)


def test_a_process_that_feeds_a_gpu_keeps_its_threads_and_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert "OMP_NUM_THREADS" not in scaling.environment("gpu")
    assert scaling.environment()["OMP_NUM_THREADS"] == "1"
