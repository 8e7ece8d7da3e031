"""Tests of `crepe verify`: a repeated run is bit-identical, and an altered checkpoint is detected."""

import shutil

import pytest

from crepe_dist.commands import verify
from crepe_dist.files.json_file import read_json, write_json
from crepe_dist.files.safe_read import sha256
from crepe_dist.native import library
from tests.conftest import NGRAMS, QUICK, command, needs_kernels, run, train


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run of two processes."""
    folder = tmp_path_factory.mktemp("verified")
    flags = ("--run-dir", folder / "run", *QUICK, *NGRAMS)
    train("--data", data, *flags, processes=2)
    return folder / "run"


@needs_kernels
def test_the_same_bits_and_others(trained, tmp_path, printed_by):
    said = printed_by("verify", trained)
    assert "again, on 1 process" in said
    assert said.count("bit-identical") == 1
    altered = tmp_path / "altered"
    shutil.copytree(trained, altered)
    (last,) = (altered / "checkpoints").glob("*.params")
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)
    described = last.with_suffix(".json")
    write_json(described, {**read_json(described), "sha256": sha256(last)})
    said = run(command("verify", altered), tmp_path, code=1)
    assert "epoch 2: different" in said
    assert "altered from epoch 2 on" in said
    assert "OMP_NUM_THREADS" in said or "two machines do not differ" in said


@needs_kernels
def test_a_run_that_is_not_finished(trained, tmp_path, complaint):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    assert "it is not finished" in complaint("verify", "run", cwd=tmp_path)


@pytest.mark.parametrize(
    ("build", "precision", "device", "taken", "noted"),
    [
        ("avx2", "float32", "cpu(0)", "avx2", []),
        ("avx512", "float32", "cpu(0)", None, []),  # all builds with FMA compute the same
        ("amx", "bfloat16", "cpu(0)", None, ["amx, which this machine lacks"]),
        ("mxnet", "float16", "gpu(0)", "none", ["MXNet's operators"]),
    ],
)
def test_it_takes_the_kernels_of_the_run(build, precision, device, taken, noted, monkeypatch):
    monkeypatch.setattr(library, "loadable_builds", lambda: ["avx2"])
    computed = {"model.kernels": build, "model.precision": precision, "device": device}
    assert verify.find_same_kernels(computed) == taken
    notes = list(verify.reproducibility_notes(computed))
    assert len(notes) == len(noted)
    assert all(part in note for part, note in zip(noted, notes))
