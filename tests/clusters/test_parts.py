"""Preparation in parts: quick, with an engine that only pretends; and on a Ray and a Dask cluster."""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from crepe_dist import extras
from crepe_dist.clusters import parts
from crepe_dist.errors import UserError
from crepe_dist.prepare import main
from tests.clusters import test_dask, test_ray
from tests.clusters.cluster import Cluster
from tests.conftest import command, run, write_csv

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
    """The files, without the report, which names the command."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("report.")}


def prepared(*arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["prepare", *arguments])
        main()


def test_the_bytes_are_those_of_one_process(pretended: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ("in", "--dedupe", "near", "--validation", "0.1")
    prepared(*flags, "--out", "whole")
    prepared("--on", "ray", *flags, "--out=merged", "--parts=3")
    assert f"part 3 of 3, on {socket.gethostname()}" in capfd.readouterr().err
    assert contents(pretended / "merged") == contents(pretended / "whole")
    assert {path.name for path in pretended.iterdir()} == {"in", "whole", "merged"}
    with pytest.raises(UserError, match="merged exists"):
        prepared("--on", "ray", *flags, "--out=merged", "--parts=3")
    prepared("--on", "ray", "in", "--out=merged", "--parts=2", "--overwrite")
    assert contents(pretended / "merged") != contents(pretended / "whole")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["in", "--on", "ray"], "--on and --parts belong together"),
        (["in", "--parts", "2"], "--on and --parts belong together"),
        (["-", "--on", "ray", "--parts", "2"], "- cannot be combined with --on"),
        (["in", "--on", "ray", "--parts", "2", "--processes", "3"], "--processes cannot be combined with --on"),
        (["in", "--on", "ray", "--parts", "2", "--propose-labels", "a.csv"], "--propose-labels cannot be combined"),
        (["nowhere", "--on", "ray", "--parts", "2"], f"part 1 of 2 failed on {socket.gethostname()}: nowhere does not"),
    ],
)
def test_mistakes(pretended: Path, flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepared(*flags, "--out", "out")
    assert [path.name for path in pretended.iterdir()] == ["in"]


def test_nodes_that_are_not_alike(pretended: Path) -> None:
    other = parts.prepare_part(1, 2, ["in"], "out", str(pretended), "0.0.1")
    assert other.printed[0] == "error: another version of crepe_dist"
    unshared = parts.prepare_part(1, 2, ["in"], "out", str(pretended / "nowhere"), parts.__version__)
    assert unshared.printed[0] == f"error: {pretended}/nowhere cannot be used"


@pytest.mark.parametrize("on", [test_dask, test_ray], ids=["dask", "ray"])
def test_a_cluster_prepares_what_one_process_does(
    on, environment: Callable[[str], Path], sources: Path, data: Path
) -> None:
    run(command("prepare", "in", "--out", "whole", "--dedupe", "near"), sources)
    cluster = Cluster(on.ENGINE, on.HOLD, environment(on.ENGINE), data, sources)
    try:
        done = cluster.command(
            "prepare", "in", "--dedupe", "near", "--on", on.ENGINE, "--parts", "3", "--out", "merged"
        )
        assert done.returncode == 0, done.stderr
        assert "part 2 of 3, on " in done.stderr
        assert contents(sources / "merged") == contents(sources / "whole")
        done = cluster.command("prepare", "nowhere", "--on", on.ENGINE, "--parts", "2", "--out", "other")
        assert done.returncode == 1
        assert f"failed on {socket.gethostname()}: nowhere does not exist" in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        cluster.end()


@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_no_cluster_is_told(engine: str, environment: Callable[[str], Path], sources: Path) -> None:
    flags = ["prepare", "in", "--on", engine, "--parts", "2", "--out", "out"]
    done = subprocess.run(
        [environment(engine) / "crepe", *flags], cwd=sources, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"error: there is no {engine.capitalize()} cluster" in done.stderr
    assert "Traceback" not in done.stderr
