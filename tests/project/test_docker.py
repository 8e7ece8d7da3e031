"""docker/: the health check, and (slow) the CPU image."""

import http.server
import importlib.util
import subprocess
import threading
from pathlib import Path

import pytest

from tests.conftest import write_csv
from tests.helpers.needs import needs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def health():
    spec = importlib.util.spec_from_file_location("healthcheck", ROOT / "docker" / "healthcheck.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


SERVE = [("python", "-m", "crepe_dist", "serve"), ("/venv/bin/python", "/venv/bin/crepe", "serve")]


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
@needs("docker")
def test_the_cpu_image(tmp_path):
    """Takes half an hour on two cores, mostly for downloads and the compilation of Horovod."""
    name = "crepe-dist:test"
    subprocess.run(["docker", "build", "-f", ROOT / "docker" / "Dockerfile.cpu", "-t", name, ROOT], check=True)
    write_csv(tmp_path / "texts.csv", 400, seed=5)
    prepare = "python -m crepe_dist prepare texts.csv --out texts"
    for words in (
        "! command -v g++ && ! command -v uv && test $(id -u) = 1000",
        "python -m crepe_dist doctor",
        f"{prepare} && python -m crepe_dist.train --data texts --epochs 2",
        f"{prepare} && horovodrun -np 2 python -m crepe_dist.train --data texts --epochs 1",
    ):
        inside = f"cp /texts.csv . && {words}"
        mount = f"{tmp_path / 'texts.csv'}:/texts.csv:ro"
        subprocess.run(["docker", "run", "--rm", "--shm-size=1g", "-v", mount, name, "sh", "-c", inside], check=True)
