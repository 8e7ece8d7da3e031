"""Copies of runs at URLs (``train --upload``): failures of the store, incomplete copies, and resumed runs."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from crepe_dist.distributed.signals import StopRequested
from crepe_dist.errors import ExitCode, UserError
from crepe_dist.preparing import remote
from crepe_dist.runs import remote_copy, resume_state
from crepe_dist.runs.remote_copy import MANIFEST, RunUploader
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.sealed_json import write_sealed_json
from crepe_dist.training import train_loop
from tests.conftest import QUICK, command, records, run, train
from tests.helpers.background import Command, end, free_port, install, serve
from tests.helpers.needs import needs

EPOCHS = 3
URL = "memory://runs"
MEMORY = ("--upload", URL, "--run-dir", "run", "--epochs", EPOCHS, *QUICK)


@pytest.fixture
def memory():
    """Provide an empty file system at memory://."""
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/", recursive=True)


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    """Checkpoints and losses of a run without copies."""
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    train("--data", data, "--run-dir", run_dir, "--epochs", EPOCHS, *QUICK)
    return parameters(run_dir), [record["loss"] for record in records(run_dir, "step")]


def parameters(run_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run_dir / "checkpoints").glob("*.params")}


def copied(memory) -> dict[str, dict[str, object]]:
    """Return the entries of a copy, after a check of each file at the URL."""
    files = json.loads(memory.cat(f"/runs/run/{MANIFEST}"))["files"]
    for entry in files.values():
        content = memory.cat(f"/runs/run/{entry['name']}")
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"])
    return files


def stored(memory) -> set[str]:
    return {name.removeprefix("/runs/run/") for name in memory.find("/runs/run")} - {MANIFEST}


@pytest.fixture
def lost(data, memory, tmp_path, monkeypatch):
    """Folder of a machine that was lost after the last epoch, together with its disk. The copy is complete."""
    with monkeypatch.context() as patch:
        patch.setattr(train_loop, "write_result", lost_machine)
        started: list[RunUploader] = []
        original = RunUploader.start

        def start(uploader: RunUploader, saving=None) -> None:
            original(uploader, saving)
            assert uploader._thread is not None
            uploader._thread.join()  # Without this, the machine could be lost before the copy.
            started.append(uploader)

        patch.setattr(RunUploader, "start", start)
        with pytest.raises(RuntimeError, match="lost"):
            train("--data", data, *MEMORY, cwd=tmp_path)
    assert len(started) == 1 + EPOCHS
    shutil.rmtree(tmp_path / "run")
    return tmp_path


def lost_machine(*_: object) -> None:
    raise RuntimeError("the machine is lost")


def test_a_lost_run_is_resumed_from_its_copy(data, memory, lost, unbroken):
    during = copied(memory)
    assert any(name.startswith("state/") for name in during)
    assert during["metrics.jsonl"]["name"] != "metrics.jsonl"
    assert stored(memory) == {entry["name"] for entry in during.values()}
    printed = train("--data", data, *MEMORY, cwd=lost)
    assert f"download  {URL}/run" in printed
    assert f"resuming from step {7 * (EPOCHS - 1)}" in printed
    assert f"copied to {URL}/run" in printed
    assert (parameters(lost / "run"), [record["loss"] for record in records(lost / "run", "step")]) == unbroken
    finished = copied(memory)
    assert {"run.json", "config.yaml", "result.json", "metrics.jsonl"} <= finished.keys()
    assert stored(memory) == finished.keys()  # The state has been removed, and each file has its own name.

    shutil.rmtree(lost / "run")
    assert "is finished" in train("--data", data, *MEMORY, cwd=lost)
    assert parameters(lost / "run") == unbroken[0]
    assert not (lost / "run" / ".download").exists()


def seal(memory, files: dict[str, object], path: Path) -> None:
    write_sealed_json(path, remote_copy.FORMAT, {"files": files})
    memory.put_file(str(path), f"/runs/run/{MANIFEST}")


@pytest.mark.parametrize("damage", ["missing", "altered", "list", "seal", "outside"])
def test_a_copy_that_is_not_complete_is_ignored(damage, data, memory, lost, unbroken):
    files = copied(memory)
    state = next(f"/runs/run/{name}" for name in files if name.endswith("optimizer.safetensors"))
    if damage == "missing":
        memory.rm(state)
    elif damage == "altered":
        memory.pipe(state, memory.cat(state)[:-1] + b"x")
    elif damage == "list":
        memory.pipe(f"/runs/run/{MANIFEST}", memory.cat(f"/runs/run/{MANIFEST}")[:100])
    elif damage == "seal":
        memory.pipe(f"/runs/run/{MANIFEST}", memory.cat(f"/runs/run/{MANIFEST}").replace(b"run.json", b"ran.json"))
    else:
        seal(memory, {**files, "../escaped": files["run.json"]}, lost / "list")
    printed = train("--data", data, *MEMORY, cwd=lost)
    assert f"warning: the copy at {URL}/run is ignored" in printed
    assert "resuming" not in printed
    assert parameters(lost / "run") == unbroken[0]
    assert not (lost / "escaped").exists()
    copied(memory)


