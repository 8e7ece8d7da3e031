"""Preparation in parts: quick, with tasks that only pretend; and on a Ray cluster."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from crepe_dist import extras
from crepe_dist.clusters import parts
from crepe_dist.errors import ExitCode, UserError
from crepe_dist.prepare import main
from tests.chaos import harness
from tests.clusters.cluster import Cluster, running
from tests.conftest import write_csv

ROWS = 5000


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder with a file of the training split and one of the test split."""
    (tmp_path / "in").mkdir()
    write_csv(tmp_path / "in" / "train.csv", ROWS, seed=1)
    write_csv(tmp_path / "in" / "test.csv", 300, seed=2)
    return tmp_path


@pytest.fixture
def pretended(sources: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the sources, in which tasks run one after the other."""
    monkeypatch.setattr(parts, "_on_ray", lambda tasks: itertools.starmap(parts.prepare_part, tasks))
    monkeypatch.setattr(extras, "require", lambda *_: None)
    monkeypatch.chdir(sources)
    return sources


def contents(folder: Path) -> dict[str, bytes]:
    """The files; the reports without the command that they name."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in files.keys() & {"report.html", "report.json"}:
        files[name] = re.sub(rb'<pre>.*</pre>|"command": ".*"', b"", files[name])
    return files


def prepared(*arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["prepare", *arguments])
        main()


def test_the_bytes_are_those_of_one_process(pretended: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ("in", "--dedupe", "near", "--validation", "0.1")
    prepared(*flags, "--out", "alone/data")
    prepared("--on", "ray", "--out=parts/data", "--parts=3", *flags)
    assert f"part 3 of 3, on {socket.gethostname()}" in capfd.readouterr().err
    assert contents(pretended / "parts" / "data") == contents(pretended / "alone" / "data")
    assert [path.name for path in (pretended / "parts").iterdir()] == ["data"]
    with pytest.raises(UserError, match="data exists"):
        prepared("--on", "ray", *flags, "--out=parts/data", "--parts=3")
    prepared("--on", "ray", "--out=parts/data", "--parts=2", "--overwrite", "--", "in")
    assert contents(pretended / "parts" / "data") != contents(pretended / "alone" / "data")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["in", "--on", "ray"], "--on and --parts belong together"),
        (["in", "--parts", "2"], "--on and --parts belong together"),
        (["-", "--on", "ray", "--parts", "2"], "- cannot be combined with --on"),
        (["in", "--on", "ray", "--parts", "2", "--processes", "3"], "--processes cannot be combined with --on"),
        (["in", "--on", "ray", "--parts", "2", "--propose-labels", "a.csv"], "--propose-labels cannot be combined"),
        (["nowhere", "--on", "ray", "--parts", "2"], f"part 1 of 2 on {socket.gethostname()} ended with code 1 "),
    ],
)
def test_mistakes(pretended: Path, flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepared(*flags, "--out", "out")
    assert [path.name for path in pretended.iterdir()] == ["in"]


def test_nodes_that_are_not_alike(pretended: Path) -> None:
    task = (1, ["-m", "crepe_dist.prepare", "in", "--out=out"])
    other = parts.prepare_part(*task, str(pretended), str(pretended), "0.0.1")
    assert f"error: another version of crepe_dist on {socket.gethostname()}" in other.printed
    unshared = parts.prepare_part(*task, str(pretended), f"{pretended}/nowhere", parts.__version__)
    assert f"error: no process can be started on {socket.gethostname()}" in unshared.printed
    unshared = parts.prepare_part(*task, f"{pretended}/nowhere", str(pretended), parts.__version__)
    assert f"error: {socket.gethostname()} has no {pretended}/nowhere" in unshared.printed
    assert [part.code for part in (other, unshared)] == [ExitCode.ERROR] * 2


def test_without_its_folder_a_part_ends(pretended: Path) -> None:
    """The folder goes when the command has been stopped."""
    (pretended / "parts").mkdir()
    threading.Timer(0.3, (pretended / "parts").rmdir).start()
    arguments = ["-c", "import time; time.sleep(1000)"]
    part = parts.prepare_part(1, arguments, str(pretended / "parts"), str(pretended), parts.__version__)
    assert part.code == -signal.SIGTERM


def test_a_cluster_prepares_what_one_process_does(sources: Path, cluster: Cluster) -> None:
    on = ("--on", "ray", "--parts", "3")
    for flags in (("--out", "alone/data"), (*on, "--out", "parts/data")):
        preparing = cluster.prepare("in", "--dedupe", "near", *flags)
        _, stderr = preparing.communicate(timeout=200)
        assert preparing.returncode == 0, stderr
    assert "part 2 of 3, on " in stderr
    assert contents(sources / "parts" / "data") == contents(sources / "alone" / "data")
    preparing = cluster.prepare("nowhere", *on, "--out", "other")
    _, stderr = preparing.communicate(timeout=200)
    assert preparing.returncode == ExitCode.ERROR
    assert "error: nowhere does not exist" in stderr
    assert f"of 3 on {socket.gethostname()} ended with code 1" in stderr
    assert "Traceback" not in stderr


def test_a_request_to_stop_ends_the_parts(sources: Path, cluster: Cluster) -> None:
    (sources / "long.csv").write_bytes((sources / "in" / "train.csv").read_bytes() * 400)
    preparing = cluster.prepare("long.csv", "--on", "ray", "--parts", "2", "--out", "out")
    harness.wait_for(lambda: len(list(sources.glob(".out.copies-*/.*.partial-*"))) == 2)
    preparing.terminate()
    _, stderr = preparing.communicate(timeout=60)
    assert preparing.returncode == ExitCode.INTERRUPTED, stderr
    assert "Traceback" not in stderr
    harness.wait_for(lambda: not running(f"--out={sources}"))
    assert not list(sources.glob(".out*"))


def test_a_part_that_is_killed_is_told(sources: Path, cluster: Cluster) -> None:
    (sources / "long.csv").write_bytes((sources / "in" / "train.csv").read_bytes() * 400)
    preparing = cluster.prepare("long.csv", "--on", "ray", "--parts", "2", "--out", "out")
    harness.wait_for(lambda: len(running(f"--out={sources}")) == 2)
    os.kill(running("--part=2/2")[0], signal.SIGKILL)
    _, stderr = preparing.communicate(timeout=60)
    assert preparing.returncode == 128 + signal.SIGKILL, stderr
    assert "error: part 2 of 2 on " in stderr
    assert "was killed by signal 9 (SIGKILL); perhaps the machine ran out of memory" in stderr
    harness.wait_for(lambda: not running(f"--out={sources}"))
    assert not list(sources.glob(".out*"))


def test_no_cluster_is_told(environment: Callable[[str], Path], sources: Path) -> None:
    flags = ["prepare", "in", "--on", "ray", "--parts", "2", "--out", "out"]
    done = subprocess.run(
        [environment("ray") / "crepe", *flags], cwd=sources, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "error: there is no Ray cluster" in done.stderr
    assert "Traceback" not in done.stderr
