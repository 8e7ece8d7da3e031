"""The doctor: a real run on this machine, its verdicts on bad facts and trials, and no leftovers."""

from __future__ import annotations

import copy
import io
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from crepe_dist import doctor, machine
from crepe_dist.diagnosis import checks, inventory, outcome, trial
from crepe_dist.diagnosis.outcome import Check
from crepe_dist.diagnosis.trial import Trial, attempt, judge, trials
from crepe_dist.distributed.launch import horovodrun
from crepe_dist.doctor import verdict
from crepe_dist.errors import UserError
from crepe_dist.networks.paper.shape import PaperShape
from tests.conftest import command
from tests.helpers import cuda_driver
from tests.supervising.test_supervisor import left, until

needs_horovod = pytest.mark.skipif(horovodrun() is None, reason="Horovod is not installed")
# A rank 1 that adds wrongly, and whose weights change behind the back of the exchange.
FAULTY = """
import sys
from crepe_dist.distributed.horovod_world import HorovodWorld
from crepe_dist.diagnosis import trial_worker
from crepe_dist.training.step import TrainingStep
right_sum, right_step = HorovodWorld.sum, TrainingStep.__call__
def wrong_sum(self, array, name):
    total = right_sum(self, array, name)
    if self.rank == 1 and name == "doctor.sum":
        total[7] += 1
    return total
def wrong_step(self, batch, *rest):
    outcome = right_step(self, batch, *rest)
    if batch.first:
        values = {name: array.copy() for name, array in self.engine.values().items()}
        values["tower.out.bias" if "tower.out.bias" in values else "14.bias"] += 2.0 ** -20
        self.engine.set_values(values)
    return outcome
HorovodWorld.sum, TrainingStep.__call__ = wrong_sum, wrong_step
trial_worker.main()
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('still here', flush=True)\n"
STUBBORN += "while True: time.sleep(60)"


@pytest.fixture
def environment():
    """Mark the environment so that inheriting processes can be found; none may remain."""
    value = uuid.uuid4().hex
    yield {**os.environ, "CREPE_DIST_TEST": value}
    until(lambda: not left(f"CREPE_DIST_TEST={value}"), "processes are left")


@pytest.fixture(scope="module")
def diagnosis(tmp_path_factory):
    """Return the doctor's JSON on this machine."""
    folder = tmp_path_factory.mktemp("diagnosis")
    done = subprocess.run(command("doctor", "--json"), cwd=folder, stdout=-1, stderr=-1, text=True, timeout=200)
    assert not list(folder.iterdir())
    return {**json.loads(done.stdout), "code": done.returncode, "said": done.stderr}


@pytest.fixture
def found(diagnosis):
    """Its facts, to be made worse."""
    return copy.deepcopy(diagnosis["facts"])


@needs_horovod
def test_this_machine_is_ready(diagnosis):
    assert (diagnosis["ready"], diagnosis["code"]) == (True, 0)
    assert diagnosis["verdict"].startswith("ready: for one process or several, on the CPU")
    names = [check["name"] for check in diagnosis["checks"]]
    assert len(names) == len(set(names))
    wanted = {"versions", "MXNet", "Horovod", "processor", "cores", "threads", "memory", "CPU kernels", "precision"}
    wanted |= {"NVIDIA driver", "runs/", "data/", "/dev/shm", "limits", "host name", "all-reduce", "training step"}
    assert wanted <= set(names)
    assert all(check["shows"] for check in diagnosis["checks"])
    assert not [check for check in diagnosis["checks"] if check["level"] == "problem"]
    (tried,) = (each for each in diagnosis["trials"] if each["device"] == "cpu")
    assert tried["processes"] == len(tried["ranks"]) == 2
    for network in ("crepe", "paper"):
        first, second = (rank[network] for rank in tried["ranks"])
        assert first["after"] == second["after"] != first["before"] == second["before"]
    assert diagnosis["facts"]["horovod"]["features"]["gloo"]
    assert diagnosis["said"] == "trying 2 processes on the CPU …\n"


