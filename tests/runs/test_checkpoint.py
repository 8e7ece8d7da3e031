"""Checkpoints: a failed write leaves no incomplete checkpoint."""

import errno
from unittest.mock import Mock

import pytest

import crepe_dist
from crepe_dist.errors import UserError
from crepe_dist.files.json_file import read_json
from crepe_dist.runs import checkpoint
from tests.conftest import needs_kernels

pytestmark = needs_kernels


def test_a_full_disk_leaves_no_parameters_without_a_description(quick_run, tmp_path, monkeypatch):
    path = checkpoint.resolve_model(str(quick_run))
    arrays, about = crepe_dist.load(path).engine.arrays, read_json(path.with_suffix(".json"))
    failing = Mock(side_effect=OSError(errno.ENOSPC, "no space left"))
    with monkeypatch.context() as full:
        full.setattr(checkpoint, "write_json", failing)
        for state, remedy in (("", "starts again from the beginning"), ("state/step_00000001_0000", "resumes from")):
            (tmp_path / state).mkdir(parents=True, exist_ok=True)
            with pytest.raises(UserError, match="cannot be written") as error:
                checkpoint.save_checkpoint(tmp_path, arrays, about, {})
            assert f"the same command {remedy}" in error.value.remedy
    assert list((tmp_path / checkpoint.FOLDER).iterdir()) == []
    written = checkpoint.write_checkpoint(tmp_path, arrays, about)
    monkeypatch.setattr(checkpoint, "write_json", failing)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.write_checkpoint(tmp_path, arrays, about)  # of a resumed run, which computes them again
    assert checkpoint.read_metadata(written) is not None
