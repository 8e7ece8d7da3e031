"""Compressed models have the size that was asked for, open like others, and answer nearly as before."""

import numpy as np
import pytest

import crepe_dist.train
from crepe_dist.exporting.compression import MIN_QUANTIZED_SIZE
from crepe_dist.model import quantization, weights_io
from crepe_dist.native import library
from crepe_dist.networks.ngrams.config import NGramConfig
from tests.conftest import NGRAMS, PAPER, QUICK, needs_kernels, train

BUCKETS, FLOAT32 = "--buckets=16384", "--precision=float32"
KINDS = {
    "crepe": ("--width=32", "--embedding-rows=16384", BUCKETS, FLOAT32),
    "ngrams": (*NGRAMS, BUCKETS),
    "paper": (*PAPER, FLOAT32),
}


@pytest.fixture(autouse=True)
def few_vectors(monkeypatch):
    monkeypatch.setattr(quantization, "SAMPLE", 1 << 10)  # Enough for small networks.


@pytest.fixture(
    scope="module", params=[kind if kind == "paper" else pytest.param(kind, marks=needs_kernels) for kind in KINDS]
)
def trained(request, data, tmp_path_factory):
    """A run folder of each kind of network."""
    folder = tmp_path_factory.mktemp("trained") / request.param
    train("--data", data, "--run-dir", folder, *QUICK, *KINDS[request.param])
    return folder


def total(folder) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("rows", [[], [0, 254, 509, 510, 1999], range(2000)])
def test_gaps_list_the_rows(rows):
    kept = np.zeros(2000, np.bool_)
    kept[list(rows)] = True
    assert quantization.delta_decode(quantization.delta_encode(kept)).tolist() == list(rows)


