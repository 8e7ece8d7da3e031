"""Our kernels compute what the reference does, in every build that this processor can run."""

from __future__ import annotations

import itertools
import shutil
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from crepe_dist.data.alphabet import BLANK
from crepe_dist.data.batch import Batch, pack
from crepe_dist.distributed.device import CPU
from crepe_dist.errors import UserError
from crepe_dist.model.backend import Backend, choose_backend
from crepe_dist.model.objective import Objective
from crepe_dist.native import library
from crepe_dist.native.library import Library
from crepe_dist.networks.paper.shape import PaperShape
from crepe_dist.settings.options import ModelOptions
from tests.conftest import run
from tests.helpers import reference
from tests.helpers.engines import gradients, initial

pytestmark = pytest.mark.usefixtures("every_build")
BUILDS = library.runnable()
IN_BFLOAT16 = [name for name in BUILDS if "avx512_bf16" in library.BUILDS[name]]
LARGE = PaperShape(69, 1014, 7, 64, 96)
# Widths that are and that are not multiples of the kernels' blocks, the shortest text, more classes than a block.
SHAPES = [
    PaperShape(69, 123, 3, 8, 16),
    PaperShape(69, 200, 40, 48, 33),
    PaperShape(95, 331, 4, 32, 64),
    PaperShape(254, 150, 2, 16, 16),  # the largest alphabet
    LARGE,
]


def selected(**options: Any) -> Backend:
    """Select precision and kernels for a network on the CPU."""
    return choose_backend(ModelOptions(**options), CPU, LARGE)


def test_this_processor_runs_a_build():
    """The tests below run for no build at all where the package was installed without a compiler."""
    assert BUILDS
    found, trouble = library.find()
    assert found is not None
    assert not trouble


def fan_in(name: str, weight: np.ndarray) -> int:
    return 7 if name == "0.weight" else int(np.prod(weight.shape[1:]))  # the first layer's input is one-hot


def make(shape: PaperShape):
    """A network whose activations are neither tiny nor huge, so that rounding decides no maximum or ReLU."""
    network = initial(shape, seed=1)
    generator = np.random.default_rng(1)
    for name, array in network.values.items():
        deviation = (2 / fan_in(name, array)) ** 0.5 if name.endswith("weight") else 0.1
        deviation *= 0.1 if name.startswith("14.") else 1  # no class is certain, so no gradient is a rounding error
        array[:] = generator.normal(0, deviation, array.shape)
    return network