def test_a_copy_that_fails_leaves_the_previous_copy_complete(data, memory, tmp_path, monkeypatch, unbroken):
    original, manifests = remote.upload, []

    def upload(path: Path, url: str) -> None:
        manifests.extend([url] if url.endswith(MANIFEST) else [])
        if len(manifests) > 2:
            raise UserError(f"{url} cannot be written", "the network is down", "check the network")
        original(path, url)

    with monkeypatch.context() as patch:
        patch.setattr(remote, "upload", upload)
        start = RunUploader.start
        patch.setattr(RunUploader, "start", lambda own, saving=None: (start(own, saving), own._thread.join()))
        with pytest.raises(UserError, match="the result is only in run") as caught:
            train("--data", data, *MEMORY, cwd=tmp_path)
    assert caught.value.code == ExitCode.FAILURE
    assert "run the same command again" in caught.value.remedy
    assert parameters(tmp_path / "run") == unbroken[0]
    assert any("state/step_00000007_0001" in name for name in copied(memory))  # The copy of the first epoch.

    (tmp_path / "run").rename(tmp_path / "kept")
    assert "resuming from step 7" in train("--data", data, *MEMORY, cwd=tmp_path)
    assert parameters(tmp_path / "run") == unbroken[0]
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "kept").rename(tmp_path / "run")
    assert f"copied to {URL}/run" in train("--data", data, *MEMORY, cwd=tmp_path)
    # A file of the failed copies is left, because the process that knew its name is gone.
    assert {name.rpartition(".")[0] for name in stored(memory) - copied(memory).keys()} == {"metrics.jsonl"}


def test_failed_copies_are_warnings_and_never_end_training(data, tmp_path, capfd):
    (tmp_path / "store" / "run").mkdir(parents=True)
    (tmp_path / "store" / "run" / "checkpoints").touch()  # This folder of the copy cannot be created.
    flags = (f"--upload=file://{tmp_path}/store", "--run-dir=run", "--epochs=3", *QUICK)
    printed = run(command("train", "--data", data, *flags), tmp_path, code=ExitCode.FAILURE)
    assert printed.count("warning: ") >= 2
    assert "tries again after the next epoch" in printed
    assert "error: the result is only in run: it could not be copied to file://" in printed
    assert "Traceback" not in printed
    (tmp_path / "store" / "run" / "checkpoints").unlink()
    assert "is finished" in run(command("train", "--data", data, *flags), tmp_path)
    assert (tmp_path / "store" / "run" / "result.json").is_file()


def test_a_url_that_cannot_be_read_is_an_error_before_training(data, tmp_path, memory, monkeypatch):
    def fail(*_: object) -> None:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(type(memory), "get_file", fail)
    with pytest.raises(UserError, match="cannot be read") as caught:
        train("--data", data, *MEMORY, cwd=tmp_path)
    assert caught.value.code == ExitCode.FAILURE  # A new run would overwrite the copy.
    assert not (tmp_path / "run").exists()


def test_a_url_that_cannot_be_written_is_an_error_before_training(data, tmp_path, memory, monkeypatch):
    def fail(*_: object) -> None:
        raise FileNotFoundError("The specified bucket does not exist")

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "put_file", fail)
        with pytest.raises(UserError, match="cannot be written") as caught:
            train("--data", data, *MEMORY, cwd=tmp_path)
    assert "The specified bucket does not exist" in caught.value.why
    assert caught.value.code == ExitCode.FAILURE
    assert not (tmp_path / "run").exists()


def test_files_that_training_removes_during_a_copy_are_copied(memory, tmp_path, monkeypatch):
    path = tmp_path / "run" / "state" / "step_00000007_0001"
    path.mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text("{}")
    for name in (*resume_state.FILES, resume_state.MANIFEST):
        (path / name).write_text(name)
    original = remote.upload

    def upload(source: Path, url: str) -> None:
        shutil.rmtree(path, ignore_errors=True)
        original(source, url)

    monkeypatch.setattr(remote, "upload", upload)
    RunUploader(URL, RunDir(tmp_path / "run"), print).sync("RUNNING")
    assert not path.exists()
    state = {f"state/{path.name}/{name}" for name in (*resume_state.FILES, resume_state.MANIFEST)}
    assert copied(memory).keys() == {"run.json", *state}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ftp://me:secret@host/runs", "contains a user name, a password or a query"),
        ("s3://bucket/runs?key=secret", "contains a user name, a password or a query"),
        ("https://host/runs", "addresses on the web are read-only"),
        ("unheard://bucket", "cannot be written"),
        ("runs/copies", "give a URL such as s3://bucket/runs"),
    ],
)
def test_mistakes_in_the_url(url, expected, data, tmp_path, complaint):
    said = complaint("train", "--data", data, "--run-dir", "run", "--upload", url, *QUICK, cwd=tmp_path)
    assert expected in said
    assert "secret" not in said
    assert not (tmp_path / "run").exists()


