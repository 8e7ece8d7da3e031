"""Compressed models have the size that was asked for, open like others, and answer nearly as before."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import crepe_dist.train
from crepe_dist.data.dataset import open_dataset, write_manifest
from crepe_dist.exporting.small_model import SMALL, count_rows
from crepe_dist.files import read_json
from crepe_dist.model import compressed, parameters, params_file, tensors_file
from crepe_dist.networks.ngrams.shape import NGramShape
from crepe_dist.runs import checkpoint
from crepe_dist.settings import config
from tests.conftest import NGRAMS, PAPER, QUICK
from tests.exporting.test_export import command_line

__all__ = ["command_line"]  # a fixture

KINDS = {"crepe": ("--width=32",), "ngrams": NGRAMS, "paper": (*PAPER, "--filters=32", "--units=128")}


@pytest.fixture(autouse=True)
def few_vectors(monkeypatch):
    monkeypatch.setattr(compressed, "SAMPLE", 1 << 10)  # enough for small networks


@pytest.fixture(scope="module", params=KINDS)
def trained(request, data, tmp_path_factory):
    """A run folder of each kind of network."""
    folder = tmp_path_factory.mktemp("trained") / request.param
    flags = ["--data", str(data), "--run-dir", str(folder), "--precision=float32", *QUICK, *KINDS[request.param]]
    crepe_dist.train.train(config.parse([*flags, "--embeddings=16384", "--buckets=16384"]))
    return folder


def total(folder) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize(
    "rows", [[], [0], [254], [255], [256], [0, 254, 509, 510, 1999], [1999], range(2000), range(0, 2000, 509)]
)
def test_gaps_list_the_rows(rows):
    kept = np.zeros(2000, np.bool_)
    kept[list(rows)] = True
    assert compressed.rows_of(compressed.gaps(kept)).tolist() == list(rows)


@pytest.mark.parametrize("numbers", [1, 2, 4, 8])
@pytest.mark.parametrize("columns", [1, 4, 7])
def test_few_different_vectors_come_back_exactly(numbers, columns):
    generator = np.random.default_rng(0)
    array = generator.integers(0, 2, (300, columns)).astype(np.float32)
    kept = generator.integers(0, 2, 300) == 1
    stored = compressed.code("x", array, numbers, kept, np.ones(300))
    found = compressed.opened({**stored, compressed.MARK: np.array([1]), "y": np.ones(2)})
    assert found["y"].tolist() == [1, 1]
    assert stored["x.codes"].shape == (kept.sum(), -(-columns // numbers))
    if columns * numbers <= 8:  # at most 256 different vectors, so each has a code of its own
        np.testing.assert_allclose(found["x"].unpack(), array * kept[:, None], atol=0.51 if numbers > 4 else 1e-3)
    again = compressed.code("x", array, numbers, kept, np.ones(300))
    assert all((stored[name] == again[name]).all() for name in stored)


@pytest.mark.parametrize("exact", [True, False], ids=["float16", "float32"])
def test_tables_without_their_rows_of_zeros_come_back_exactly(exact, tmp_path):
    generator = np.random.default_rng(0)
    table = generator.standard_normal((1000, 4)).astype(np.float16 if exact else np.float32).astype(np.float32)
    table[generator.integers(0, 2, 1000) == 0] = 0
    table[::7, 1] = 0
    flags = (generator.integers(0, 9, 1000) == 0).astype(np.float32)
    shape = NGramShape(95, 20, 4, 3, 1000)
    arrays = {"weight": table, "bias": np.full(4, np.pi, np.float32), "significant": flags}
    parameters.save(parameters.stored(arrays, NGramShape), tmp_path / "x.params")
    kept = np.count_nonzero(table.any(axis=1))
    assert (tmp_path / "x.params").stat().st_size < kept * ((8 if exact else 16) + 1) + flags.sum() + 600
    stored = params_file.read(tmp_path / "x.params")
    assert isinstance(stored, dict)
    assert stored["weight.rows"].dtype == (np.float16 if exact else np.float32)
    assert "significant.rows" not in stored
    found = parameters.unpacked(parameters.load(tmp_path / "x.params"), shape)
    for name, array in arrays.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e5, 1e-8, 1 / 3])
def test_numbers_that_half_precision_lacks_stay(value):
    table = np.array([[1, value], [0, 0], [0, 2]], np.float32)
    stored = compressed.nonzero("x", table)
    np.testing.assert_array_equal(compressed.opened({**stored, compressed.MARK: np.array([2])})["x"].unpack(), table)


def test_it_opens_like_a_run_and_answers_nearly_as_before(trained, tmp_path, command_line):
    before = crepe_dist.load(trained, device="cpu")
    arrays = before.engine.arrays
    limit = sum(array.nbytes for array in arrays.values()) // (2 if trained.name == "paper" else 6)
    printed = command_line(trained, "--size", f"{limit // 1000}kB", "--out", tmp_path / "small")
    assert total(tmp_path / "small") <= limit
    assert f"{tmp_path / 'small' / 'model.safetensors'} (" in printed
    after = crepe_dist.load(tmp_path / "small", device="cpu")
    assert after.classes == before.classes
    assert after.engine.shape == before.engine.shape
    told = read_json(tmp_path / "small" / "model.json")["compressed"]
    path = checkpoint.find(str(trained))
    assert told == {
        "checkpoint": path.name,
        "sha256": read_json(path.with_suffix(".json"))["sha256"],
        "size": limit // 1000 * 1000,
    }
    for name, array in arrays.items():
        if array.size < SMALL or name in before.engine.shape.counted:
            assert (after.engine.arrays[name] == array).all()
    if trained.name != "paper":  # it stays at chance in so few steps
        assert "accuracy on 97 test texts: 100.0 % before, " in printed
        texts = ["aaaqua bbbqua", "aaazig dddzig", "kkkvex lllvex"]
        assert [each.label for each in after.predict(texts)] == [each.label for each in before.predict(texts)]


def test_the_smallest_size_is_told_and_can_be_had(trained, tmp_path, command_line, complaint):
    said = complaint("export", trained, "--size", "1kB", "--out", "small", cwd=tmp_path)
    assert "cannot be compressed to 1.0 kB" in said
    assert not (tmp_path / "small").exists()
    size = said.split("--size ")[1].split()[0]
    command_line(trained, "--size", size, "--out", tmp_path / "small")
    assert total(tmp_path / "small") <= int(size.removesuffix("kB")) * 1000


def test_a_large_size_keeps_every_row_that_was_used(trained, tmp_path, command_line, data):
    command_line(trained, "--size", "1GB", "--out", tmp_path / "large")
    before, after = (crepe_dist.load(each, device="cpu").engine for each in (trained, tmp_path / "large"))
    counts = count_rows(before.shape, open_dataset(data).splits["train"])
    assert list(counts) == list(before.shape.tables)
    for name, array in before.arrays.items():
        used = counts[name] > 0 if name in counts else slice(None)
        assert np.linalg.norm(after.arrays[name][used] - array[used]) <= 0.15 * np.linalg.norm(array[used])


def test_data_of_another_encoding_are_refused(trained, data, tmp_path, complaint):
    if trained.name == "paper":  # it needs no data
        return
    other = shutil.copytree(data, tmp_path / "data")
    manifest = json.loads((other / "dataset.json").read_text())
    manifest["encoding"]["mode"] = "notebook"
    write_manifest(other, manifest)
    said = complaint("export", trained, "--size", "1MB", "--out", "small", "--data", other, cwd=tmp_path)
    assert "is encoded differently" in said


def test_mistakes_are_told(trained, tmp_path, complaint):
    for flags, message in (
        (["--size", "big"], "is not a size such as 500kB or 1.5MB"),
        (["--size", "1MB", "--data", "nowhere"], "nowhere"),
        (["--size", "1MB", "--format", "onnx"], "--size does not apply to --format onnx"),
        (["--size", "1MB", "--quantize"], "--quantize does not apply to --format crepe"),
    ):
        if trained.name == "paper" and "--data" in flags:
            continue  # it has no table, so it needs no data
        assert message in complaint("export", trained, "--out", "small", *flags, cwd=tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"compressed": np.array([3])},
        {"x.shape": np.array([1 << 40])},
        {"x.shape": np.array([0, 4])},
        {"x.shape": np.array([np.inf, np.nan])},
        {"x.book": np.float16(1)},
        {"x.shape": np.array([2, 4])},
        {"x.kept": np.array([], np.uint8)},
        {"x.kept": np.full(20, 254, np.uint8)},
        {"x.kept": np.zeros(20, np.uint8)},
        {"x.codes": np.zeros((20, 3), np.uint8)},
        {"x.codes": np.zeros((20, 2), np.int64)},
        {"x.book": np.zeros((2, 2), np.float16)},
        {"x.book": np.zeros(256, np.float16)},
        {"x.book": np.zeros((256, 0), np.float16)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_damaged_file_is_refused(change, tmp_path):
    kept = np.arange(40) % 2 == 0
    stored = compressed.code("x", np.ones((40, 4), np.float32), 2, kept)
    refused_in_every_file({**stored, compressed.MARK: np.array([1]), **change}, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"x.shape": np.array([1 << 31, 4])},
        {"x.shape": np.array([39, 4])},
        {"x.shape": np.array([40, 3])},
        {"x.kept": np.array([1], np.uint8)},
        {"x.kept": np.append(np.full(19, 2), 3).astype(np.uint8)},
        {"x.kept": np.append(np.full(19, 2), 0).astype(np.uint8)},
        {"x.kept": np.zeros(20, np.float32)},
        {"x.rows": np.ones((19, 4), np.float16)},
        {"x.rows": np.ones((20, 4), np.int32)},
        {"x.rows": np.ones(80, np.float32)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_damaged_table_is_refused(change, tmp_path):
    table = np.zeros((40, 4), np.float32)
    table[1::2] = 0.5
    stored = compressed.nonzero("x", table)
    refused_in_every_file({**stored, compressed.MARK: np.array([compressed.VERSION]), **change}, tmp_path)


def refused_in_every_file(stored, folder):
    """Check that neither kind of file opens with these arrays."""
    tensors_file.write(stored, folder / "x.safetensors")
    params_file.write(folder / "x.params", stored)
    for read, name in ((tensors_file.read, "x.safetensors"), (params_file.read, "x.params")):
        arrays = read(folder / name)
        assert isinstance(arrays, dict)
        with pytest.raises(ValueError, match=r"damaged|version|row|codes"):
            compressed.opened(arrays)["x"].unpack()