def some_batch(shape: PaperShape, rows: int, filling: int = 1, first: int = 0) -> Batch:
    generator = np.random.default_rng(rows + 1)
    codes = generator.integers(0, shape.alphabet_size, (rows, shape.feature_len)).astype(np.uint8)
    codes[: rows // 2, shape.feature_len // 2 :] = BLANK
    codes[0, ::7] = 200  # beyond the alphabet, and so blank
    return pack(codes, generator.integers(0, shape.classes, rows).astype(np.int32), rows + filling, rows, first)


def logits(engine, batch):
    engine.refresh()
    return engine.logits(batch)


def distance(got, expected):
    return float(np.linalg.norm(got - expected) / (np.linalg.norm(expected) + 1e-6))


def assert_near(got, expected):
    """Rounding gives another position the maximum of a pool in few places."""
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert distance(got[name], array) < 1e-4, name


def without_dropout(shape: PaperShape) -> PaperShape:
    return PaperShape(shape.alphabet_size, shape.feature_len, shape.classes, shape.filters, shape.units, 0.0)


@pytest.mark.parametrize("rows", [1, 37])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_equals_the_reference(shape, rows, monkeypatch):
    if shape is LARGE and rows > 1:
        pytest.skip("seconds for what the other sizes show")
    network, batch = make(shape), some_batch(shape, rows, first=3)
    loss, expected = reference.learnt(shape, network.values, batch, seed=2, step=4)
    theirs = reference.logits(shape, network.values, batch.packed[:, : shape.feature_len])
    for name, threads in itertools.product(BUILDS, (1, 3)):
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        engine = network.opened(name)
        own_loss, got = gradients(engine, batch, seed=2, step=4)
        assert own_loss == pytest.approx(loss, rel=1e-5, abs=1e-5), name
        assert_near(got, expected)
        another, _ = gradients(engine, batch, seed=2, step=5)
        assert abs(another - loss) > 1e-5
        np.testing.assert_allclose(logits(engine, batch), theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", IN_BFLOAT16)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bfloat16_is_near_float32(name, shape):
    """Values move by less than 1 %; gradients by more, where rounding gives another position the maximum of a pool."""
    if not Library(name).bfloat16:
        pytest.fail(f"{name} runs here but has no bfloat16")
    network = make(without_dropout(shape))
    batch = some_batch(shape, 9)
    loss, expected = gradients(network.opened(name), batch)
    own_loss, got = gradients(network.opened(name, "bfloat16"), batch)
    assert own_loss == pytest.approx(loss, rel=0.02)
    for parameter, array in expected.items():
        assert distance(got[parameter], array) < 0.4, parameter
    expected_logits = logits(network.opened(name), batch)
    assert distance(logits(network.opened(name, "bfloat16"), batch), expected_logits) < 0.02


@pytest.mark.parametrize("name", BUILDS)
def test_filling_and_an_earlier_larger_batch_leave_no_trace(name):
    network = make(without_dropout(SHAPES[1]))
    batch = some_batch(SHAPES[1], 5, filling=0)
    _, expected = gradients(network.opened(name), batch)
    engine = network.opened(name)
    gradients(engine, some_batch(SHAPES[1], 70))
    _, got = gradients(engine, batch)
    assert all(np.array_equal(got[each], expected[each]) for each in expected)
    _, filled = gradients(engine, some_batch(SHAPES[1], 5, filling=40))
    assert all(distance(filled[each], expected[each]) < 1e-6 for each in expected)


def test_builds_are_chosen_by_the_processor_and_by_what_loads(monkeypatch):
    monkeypatch.setattr(library, "processor_flags", lambda: {"sse2"})
    assert library.runnable() == ["generic"]
    found, trouble = library._best.__wrapped__()
    assert found is not None
    assert (found.name, found.bfloat16, trouble) == ("generic", False, "this processor has no AVX2")
    monkeypatch.setattr(library, "processor_flags", lambda: library.BUILDS["avx2"])
    assert library.runnable() == ["avx2", "generic"]
    found, trouble = library._best.__wrapped__()
    assert found is not None
    assert (found.name, found.bfloat16, trouble) == ("avx2", False, "")


class TestSwitch:
    @pytest.fixture(autouse=True)
    def forgotten(self):
        library._named.cache_clear()

    @pytest.mark.parametrize("name", BUILDS)
    def test_the_build_that_it_names_is_taken(self, name, monkeypatch):
        monkeypatch.setenv(library.SWITCH, name)
        found, trouble = library.find()
        assert found is not None
        assert (found.name, trouble) == (name, f"CREPE_DIST_KERNELS is {name}")
        chosen = selected()
        assert chosen.precision == ("bfloat16" if found.bfloat16 and not found.bfloat16_is_slower else "float32")
        assert f"own kernels ({name})" in str(chosen)
        assert f"CREPE_DIST_KERNELS is {name}" in str(chosen)

    @pytest.mark.parametrize(
        ("requested", "why"),
        [
            ("avx512_bf16", "this processor lacks avx512_bf16, avx512bw, avx512dq, avx512f, avx512vl"),
            ("sse2", "there is no such build of the kernels"),
        ],
    )
    def test_a_build_that_cannot_be_is_refused(self, requested, why, monkeypatch):
        monkeypatch.setattr(library, "processor_flags", lambda: library.BUILDS["avx2"])
        monkeypatch.setenv(library.SWITCH, requested)
        with pytest.raises(UserError, match=f"CREPE_DIST_KERNELS is {requested}") as raised:
            selected()
        assert raised.value.why == why
        assert raised.value.remedy == "set CREPE_DIST_KERNELS to avx2, generic, none, or unset it"

    @pytest.mark.parametrize("name", BUILDS)
    def test_a_setting_names_a_build(self, name, monkeypatch):
        monkeypatch.delenv(library.SWITCH, raising=False)
        chosen = selected(kernels=name, precision="float32")
        assert str(chosen) == f"float32, own kernels ({name}) (as requested)"
        library.keep_to(chosen.library)
        try:
            found, trouble = library.find()
            assert found is not None
            assert (found.name, trouble) == (name, "")
        finally:
            library.keep_to(None)

    def test_a_setting_that_names_a_build_of_other_processors_is_refused(self, monkeypatch):
        monkeypatch.delenv(library.SWITCH, raising=False)
        monkeypatch.setattr(library, "processor_flags", lambda: library.BUILDS["avx2"])
        with pytest.raises(UserError, match=r"--kernels is avx512") as raised:
            selected(kernels="avx512")
        assert raised.value.why == "this processor lacks avx512bw, avx512dq, avx512f, avx512vl"
        assert raised.value.remedy == "use --kernels avx2, generic, auto"
        monkeypatch.setenv(library.SWITCH, "generic")
        with pytest.raises(UserError, match=r"--kernels is avx2, but CREPE_DIST_KERNELS is generic"):
            selected(kernels="avx2")


def replace(path, content):
    """Replace a library by a new file: the old one is loaded and must not change."""
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / "builds.json").unlink(), "installed without a compiler, or"),
        (lambda folder: (folder / "builds.json").write_text("{"), "builds.json is damaged"),
        (lambda folder: replace(folder / "crepe_avx2.so", b"\x7fELF"), "crepe_avx2.so is damaged"),
        (lambda folder: (folder / "crepe_avx2.so").unlink(), "No such file"),
        (lambda folder: (folder / "engine.cpp").write_text("// changed"), "from another version"),
    ],
)
def test_what_cannot_be_trusted_is_not_loaded(harm, said, tmp_path, monkeypatch):
    folder = tmp_path / "native"
    shutil.copytree(library.FOLDER, folder)
    monkeypatch.setattr(library, "FOLDER", folder)
    monkeypatch.setattr(library, "RECORD", folder / "builds.json")
    monkeypatch.setattr(library, "processor_flags", lambda: library.BUILDS["avx2"])
    assert library._best.__wrapped__()[1] == ""
    harm(folder)
    found, trouble = library._best.__wrapped__()
    assert found is None or found.name == library.GENERIC
    assert said in trouble


