"""Altered, truncated or foreign data are refused before the first step."""

import os
import shutil

import pytest

from crepe_dist.data import verification
from crepe_dist.data.dataset import open_dataset
from crepe_dist.data.verification import verify
from crepe_dist.errors import UserError
from tests.chaos import harness
from tests.conftest import needs_kernels


@pytest.fixture
def copy(data, tmp_path):
    return shutil.copytree(data, tmp_path / "data")


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        pytest.param(flip, "was altered since it was prepared", marks=needs_kernels),
        (lambda path: os.truncate(path, path.stat().st_size - 1), "was truncated or altered"),
    ],
)
def test_refused_at_the_start(copy, tmp_path, harm, message, complaint):
    harm(copy / "train.codes-00000.npy")
    said = complaint("train", "--data", copy, "--run-dir", tmp_path / "run", *harness.SETTINGS, cwd=tmp_path)
    assert said.count("error: ") == 1
    assert message in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_what_was_verified_is_not_read_again_unless_it_changed(copy, tmp_path, monkeypatch):
    read: list[str] = []
    digest = verification._digest

    def counting(path, beat):
        read.append(path.name)
        return digest(path, beat)

    monkeypatch.setattr(verification, "_digest", counting)
    record = tmp_path / "verified" / "host.json"
    opened = open_dataset(copy)
    verify(opened, record)
    assert len(read) == len(set(read)) == 8
    read.clear()
    verify(opened, record)
    assert read == []
    os.utime(copy / "train.labels.npy")
    verify(opened, record)
    assert read == ["train.labels.npy"]
    flip(copy / "train.labels.npy")
    for damaged in (None, "", "[]", '{"train.labels.npy": 3}'):
        if damaged is not None:
            record.write_text(damaged)
        with pytest.raises(UserError, match="was altered"):
            verify(opened, record)