def test_a_fresh_run_does_not_overwrite_a_copy(data, memory, lost):
    before = copied(memory)
    with pytest.raises(UserError, match="--fresh would overwrite it"):
        train("--data", data, *MEMORY, "--fresh", cwd=lost)
    assert copied(memory) == before


def test_a_copy_of_a_run_with_other_settings_is_refused(data, memory, lost):
    before = copied(memory)
    with pytest.raises(UserError, match="was started with other settings"):
        train("--data", data, *MEMORY, "--seed", 1, cwd=lost)
    assert copied(memory) == before


def test_a_request_to_stop_copies_the_saved_state(memory, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(StopRequested), RunUploader(URL, RunDir(tmp_path / "run"), print):
        raise StopRequested("SIGTERM")
    assert copied(memory).keys() == {"run.json"}


def test_several_processes(data, tmp_path, unbroken):
    flags = ("--data", data, f"--upload=file://{tmp_path}/store", "--run-dir=run", f"--epochs={EPOCHS}", *QUICK)
    assert "copied to file://" in train(*flags, cwd=tmp_path, processes=2)
    first = parameters(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    printed = train(*flags, cwd=tmp_path, processes=2)
    assert "download  file://" in printed
    assert "is finished" in printed
    assert parameters(tmp_path / "run") == first == unbroken[0]


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """Environment of processes with s3fs and Moto, whose server speaks S3; and the port of that server."""
    path = install(tmp_path_factory.mktemp("s3"), f"fsspec=={fsspec.__version__}", "s3fs", "moto[server]")
    port = free_port()
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hidden-word", "AWS_DEFAULT_REGION": "us-east-1"}
    address = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_MAX_ATTEMPTS": "1"}
    return {**os.environ, "PYTHONPATH": path, **keys, **address}, port


def serve_s3(s3, cwd: Path) -> subprocess.Popen[bytes]:
    environment, port = s3
    server = serve([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port, environment, cwd)
    script = "import s3fs; s3fs.S3FileSystem().mkdir('bucket')"
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    return server


@pytest.mark.slow
@needs("uv")
class TestS3:
    """Copies on a server that speaks S3. It loses its content when it ends."""

    @pytest.mark.parametrize("processes", [1, 2])
    def test_losses(self, processes, s3, data, tmp_path, unbroken):
        start = ["supervise", "-np", processes] if processes > 1 else ["train"]
        flags = [*start, "--data", data, "--upload=s3://bucket/runs", "--run-dir=run", "--epochs=120", *QUICK]

        def begin() -> Command:
            return Command(command(*flags), tmp_path, s3[0])

        def finish(training: Command, code: int = 0) -> str:
            printed = training.finish(code)
            assert "hidden-word" not in printed
            return printed

        server = serve_s3(s3, tmp_path)
        try:
            # The machine is lost with its disk.
            training = begin()
            training.wait_for("epoch 9 of")
            training.process.terminate()
            training.process.wait(600)
            shutil.rmtree(tmp_path / "run")
            # Training has been resumed from the copy. Now the server is lost.
            training = begin()
            training.wait_for("download  s3://bucket/runs/run")
            training.wait_for("resuming from step")
            training.wait_for("epoch 20 of")
        finally:
            end(server)
        training.wait_for("warning: ")
        server = serve_s3(s3, tmp_path)
        try:
            assert "copied to s3://bucket/runs/run" in finish(training)
            result = parameters(tmp_path / "run")
            shutil.rmtree(tmp_path / "run")
            assert "is finished" in finish(begin())
            assert parameters(tmp_path / "run") == result
        finally:
            end(server)
        train("--data", data, "--run-dir", tmp_path / "whole", "--epochs=120", *QUICK)
        assert parameters(tmp_path / "whole") == result
        # Without the server, the finished run says that it is local only; with an empty disk, nothing starts.
        if processes == 1:
            assert "the result is only in run" in finish(begin(), ExitCode.FAILURE)
            shutil.rmtree(tmp_path / "run")
            assert "cannot be read" in finish(begin(), ExitCode.FAILURE)
