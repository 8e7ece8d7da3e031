"""docker/: the files, the health check, and (slow) every step of the CPU image in a root of its own."""

from __future__ import annotations

import http.server
import importlib.util
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
import yaml

from tests import docker_build
from tests.conftest import write_csv
from tests.needs import needs

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
TOOLS = ("debootstrap", "chroot", "unshare")


@pytest.fixture
def health():
    spec = importlib.util.spec_from_file_location("healthcheck", ROOT / "docker" / "healthcheck.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.suffix)
def test_dockerfiles(path):
    steps = docker_build.steps(path)
    named = dict(steps)  # the last of each
    flavour = path.suffix.lstrip(".")
    assert {rest.partition(" AS ")[0] for step, rest in steps if step == "FROM"} == {"debian:12.12-slim"}
    assert named["USER"] == "1000:1000"
    assert named["HEALTHCHECK"].endswith('CMD ["crepe_dist-healthcheck"]')
    assert named["CMD"] == '["python", "-m", "crepe_dist.train"]'
    # Each RUN is a script that the test below, or whoever has no Docker, can run by itself.
    scripts = [rest.split() for step, rest in steps if step == "RUN"]
    assert [words[0].rpartition("/")[2] for words in scripts] == ["compilers.sh", "install.sh", "runtime.sh"]
    assert [words[1:] for words in scripts] == [[flavour], [flavour], []]
    for words in scripts:
        script = ROOT / "docker" / words[0].rpartition("/")[2]
        assert os.access(script, os.X_OK)
        assert "\nset -eu\n" in script.read_text(encoding="utf-8")
    assert "g++" not in (ROOT / "docker" / "runtime.sh").read_text(encoding="utf-8")


def test_what_goes_into_the_build():
    sent = {str(path.relative_to(ROOT)) for path in docker_build.context(ROOT)}
    copied = [rest.split()[0] for path in DOCKERFILES for step, rest in docker_build.steps(path) if step == "COPY"]
    assert {name for name in copied if not name.startswith("-") and name != "."} <= sent
    assert {"pyproject.toml", "README.md", "LICENSE", "tools/hatch_build.py", "docker/install.sh"} <= sent
    assert {"crepe_dist/train.py", "crepe_dist/native/engine.cpp", "third_party/horovod/horovod_build.py"} <= sent
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, stdout=-1, text=True, check=False)
    if tracked.returncode == 0:  # a checkout, not an archive
        assert sent <= {*tracked.stdout.splitlines(), *new_files()}


def new_files() -> list[str]:
    listed = ["git", "ls-files", "--others", "--exclude-standard"]
    return subprocess.run(listed, cwd=ROOT, stdout=-1, text=True, check=True).stdout.splitlines()


def test_compose():
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
    services = compose["services"]
    assert list(services) == ["first", "second"]
    for rank, service in enumerate(services.values()):
        place = service["environment"]
        assert (place["RANK"], place["WORLD_SIZE"]) == (str(rank), str(len(services)))
        assert (place["MASTER_ADDR"], place["MASTER_PORT"]) == ("first", "29500")
        assert (ROOT / "docker" / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert {volume.partition(":")[0] for volume in service["volumes"]} == set(compose["volumes"])
        assert set(service["networks"]) == set(compose["networks"])
    assert compose["networks"]["training"]["internal"] is True


def process(folder: Path, number: int, state: str, *arguments: str) -> None:
    place = folder / str(number)
    place.mkdir()
    (place / "cmdline").write_bytes("\0".join([*arguments, ""]).encode())
    (place / "stat").write_text(f"{number} (python (3)) {state} 1 1")


def test_health_of_a_training(health, tmp_path, monkeypatch):
    monkeypatch.setattr(health, "PROCESSES", tmp_path)
    process(tmp_path, 1, "S", "/sbin/docker-init")
    assert health.complaint() == "no command of crepe_dist runs"
    process(tmp_path, 7, "R", "python", "-m", "crepe_dist.train")
    assert health.complaint() == ""
    process(tmp_path, 8, "T", "python", "-m", "crepe_dist.train")
    assert health.complaint() == "a process is stopped or dead (state T)"


SERVE = [("python", "-m", "crepe_dist.serve"), ("/venv/bin/python", "/venv/bin/crepe", "serve")]


@pytest.mark.parametrize("words", SERVE)
def test_health_of_the_service(health, tmp_path, monkeypatch, words):
    class Service(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/healthz" and well else 503)
            self.end_headers()

        def log_message(self, *_):
            pass

    well = True
    monkeypatch.setattr(health, "PROCESSES", tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        process(tmp_path, 1, "S", *words, "--host", "0.0.0.0", f"--port={port}")
        assert health.complaint() == ""
        well = False
        assert "503" in health.complaint()
        server.shutdown()
    assert "refused" in health.complaint()
    assert health.port(["--port", "9"]) == 9
    assert health.port(["python"]) == 8080


@pytest.mark.slow
@pytest.mark.docker
@pytest.mark.timeout(7200)
@needs(*TOOLS, root=True)
def test_the_cpu_image(tmp_path):
    """Half an hour on two cores, most of it Horovod's compile and downloads."""
    image = docker_build.build(ROOT / "docker" / "Dockerfile.cpu", ROOT, tmp_path, seconds=3600)
    assert image.run(["sh", "-c", "command -v g++ cc gcc uv"], 60).returncode != 0
    assert image.run(["id", "-u"], 60).stdout == "1000\n"
    doctor = image.run(["python", "-m", "crepe_dist.doctor"], 600)
    assert doctor.returncode == 0, doctor.stdout
    assert "ready: for one process or several, on the CPU" in doctor.stdout

    write_csv(image.root / "training" / "data" / "texts.csv", 400, seed=5)
    os.chown(image.root / "training" / "data" / "texts.csv", 1000, 1000)
    prepared = image.run(["python", "-m", "crepe_dist.prepare", "data/texts.csv", "--out", "data/texts"], 600)
    assert prepared.returncode == 0, prepared.stdout
    trained = [*image.command, "--data", "data/texts", "--epochs", "2"]
    with subprocess.Popen(image.entered(trained), stdout=-1, stderr=-2, text=True) as training:
        # The health check sees the processes of its own container, so it is run in it.
        spaces = ["nsenter", "--target", str(inner(training.pid)), "--mount", "--pid"]
        path = f"PATH={image.environment['PATH']}"
        check = subprocess.run(
            [*spaces, "chroot", "--userspec=1000:1000", str(image.root), "env", "-i", path, *image.health],
            stdout=-1, stderr=-2, text=True, timeout=60,
        )  # fmt: skip
        said, _ = training.communicate(timeout=1200)
    assert check.returncode == 0, check.stdout
    assert training.returncode == 0, said
    assert "test accuracy" in said
    assert list((image.root / "training" / "runs").glob("texts-*/report.html"))
    idle = image.run(image.health, 60)
    assert (idle.returncode, idle.stdout) == (1, "no command of crepe_dist runs\n")
    pair = image.run(
        ["horovodrun", "-np", "2", *image.command, "--data", "data/texts", "--fresh", "--epochs", "1"], 1200
    )
    assert pair.returncode == 0, pair.stdout


def inner(pid: int) -> int:
    """The process that `unshare` started in the new namespaces, once the command itself runs there."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        for child in children(pid):
            if "crepe_dist.train" in Path(f"/proc/{child}/cmdline").read_text():
                return child
        time.sleep(0.1)
    raise AssertionError("the training does not begin")


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]
