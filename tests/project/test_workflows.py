"""The workflows start scripts that exist, with few rights; a release is published without a token."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import crepe_dist
from crepe_dist.native import library

ROOT = Path(__file__).parents[2]
WORKFLOWS = {path.stem: path for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))}
COMMIT = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}")


def jobs(name: str) -> dict:
    return yaml.safe_load(WORKFLOWS[name].read_text(encoding="utf-8"))["jobs"]


def steps(name: str) -> list[dict]:
    return [step for job in jobs(name).values() for step in job["steps"]]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_starts_scripts_that_exist_and_may_only_read(name):
    assert yaml.safe_load(WORKFLOWS[name].read_text(encoding="utf-8"))["permissions"] == {"contents": "read"}
    started = [re.findall(r"bash (\S+)", step["run"]) for step in steps(name) if "run" in step]
    assert started
    assert all(len(scripts) == 1 and (ROOT / scripts[0]).is_file() for scripts in started)
    assert "secrets." not in WORKFLOWS[name].read_text(encoding="utf-8")


def test_a_release_is_published_after_the_checks_by_pinned_actions():
    assert all(COMMIT.fullmatch(step["uses"]) for step in steps("release") if "uses" in step)
    found = jobs("release")
    assert found["publish"]["needs"] == "build"
    assert {name: job.get("permissions") for name, job in found.items()} == {
        "build": None,
        "publish": {"id-token": "write"},
    }
    uploaded, downloaded = (
        next(step["with"]["name"] for step in steps("release") if f"/{verb}-artifact" in step.get("uses", ""))
        for verb in ("upload", "download")
    )
    assert uploaded == downloaded
    assert (found["publish"]["if"], found["publish"]["steps"][-1].get("with")) == ("github.event_name == 'push'", None)


def test_a_tag_of_another_version_builds_nothing():
    done = subprocess.run(
        ["bash", str(ROOT / ".ci" / "release")],
        env={**os.environ, "GITHUB_REF_TYPE": "tag", "GITHUB_REF_NAME": "v0.0.1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"the tag is v0.0.1, but the version is {crepe_dist.__version__} ")


@pytest.mark.parametrize(
    ("python", "pytest_code", "code"),
    [
        (sys.executable, 0, 0),
        (sys.executable, 5, 5),  # With this code, pytest reports that it found no test.
        ("false", 0, 1),  # The list of the builds cannot be read.
    ],
)
def test_the_suite_runs_under_each_build_or_the_script_fails(python, pytest_code, code, tmp_path, every_build):
    programs = {
        "uv": f"""[ "$4" = python ] && {{ shift 4; exec {python} "$@"; }}
if [ "$4" = pytest ]; then echo "$CREPE_DIST_KERNELS" >> {tmp_path / "ran"}; exit {pytest_code}; fi""",
        "apt-get": "",  # The script installs programs that the machine lacks.
    }
    for name, content in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{content}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / ".ci" / "kernels")],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    ran = (tmp_path / "ran").read_text().split() if (tmp_path / "ran").exists() else []
    expected = [*library.supported_builds(), library.NONE, "avx2", "avx2"]
    assert ran == (expected if code == 0 else expected[: python == sys.executable])