@pytest.mark.parametrize(("numbers", "columns"), [(1, 7), (2, 4), (4, 1), (8, 1)])
def test_few_different_vectors_come_back_exactly(numbers, columns):
    generator = np.random.default_rng(0)
    array = generator.integers(0, 2, (300, columns)).astype(np.float32)
    kept = generator.integers(0, 2, 300) == 1
    stored = quantization.product_quantize("x", array, numbers, kept, np.ones(300))
    found = quantization.group_compressed(
        {**stored, quantization.MARK: np.array([quantization.VERSION]), "y": np.ones(2)}
    )
    assert found["y"].tolist() == [1, 1]
    assert stored["x.codes"].shape == (kept.sum(), -(-columns // numbers))
    np.testing.assert_allclose(found["x"].validate().unpack(), array * kept[:, None], atol=1e-3)
    again = quantization.product_quantize("x", array, numbers, kept, np.ones(300))
    assert all((stored[name] == again[name]).all() for name in stored)


@pytest.mark.parametrize("build", library.loadable_builds())
def test_kernels_round_to_float16_as_numpy_does(build, monkeypatch):
    monkeypatch.setenv(library.KERNELS_ENV, build)
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    ordered = np.sort(every[np.isfinite(every)].astype(np.float32))
    ties = (ordered[1:] + ordered[:-1]) / 2  # exact
    drawn = np.random.default_rng(0).integers(0, 1 << 32, 1 << 20, np.uint32).view(np.float32)
    around = [np.nextafter(ties, np.float32(end)) for end in (-np.inf, np.inf)]
    numbers = np.concatenate([every.astype(np.float32), ties, *around, drawn, [65504, 65519.996, 65520, 65536, 7]])
    numbers, found = numbers.astype(np.float32), np.empty(len(numbers), np.float16)
    library.functions().crepe_to_half(numbers.ctypes.data, len(numbers), 1, None, found.ctypes.data)
    with np.errstate(over="ignore"):
        wanted = numbers.astype(np.float16)
    is_number = ~np.isnan(numbers)
    assert np.isnan(found[~is_number]).all()
    np.testing.assert_array_equal(found.view(np.uint16)[is_number], wanted.view(np.uint16)[is_number])
    rows = every[np.isfinite(every)].astype(np.float32).reshape(-1, 31)[:, :30]
    half = quantization.to_float16_if_exact(rows)
    assert half is not None
    np.testing.assert_array_equal(half, rows.astype(np.float16))
    for other in (65536, 1e-8, np.pi, np.nan):
        assert quantization.to_float16_if_exact(np.full((3, 5), other, np.float32)) is None


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_tables_without_their_rows_of_zeros_come_back_exactly(kind, tmp_path):
    generator = np.random.default_rng(0)
    table = generator.standard_normal((1000, 4)).astype(kind).astype(np.float32)
    table[generator.integers(0, 2, 1000) == 0] = 0
    table[::7, 1] = 0
    flags = (generator.integers(0, 9, 1000) == 0).astype(np.float32)
    arrays = {"weight": table, "bias": np.full(4, np.pi, np.float32), "significant": flags}
    weights_io.save(weights_io.to_file_arrays(arrays, NGramConfig), tmp_path / "x.params")
    kept, width = np.count_nonzero(table.any(axis=1)), 4 * np.dtype(kind).itemsize
    assert (tmp_path / "x.params").stat().st_size < kept * (width + 1) + flags.sum() + 600
    found = weights_io.decompress_all(weights_io.load(tmp_path / "x.params"), NGramConfig(95, 20, 4, 3, 1000, 62, 250))
    for name, array in arrays.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array)


def test_it_opens_like_a_run_and_answers_nearly_as_before(trained, tmp_path, printed_by):
    before = crepe_dist.load(trained, device="cpu")
    arrays = before.engine.arrays
    limit = sum(array.nbytes for array in arrays.values()) // (2 if trained.name == "paper" else 6)
    printed = printed_by("export", trained, "--max-size-mb", limit / 1e6, "--out", tmp_path / "small")
    assert total(tmp_path / "small") <= limit
    assert f"{tmp_path / 'small' / 'model.safetensors'} (" in printed
    after = crepe_dist.load(tmp_path / "small", device="cpu")
    assert after.classes == before.classes
    assert after.engine.config == before.engine.config
    assert after.metadata["compressed"]["sha256"] == before.metadata["sha256"]
    for name, array in arrays.items():
        if array.size < MIN_QUANTIZED_SIZE or name in before.engine.config.buffers:
            assert (after.engine.arrays[name] == array).all()
    if trained.name != "paper":  # After so few steps, its accuracy is that of chance.
        assert "accuracy on 97 test texts: 100.0 % before the compression, " in printed
        texts = ["aaaqua bbbqua", "aaazig dddzig", "kkkvex lllvex"]
        assert [each.label for each in after.predict(texts)] == [each.label for each in before.predict(texts)]


def test_the_smallest_size_is_told_and_can_be_had(trained, tmp_path, printed_by, complaint):
    said = complaint("export", trained, "--max-size-mb", "0.001", "--out", "small", cwd=tmp_path)
    assert "cannot be compressed to 1.0 kB" in said
    assert not (tmp_path / "small").exists()
    size = said.split("--max-size-mb ")[1].split()[0]
    printed_by("export", trained, "--max-size-mb", size, "--out", tmp_path / "small")
    assert total(tmp_path / "small") <= float(size) * 1e6


def test_an_export_is_tried_on_the_test_split(trained, tmp_path, printed_by):
    printed = printed_by("export", trained, "--out", tmp_path / "out")
    assert "on 97 texts of the test split and 100 synthetic texts" in printed


@pytest.mark.parametrize(
    "change",
    [
        {quantization.MARK: np.array([3])},
        {"x.shape": np.array([1 << 40])},
        {"x.shape": np.array([np.inf, np.nan])},
        {"x.kept": np.full(20, 254, np.uint8)},
        {"x.codes": np.full((20, 2), 1 << 40)},
        {"x.book": np.zeros(256, np.float16)},
        {"x.book": np.zeros((256, 0), np.float16)},
        {"y.rows": np.ones((19, 4), np.float16)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_damaged_arrays_are_refused(change):
    kept = np.arange(40) % 2 == 1
    coded = quantization.product_quantize("x", np.ones((40, 4), np.float32), 2, kept)
    rows = quantization.drop_zero_rows("y", np.where(kept[:, None], 0.5, np.zeros((40, 4))).astype(np.float32))
    stored = {**coded, **rows, quantization.MARK: np.array([quantization.VERSION]), **change}
    with pytest.raises(ValueError):  # noqa: PT011, PT012
        arrays = quantization.group_compressed(stored)
        for each in ("x", "y"):
            arrays[each].validate()