def test_without_mxnet(found):
    found["mxnet"] = {"installed": False, "features": [], "trouble": ""}
    found["horovod"] = {"installed": False, "features": {}, "trouble": ""}
    found["kernels"] = {"build": "avx2", "trouble": ""}
    found["machine"] |= {"Python": "3.13.1", "numpy": "2.3.0"}
    del found["machine"]["mxnet"]
    lines = {line.name: line for line in checks.checks(found)}
    assert (lines["MXNet"].level, lines["versions"].level, lines["Horovod"].level) == ("ok", "ok", "note")
    assert lines["MXNet"].shows == "not installed, and not needed for one process on the CPU"
    assert verdict(found, list(lines.values()), []).ready
    (tried,) = trials(found, lambda _: None, lambda device, size: Trial(device, size, 1.0, []))
    assert (tried.device, tried.processes) == ("cpu", 1)


def test_nothing_private_is_shown(diagnosis):
    said = json.dumps(diagnosis)
    assert str(Path.home()) + "/" not in said
    assert os.uname().nodename not in said.replace(diagnosis["facts"]["machine"]["system"], "")


def test_without_horovod(tmp_path, environment):
    import mxnet

    packages = Path(mxnet.__file__).parent.parent
    site = tmp_path / "site"
    site.mkdir()
    for entry in packages.iterdir():
        if not entry.name.startswith("horovod"):
            (site / entry.name).symlink_to(entry)
    instead = f"import sys\nsys.path[:] = [{str(site)!r} if p == {str(packages)!r} else p for p in sys.path]\n"
    (tmp_path / "sitecustomize.py").write_text(instead)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    done = subprocess.run(
        command("doctor"), cwd=tmp_path, env={**environment, "PYTHONPATH": path}, stdout=-1, text=True, timeout=200
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout
    assert "note     Horovod        not installed" in lines
    assert any(line.startswith("ok       training step  CPU, 1 process: ") for line in lines)
    assert lines[-1] == (
        "ready: for one process, on the CPU. For several, Horovod is missing: "
        "install it (`uv sync --inexact --group horovod`; without uv see docs/install.md)"
    )


@needs_horovod
def test_a_wrong_rank_is_detected(environment, tmp_path):
    script = tmp_path / "faulty.py"
    script.write_text(FAULTY)
    path = {**environment, "PYTHONPATH": str(Path(__file__).parents[2])}
    tried = attempt("cpu", 2, command=[str(script)], environment=path)
    (sums,) = judge(tried)
    assert (sums.level, sums.what) == ("problem", "the sums of rank 1 are wrong: 1 of 262,144")
    mended = [{**rank, "sum": {**rank["sum"], "wrong": 0}} for rank in tried.ranks]
    good, weights = judge(replace(tried, ranks=mended))
    assert good.level == "ok"
    assert weights.level == "problem"
    assert weights.what == "the weights of rank 1 differ from those of rank 0 after one step"


def test_a_worker_that_hangs_is_ended(environment, monkeypatch):
    monkeypatch.setattr(trial, "GRACE_SECONDS", 0.3)
    began = time.monotonic()
    tried = attempt("cpu", 2, 1.5, ["-S", "-c", STUBBORN], environment)
    assert time.monotonic() - began < 20
    (check,) = judge(tried)
    assert check.level == "problem"
    assert check.why.startswith("timed out after 1.5 s")
    assert "still here" in check.why


def test_a_trial_whose_doctor_is_ended_leaves_nothing(environment):
    worker = ["-S", "-c", STUBBORN]
    code = f"from crepe_dist.diagnosis.trial import attempt; attempt('cpu', 2, 60, {worker!r})"
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    marker = f"CREPE_DIST_TEST={environment['CREPE_DIST_TEST']}"
    until(lambda: len(left(marker)) >= 3, "doctor and workers")
    process.send_signal(signal.SIGTERM)
    process.wait(20)


def test_a_worker_that_crashes_is_told_of():
    def crash(device: str, processes: int) -> Trial:
        code = f"import os; print('last words'); os.kill(os.getpid(), 11 if {processes} > 1 else 9)"
        return attempt(device, processes, 60, ["-S", "-u", "-c", code])

    said: list[str] = []
    given = on([], {"gloo": True})
    both = list(trials(given, said.append, crash))
    assert [each.processes for each in both] == [2, 1]  # alone it may work
    assert said == ["trying 2 processes on the CPU …", "trying 1 process on the CPU …"]
    (check,) = judge(both[0])
    assert "SIGSEGV" in check.why
    assert "last words" in check.why
    assert "SIGKILL" in judge(both[1])[0].why


def on(engines: list[str], features: dict[str, bool], *, nccl: bool = False) -> inventory.Facts:
    """Facts of a machine with a GPU for each engine."""
    plans = {"GPUs": [{"crepe": {"kernels": each}} for each in engines], "trouble": ""}
    gpus = [{"name": "", "capability": [8, 0]}] * len(engines)
    cuda = {"nccl": nccl}
    return {"mxnet": {"trouble": ""}, "horovod": {"features": features}, "gpus": gpus, "plans": plans, "cuda": cuda}


@pytest.mark.parametrize(
    ("gpus", "features", "processes"),
    [
        (1, {"gloo": True, "cuda": True}, 2),
        (1, {"gloo": True, "cuda": True, "nccl": True}, 1),
        (4, {"gloo": True, "cuda": True}, 4),
        (4, {"gloo": True, "cuda": False}, 1),
        (4, {}, 1),
    ],
)
def test_which_groups_try_gpus(gpus, features, processes):
    good: list[dict[str, Any]] = [{"sum": {"numbers": 1, "wrong": 0}, "crepe": STEP, "paper": STEP}] * 4
    given = on(["mxnet"] * gpus, features)
    tried = trials(given, lambda _: None, lambda device, size: Trial(device, size, 1.0, good[:size]))
    assert [(each.device, each.processes) for each in tried] == [("cpu", 2 if features else 1), ("gpu", processes)]
    for nccl in (False, True):
        given = on(["own"] * gpus, features, nccl=nccl)  # they need no Horovod with CUDA
        tried = trials(given, lambda _: None, lambda device, size: Trial(device, size, 1.0, good[:size]))
        on_gpus = gpus if gpus > 1 else 1 if nccl else 2
        assert [each.processes for each in tried][1:] == [on_gpus if features else 1]
    given = on(["own"] * (gpus - 1) + [""], features)
    tried = trials(given, lambda _: None, lambda device, size: Trial(device, size, 1.0, good[:size]))
    assert {each.device for each in tried} == {"cpu"}


STEP = {"computed": "float32", "summed by": "Horovod", "before": "a", "after": "b", "finite": True}


@pytest.mark.parametrize(
    ("second", "trouble", "what"),
    [
        ({}, "", ""),
        ({"before": "c"}, "", "rank 1 differ from those of rank 0 before the step"),
        ({"after": "c"}, "", "rank 1 differ from those of rank 0 after one step"),
        ({"finite": False}, "", "infinity or NaN"),
        ({}, "rank 1 ended with code 70", "fail at their end"),
    ],
)
def test_what_is_said_of_weights(second, trouble, what):
    sums = {"numbers": 10, "wrong": 0}
    ranks: list[dict[str, Any]] = [
        {"sum": sums, "crepe": STEP, "paper": STEP}, {"sum": sums, "crepe": STEP, "paper": {**STEP, **second}}
    ]  # fmt: skip
    _, check = judge(Trial("cpu", 2, 1.0, ranks, trouble))
    assert (check.level == "problem") == bool(what)
    assert what in check.what


GB = 10**9
WRONG_THREADS = {"threads": {"trouble": "OMP_NUM_THREADS is 'x'", "remedy": "unset it"}}
NOT_ALLOWED = {"free": 0, "total": 0, "trouble": "Permission denied"}
OF_CUDA = {"features": ["CUDA", "CUDNN"], "wheel": True}
OWN = {"kernels": "own", "plan": "bfloat16, own kernels (CUDA, sm_80)", "why": "", "remedy": ""}
MXNETS = {"kernels": "mxnet", "plan": "float16, MXNet's operators", "why": "NVRTC is missing", "remedy": "install it"}
NEITHER = {"kernels": "", "what": "no engine can compute", "why": "both are missing", "remedy": "install one"}


@pytest.mark.parametrize(
    ("name", "level", "what", "worse"),
    [
        ("versions", "problem", "numpy 2.0.0rc1 is too new", {"machine": {"numpy": "2.0.0rc1"}}),
        ("versions", "note", "two flavours", {"machine": {"mxnet-cu112": "1.9.1"}}),
        ("MXNet", "problem", "MXNet cannot be imported", {"mxnet": {"trouble": "OSError: libgomp.so.1"}}),
        ("Horovod", "note", "Horovod is not installed", {"horovod": {"installed": False}}),
        ("Horovod", "problem", "without Gloo", {"horovod": {"features": {"gloo": False, "mpi": True}}}),
        ("Horovod", "problem", "cannot be imported: undefined symbol", {"horovod": {"trouble": "undefined symbol"}}),
        ("horovodrun", "note", "another environment's", {"horovodrun": {"own": False}}),
        ("cores", "note", "4 cores may be used, but only for 1.5", {"cores": {"allowed": 4, "quota": 1.5}}),
        ("threads", "problem", "OMP_NUM_THREADS is 'x'", WRONG_THREADS),
        ("threads", "note", "OMP_NUM_THREADS is 999", {"threads": {"alone": 999}}),
        ("memory", "note", "only 100.0 MB of memory are free", {"memory": {"free": GB // 10}}),
        ("NVIDIA driver", "note", "nvidia-smi fails: no devices", {"driver": {"trouble": "no devices"}}),
        ("NVIDIA driver", "note", "a driver is installed", {"driver": {"device files": True}}),
        ("NVIDIA driver", "note", "GPU flavour is installed", {"mxnet": OF_CUDA}),
        ("CPU kernels", "note", "no compiled kernels", {"kernels": {"build": "", "trouble": "no AVX2"}}),
        ("CPU kernels", "problem", "nothing can train", {"kernels": {"build": "", "trouble": "no AVX2"},
                                                         "mxnet": {"installed": False}}),
        ("CPU kernels", "note", "avx512 are used, not", {"kernels": {"build": "avx512", "trouble": "old g++"}}),
        ("runs/", "problem", "runs/ is not writable", {"folders": {"runs": NOT_ALLOWED}}),
        ("data/", "problem", "only 9.0 MB left", {"folders": {"data": {"free": 9_000_000, "total": 1, "trouble": ""}}}),
        ("/dev/shm", "note", "/dev/shm is small", {"shared memory": {"free": 64 << 20}}),
        ("/dev/shm", "note", "cannot be used: No such", {"shared memory": {"trouble": "No such file"}}),
        ("limits", "note", "the limit of open files is low", {"limits": {"open files": 256}}),
        ("limits", "note", "limited to 4.0 GB", {"limits": {"address space": 4 * GB}}),
        ("host name", "problem", "no IPv4 address", {"hostname": {"trouble": "Name or service not known"}}),
    ],
)  # fmt: skip
def test_each_branch(found, name, level, what, worse):
    built = {"gloo": True, "cuda": True, "nccl": True}
    found["horovod"] = {"installed": True, "features": built, "trouble": ""}
    for subject, values in worse.items():
        found[subject].update(values)
    lines = checks.checks(found)
    (line,) = (line for line in lines if line.name == name)
    assert line.level == level
    assert what in line.what
    assert line.remedy
    end = verdict(found, lines, [])
    assert end.ready == (level == "note")
    assert end.ready or (what in end.text and line.remedy in str(end))


@pytest.mark.parametrize(
    ("engines", "level", "what", "shown"),
    [
        ({"crepe": OWN, "paper": NEITHER}, "ok", "", "crepe: bfloat16, own kernels (CUDA, sm_80); paper: on the CPU"),
        ({"crepe": MXNETS, "paper": MXNETS}, "note", "GPU 0 computes by MXNet's operators", "crepe: float16, MXNet's"),
        ({"crepe": NEITHER, "paper": NEITHER}, "note", "GPU 0 is not used: no engine can compute", "crepe: on the CPU"),
    ],
    ids=["own", "mxnet", "neither"],
)
def test_each_gpu_is_shown_with_its_engines(found, engines, level, what, shown):
    found["gpus"] = [{"name": "Some GPU", "capability": [8, 0]}]
    found["plans"]["GPUs"] = [engines]
    lines = checks.checks(found)
    (line,) = (line for line in lines if line.name == "GPU 0")
    assert line.level == level
    assert what in line.what
    assert line.shows.startswith("Some GPU; compute capability 8.0; crepe: ")
    assert shown in line.shows
    assert bool(line.remedy) == (level == "note")
    end = str(verdict(found, [each for each in lines if each.level != "problem"], [Trial("cpu", 1, 1.0, [])]))
    assert ("and 1 GPU" in end) == (engines["crepe"] is not NEITHER)


@pytest.mark.parametrize(
    ("gpus", "nvrtc", "nccl", "level", "shows"),
    [
        (0, None, False, "ok", ""),
        (1, [12, 8], False, "ok", "NVRTC 12.8, NCCL not found"),
        (2, [12, 8], False, "note", "NVRTC 12.8, NCCL not found"),
        (2, None, True, "ok", "NVRTC not found, NCCL"),
    ],
)
def test_libraries_of_our_kernels_for_gpus(found, gpus, nvrtc, nccl, level, shows):
    found["gpus"] = [{"name": "Some GPU", "capability": [8, 0]}] * gpus
    found["cuda"] |= {"nvrtc": nvrtc, "nccl": nccl}
    line = checks.cuda_kernels(found)
    assert (line.level, line.shows) == (level, shows)
    assert ("nvidia-nccl-cu12" in line.remedy or "--extra gpus" in line.remedy) == (level == "note")


def test_a_gpu_of_which_the_probe_found_out_nothing(found):
    found["gpus"] = [{"name": "", "capability": None}]
    found["plans"] = {"trouble": "the probe process ended with code -6"}
    (line,) = (line for line in checks.checks(found) if line.name == "GPU 0")
    assert line.what == "GPU 0 is not used: it is unknown what can compute on it"
    assert line.why == "the probe process ended with code -6"


def test_the_driver_is_asked(tmp_path, monkeypatch):
    """A driver of two GPUs."""
    code = "from crepe_dist.diagnosis.probe import gpus; print(gpus())"
    told = cuda_driver.environment(cuda_driver.driver(tmp_path), DRIVER_GPUS=2, DRIVER_CAPABILITY="9.0")
    printed = subprocess.run([sys.executable, "-c", code], env=told, stdout=-1, text=True, check=True).stdout
    each = "{'name': 'GPU of a test', 'capability': (9, 0)}"
    assert printed == f"[{each}, {each}]\n"
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(inventory, "TOOL_SECONDS", 0.5)
    for does, version, trouble in (
        ("echo 535.104", "535.104", ""),
        ("echo no driver; exit 9", "", "no driver"),
        ("exec sleep 60", "", "timed out"),
    ):
        tool.write_text(f"#!/bin/sh\n{does}\n")
        tool.chmod(0o755)
        requested = inventory._driver()
        assert requested["version"] == version
        assert trouble in requested["trouble"]
        assert bool(requested["trouble"]) == bool(trouble)


def test_a_probe_that_crashes_or_hangs():
    line = json.dumps({"kernels": {"build": "", "trouble": ""}})
    says = f"import time; print({line!r}); print('{{', flush=True);"
    crashed = inventory.probe((sys.executable, "-S", "-c", f"{says} import os; os.abort()"))
    assert crashed["kernels"] == {"build": "", "trouble": ""}
    assert "ended with code -6" in crashed["mxnet"]["trouble"]
    hung = inventory.probe((sys.executable, "-S", "-c", f"{says} time.sleep(60)"), 1.0)
    assert hung["horovod"]["trouble"] == "the probe process timed out after 1 s"
    assert hung["kernels"]["build"] == ""


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "runs").write_text("")
    assert inventory.folder(tmp_path / "runs")["trouble"]
    assert inventory.folder(tmp_path / "not" / "yet")["trouble"] == ""
    assert not list(tmp_path.glob("not"))
    assert inventory.folder(Path("/proc"))["trouble"]


@pytest.mark.parametrize(
    ("membership", "files", "quota", "free"),
    [
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5, None),
        ("3:cpu,cpuacct:/x", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5, None),
        ("3:cpu:/x", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, None, None),
        ("0::/", {"memory.max": "5000", "memory.current": "4000", "memory.stat": "inactive_file 1500"}, None, 2500),
        ("2:memory:/x", {"memory/x/memory.limit_in_bytes": "100", "memory/x/memory.usage_in_bytes": "70",
                         "memory/x/memory.stat": "total_inactive_file 0"}, None, 30),
        ("0::/", {}, None, None),
    ],
)  # fmt: skip
def test_control_groups(tmp_path, monkeypatch, membership, files, quota, free):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "membership").write_text(membership + "\n")
    monkeypatch.setattr(machine, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(machine, "CONTROL_GROUPS", tmp_path)
    assert machine.core_quota() == quota
    available = machine.available_memory()
    assert available == free if free is not None else available > 10**6


def test_gradients_of_the_small_network_are_as_large_as_is_said():
    paper = PaperShape(alphabet_size=69, feature_len=1014, classes=4, filters=256, units=1024)
    assert 4 * paper.parameters == pytest.approx(checks.GRADIENT_BYTES, rel=0.02)


LINES = [
    Check("first", "fine " * 30),
    Check("second", "[bold]\x1b[31m", "note", "something is less", remedy="do this"),
    Check("third", "bad…", "problem", "it fails\nhere", "because", "do that"),
]


def test_plain_lines():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=file, width=40)
    outcome.show(LINES, console)
    outcome.explain(LINES, console)
    file.seek(0)
    assert file.read().splitlines() == [
        "ok       first          " + ("fine " * 30),
        "note     second         [bold]\\x1b[31m",
        "problem  third          bad\\u2026",
        "",
        "note: something is less",
        "  do:  do this",
        "",
        "problem: it fails\\nhere",
        "  why: because",
        "  do:  do that",
    ]


def test_quick_tries_nothing(found, monkeypatch, capsys):
    found["mxnet"]["trouble"] = ""
    monkeypatch.setattr(inventory, "collect", lambda: found)
    monkeypatch.setattr(sys, "argv", ["doctor", "--quick"])
    with pytest.raises(SystemExit) as ended:
        doctor.main()
    lines = capsys.readouterr().out.splitlines()
    assert (ended.value.code, lines[-1]) == (0, "ready: all checks passed; no training was tried (--quick)")
    found["mxnet"]["trouble"] = found["horovod"]["trouble"] = "OSError: libgomp.so.1"
    with pytest.raises(SystemExit) as ended:
        doctor.main()
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 1
    assert "note: Horovod could not be checked" in lines
    assert lines[-1].startswith("not ready: MXNet cannot be imported. Do: reinstall with `uv sync --inexact --group")
    assert "  why: OSError: libgomp.so.1" in lines


def test_it_is_not_started_by_a_launcher(monkeypatch):
    monkeypatch.setenv("HOROVOD_RANK", "0")
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["doctor"])
    with pytest.raises(UserError, match="started by horovodrun"):
        doctor.main()
