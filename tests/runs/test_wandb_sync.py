"""Tracking of runs by Weights & Biases (``train --track wandb``), and losses of the process."""

import json
import os
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from crepe_dist.training import train_loop
from tests.conftest import QUICK, command, train
from tests.helpers.background import Command, install
from tests.helpers.needs import needs

EPOCHS = 3
FLAGS = ("--track=wandb", "--run-dir=run", f"--epochs={EPOCHS}", *QUICK)


class Recorder:
    """Stand-in for an open run of the library."""

    def __init__(self, options: dict) -> None:
        self.options = options
        self.rows: list[dict] = []
        self.files: list[str] = []
        self.summary: dict[str, float] = {}
        self.exit_code: int | None = None
        self.url, self.dir = "https://server/run", "folder/files"

    def log(self, row: dict) -> None:
        self.rows.append(row)

    def define_metric(self, name: str, step_metric: str) -> None:
        assert step_metric == name.replace("*", "epoch")

    def save(self, path: str, base_path: str, policy: str) -> None:
        self.files.append(os.path.relpath(path, base_path))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def recorders(monkeypatch):
    """Runs that the stand-in for the library ``wandb`` opened."""
    opened: list[Recorder] = []

    def init(**options: object) -> Recorder:
        opened.append(Recorder(options))
        return opened[-1]

    module = ModuleType("wandb")
    vars(module).update(__spec__=ModuleSpec("wandb", None), init=init, Settings=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_RUN_ID", "WANDB_MODE", "WANDB_API_KEY", "WANDB_SILENT"):
        monkeypatch.delenv(name, raising=False)
    return opened


def test_a_run_that_fails_and_is_resumed_is_one_run(recorders, data, tmp_path, monkeypatch):
    result = train_loop.write_result
    monkeypatch.setattr(train_loop, "write_result", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train("--data", data, *FLAGS, cwd=tmp_path)
    monkeypatch.setattr(train_loop, "write_result", result)
    printed = train("--data", data, *FLAGS, "--logging.rank-times-steps=7", cwd=tmp_path)
    assert "Weights & Biases records the run as" in printed
    train("--data", data, *FLAGS, cwd=tmp_path)  # The finished run is complete, so nothing is recorded two times.
    failed, finished = recorders
    assert (failed.exit_code, finished.exit_code) == (1, 0)
    assert failed.options["id"] == finished.options["id"]
    assert failed.options["mode"] == "offline"
    assert failed.options["config"]["training.epochs"] == EPOCHS
    assert [row["epoch"] for row in failed.rows + finished.rows] == [*range(1, EPOCHS + 1)]
    assert all("test_accuracy" in row for row in failed.rows + finished.rows)
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert finished.summary == {f"result/{name}": saved[name] for name in ("epoch", "test_accuracy", "test_loss")}
    assert finished.files == ["config.yaml", "result.json"]


@pytest.mark.parametrize(
    ("variables", "mode"),
    [({"WANDB_API_KEY": "k"}, "online"), ({"WANDB_API_KEY": "k", "WANDB_MODE": "shared"}, "shared")],
)
def test_a_key_means_online(variables, mode, recorders, data, tmp_path, monkeypatch):
    for name, value in {**variables, "WANDB_RUN_ID": "mine"}.items():
        monkeypatch.setenv(name, value)
    assert "as mine: https://server/run" in train("--data", data, *FLAGS, cwd=tmp_path)
    assert {(run.options["mode"], run.options["id"]) for run in recorders} == {(mode, "mine")}


def test_a_library_that_fails_is_a_warning(data, tmp_path, recorders, monkeypatch):
    def init(**options: object) -> None:
        raise RuntimeError("no space on https://me:secret@server")

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    printed = train("--data", data, *FLAGS, cwd=tmp_path)
    assert "warning: Weights & Biases cannot record the run" in printed
    assert "run the same command again, which only records the run" in printed
    assert "secret" not in printed


def records(file: Path) -> bytes:
    """Return the records of a file of the library, without the headers that may stand within a record.

    The file has 7 bytes, and then blocks of LevelDB's log format: parts of records with headers of 7 bytes, which have
    the length of the part in the bytes 4 and 5. The last bytes of a block, fewer than 7, are unused.
    """
    content, parts, at = file.read_bytes(), [], 7
    while at + 7 <= len(content):
        if (rest := 32768 - at % 32768) < 7:
            at += rest
            continue
        end = at + 7 + int.from_bytes(content[at + 4 : at + 6], "little")
        parts.append(content[at + 7 : end])
        at = end
    return b"".join(parts)


@pytest.mark.slow
@needs("uv")
def test_the_library_records_each_epoch_once(data, tmp_path, tmp_path_factory):
    path = install(tmp_path_factory.mktemp("wandb"), "wandb")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    words = command("train", "--data", data, "--track=wandb", "--run-dir=run", "--epochs=120", *QUICK)
    training = Command(words, tmp_path, {**environment, "PYTHONPATH": path})
    training.wait_for("Weights & Biases records the run")
    training.process.terminate()
    training.process.wait(600)
    Command(words, tmp_path, {**environment, "PYTHONPATH": path}).finish()
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    # A record of the metrics, and one of the last values for each: field 5 has the name, and field 16 the number.
    epochs = [int(text) for file in files for text in re.findall(rb"\x05epoch\x82\x01.(\d+)", records(file))]
    assert sorted(epochs) == sorted([*range(1, 121)] * 2)
    assert (files[1].parent / "files" / "result.json").is_file()