@pytest.mark.parametrize(("setting", "expected"), [("3", 3), ("2,1", 2), ("0", 1), (" 4 ", 4)])
def test_threads_are_those_of_openmp(setting, expected, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    assert library.threads() == expected


def test_a_forked_process_has_threads_of_its_own(tmp_path):
    code = (
        "import os; from crepe_dist.native import library\n"
        "compute = lambda: library.functions().crepe_products(0, 64, 3, 1)\n"
        "compute()\n"
        "child = os.fork()\n"
        "compute()\n"
        "if child: assert os.waitpid(child, 0)[1] == 0\n"
        "print('computed')"
    )
    assert run([sys.executable, "-c", code], tmp_path, seconds=30) == "computed\n" * 2


@pytest.mark.parametrize("name", BUILDS)
def test_libgomp_is_not_needed(name):
    """A pragma that needs a function that threads.cpp lacks would take it from there."""
    assert b"libgomp" not in (library.FOLDER / f"crepe_{name}.so").read_bytes()


@pytest.mark.parametrize(
    ("name", "seconds", "slower"),
    [("avx512_bf16", 1.1, False), ("avx512_bf16", 1.7, True), ("amx", 1.7, False)],
)
def test_float32_is_the_default_where_it_is_clearly_faster(name, seconds, slower, monkeypatch):
    now = [0.0]

    def products(bfloat16, size, threads, times):
        now[0] += seconds if bfloat16 else 1.0

    build: Any = Library.__new__(Library)
    build.name, build.bfloat16, build.functions = name, True, SimpleNamespace(crepe_products=products)
    monkeypatch.setattr(library.time, "thread_time", lambda: now[0])
    monkeypatch.setattr(library, "find", lambda: (build, ""))
    assert build.bfloat16_is_slower is slower
    chosen = selected()
    assert chosen.precision == ("float32" if slower else "bfloat16")
    assert ("slower on this processor" in chosen.why) is slower
    assert selected(precision="bfloat16").precision == "bfloat16"


@pytest.mark.parametrize("name", [*BUILDS, None])
def test_smoothing_and_weights_equal_the_reference(name):
    objective = Objective(0.2, (0.5, 2.0, 1.5, 1.0))
    shape = without_dropout(SHAPES[2])
    network, batch = make(shape), some_batch(shape, 37)
    loss, expected = reference.learnt(shape, network.values, batch, objective)
    assert abs(loss - reference.learnt(shape, network.values, batch)[0]) > 0.1
    own_loss, got = gradients(network.opened(name, objective=objective), batch)
    assert own_loss == pytest.approx(loss, rel=1e-5)
    assert_near(got, expected)
