"""Builds of the CPU kernels: which one is selected, and how damaged ones are detected."""

import multiprocessing
import shutil
from typing import Any

import pytest

from crepe_dist.distributed.device import CPU
from crepe_dist.errors import UserError
from crepe_dist.model.backend import Backend, choose_backend
from crepe_dist.native import library
from crepe_dist.networks.paper.config import PaperConfig
from crepe_dist.settings.options import ModelOptions

pytestmark = pytest.mark.usefixtures("every_build")
BUILDS = library.supported_builds()
NETWORK = PaperConfig(69, 123, 7, 8, 16)


def choose(**options: Any) -> Backend:
    """Choose precision and kernels for a network on the CPU."""
    return choose_backend(ModelOptions(**options), CPU, NETWORK)


def test_this_processor_runs_a_build():
    """Without a build, the tests of the kernels would have no cases, and would not fail."""
    assert library.supported_builds()
    found, trouble = library.find()
    assert found is not None
    assert not trouble


def test_builds_are_chosen_by_the_processor_and_by_what_loads(monkeypatch):
    monkeypatch.setattr(library, "processor_flags", lambda: {"sse2"})
    assert library.supported_builds() == ["generic"]
    found, trouble = library._best.__wrapped__()
    assert found is not None
    assert (found.name, found.bfloat16, trouble) == ("generic", False, "this processor has no AVX2")
    monkeypatch.setattr(library, "processor_flags", lambda: library.BUILDS["avx2"])
    assert library.supported_builds() == ["avx2", "generic"]
    found, trouble = library._best.__wrapped__()
    assert found is not None
    assert (found.name, found.bfloat16, trouble) == ("avx2", False, "")


class TestSwitch:
    @pytest.fixture(autouse=True)
    def clear_cache(self):
        library._named.cache_clear()

    @pytest.mark.parametrize("name", BUILDS)
    def test_the_build_that_the_variable_names_is_used(self, name, monkeypatch):
        monkeypatch.setenv(library.KERNELS_ENV, name)
        build, reason = library.find()
        assert build is not None
        assert (build.name, reason) == (name, f"CREPE_DIST_KERNELS is {name}")
        chosen = choose()
        assert chosen.precision == ("bfloat16" if build.bfloat16 and not build.bfloat16_is_slower else "float32")
        assert f"own kernels ({name})" in str(chosen)
        assert f"CREPE_DIST_KERNELS is {name}" in str(chosen)

    @pytest.mark.parametrize("value", ["", "0", "1"])
    def test_bfloat16_in_software_needs_a_variable_for_developers(self, value, monkeypatch):
        monkeypatch.setenv(library.KERNELS_ENV, "generic")
        monkeypatch.setenv(library.IN_SOFTWARE, value)
        if value == "1":
            reason = "CREPE_DIST_SOFTWARE_BFLOAT16 is 1; CREPE_DIST_KERNELS is generic"
            assert str(choose()) == f"bfloat16, own kernels (generic) ({reason})"
            assert choose(precision="float32").precision == "float32"
        else:
            assert choose().precision == "float32"
            with pytest.raises(UserError, match="this processor cannot compute in bfloat16"):
                choose(precision="bfloat16")

    @pytest.mark.parametrize(
        ("requested", "why"),
        [
            ("avx512_bf16", "this processor lacks avx512_bf16, avx512bw, avx512dq, avx512f, avx512vl"),
            ("sse2", "there is no such build of the kernels"),
        ],
    )
    def test_a_build_that_the_processor_cannot_run_is_refused(self, requested, why, monkeypatch):
        monkeypatch.setattr(library, "processor_flags", lambda: library.BUILDS["avx2"])
        monkeypatch.setenv(library.KERNELS_ENV, requested)
        with pytest.raises(UserError, match=f"CREPE_DIST_KERNELS is {requested}") as raised:
            choose()
        assert raised.value.why == why
        assert raised.value.remedy == "set CREPE_DIST_KERNELS to avx2, generic, none, or unset it"

    @pytest.mark.parametrize("name", BUILDS)
    def test_a_setting_names_a_build(self, name, monkeypatch):
        monkeypatch.delenv(library.KERNELS_ENV, raising=False)
        chosen = choose(kernels=name, precision="float32")
        assert str(chosen) == f"float32, own kernels ({name}) (as requested)"
        library.pin_build(chosen.library)
        try:
            build, reason = library.find()
            assert build is not None
            assert (build.name, reason) == (name, "")
        finally:
            library.pin_build(None)

    def test_a_setting_that_names_a_build_for_another_processor_is_refused(self, monkeypatch):
        monkeypatch.delenv(library.KERNELS_ENV, raising=False)
        monkeypatch.setattr(library, "processor_flags", lambda: library.BUILDS["avx2"])
        with pytest.raises(UserError, match=r"--kernels is avx512") as raised:
            choose(kernels="avx512")
        assert raised.value.why == "this processor lacks avx512bw, avx512dq, avx512f, avx512vl"
        assert raised.value.remedy == "use --kernels avx2, generic, auto"
        monkeypatch.setenv(library.KERNELS_ENV, "generic")
        with pytest.raises(UserError, match=r"--kernels is avx2, but CREPE_DIST_KERNELS is generic"):
            choose(kernels="avx2")


def replace(path, content):
    """Replace a library by a new file. The old file is loaded in this process and must not change."""
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / "builds.json").unlink(), "installed without a compiler, or"),
        (lambda folder: (folder / "builds.json").write_text("{"), "builds.json is damaged"),
        (lambda folder: replace(folder / "crepe_avx2.so", b"\x7fELF"), "crepe_avx2.so is damaged"),
        (lambda folder: (folder / "crepe_avx2.so").unlink(), "No such file"),
        (lambda folder: (folder / "engine.cpp").write_text("// changed"), "from another version"),
    ],
)
def test_a_damaged_or_outdated_build_is_not_loaded(damage, problem, tmp_path, monkeypatch):
    folder = tmp_path / "native"
    shutil.copytree(library.FOLDER, folder)
    monkeypatch.setattr(library, "FOLDER", folder)
    monkeypatch.setattr(library, "RECORD", folder / "builds.json")
    monkeypatch.setattr(library, "processor_flags", lambda: library.BUILDS["avx2"])
    assert library._best.__wrapped__()[1] == ""
    damage(folder)
    build, reason = library._best.__wrapped__()
    assert build is None or build.name == library.GENERIC
    assert problem in reason


@pytest.mark.parametrize(("setting", "expected"), [("3", 3), ("2,1", 2), ("0", 1), (" 4 ", 4)])
def test_the_number_of_threads_is_omp_num_threads(setting, expected, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    assert library.num_threads() == expected


def test_kernels_work_in_a_forked_process():
    def compute():
        library.functions().crepe_time_matmul(0, 64, 3, 1)

    compute()
    child = multiprocessing.get_context("fork").Process(target=compute)
    child.start()
    compute()
    child.join()
    assert child.exitcode == 0


@pytest.mark.parametrize("name", BUILDS)
def test_libgomp_is_not_needed(name):
    """The libraries do not link to libgomp. A pragma whose function is not in threads.cpp would add the link."""
    assert b"libgomp" not in (library.FOLDER / f"crepe_{name}.so").read_bytes()
