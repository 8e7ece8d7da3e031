"""Compilation of CUDA kernels: on a stand-in for NVRTC, and by NVRTC itself, which needs no GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from crepe_dist import registry
from crepe_dist.cuda import compiler, nccl
from crepe_dist.cuda.network import PRECISIONS
from crepe_dist.engines.cuda import shared_constants
from crepe_dist.errors import UserError
from crepe_dist.networks.crepe.shape import CrepeShape
from crepe_dist.networks.ngrams.shape import NGramShape
from tests.helpers import cuda_emulator
from tests.helpers.needs import needs

FOLDER = cuda_emulator.FOLDER
KNOWN = [50, 70, 72, 75, 80, 86, 87, 89, 90, 100, 101, 120]


@pytest.fixture
def emulated(monkeypatch, tmp_path):
    """Use the stand-in, and return the list to which each compilation adds its architecture."""
    made, genuine = [], compiler.compile_program

    def compile_program(program, defines, architecture, *arguments, **named):
        made.append(architecture)
        return genuine(program, defines, architecture, *arguments, **named)

    monkeypatch.setattr(compiler, "compile_program", compile_program)
    monkeypatch.setattr(compiler, "KERNELS", FOLDER)
    with cuda_emulator.used():
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield made


def compiled(factor=1, capability=(8, 6)):
    return compiler.compiled("probe.cu", {"FACTOR": factor}, capability)


@needs("g++")
def test_a_program_is_compiled_once_for_each_architecture_and_constant(emulated, tmp_path):
    image = compiled()
    assert image == compiled()
    assert emulated == ["sm_86"]
    (path,) = (tmp_path / "cache" / "crepe_dist" / "cuda").glob("*.cubin")
    path.write_bytes(b"\0" + path.read_bytes()[1:])  # damaged: it is compiled again
    assert compiled() == image
    assert compiled(factor=2) != image
    assert compiled(capability=(8, 0)) != image
    assert emulated == ["sm_86"] * 3 + ["sm_80"]


@needs("g++")
@pytest.mark.usefixtures("emulated")
def test_a_program_that_does_not_compile_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(compiler, "KERNELS", tmp_path)
    (tmp_path / "wrong.cu").write_text('#include "part.cuh"\nint wrong = missing;\n')
    (tmp_path / "part.cuh").write_text("int right;\n")
    with pytest.raises(UserError) as caught:
        compiler.compiled("wrong.cu", {}, (8, 6))
    assert caught.value.what == "the kernels in wrong.cu cannot be compiled for sm_86 (NVRTC_ERROR_COMPILATION)"
    assert "wrong.cu:2:13: error: ‘missing’ was not declared" in caught.value.why
    assert "pip install nvidia-cuda-nvrtc-cu12" in caught.value.remedy


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [
        ((7, 0), "sm_70"),
        ((8, 8), "compute_87"),
        ((13, 0), "compute_120"),
    ],
)
def test_the_architecture_for_a_gpu(capability, architecture, monkeypatch):
    monkeypatch.setattr(compiler, "_known_architectures", lambda: KNOWN)
    assert compiler.architecture_for(capability) == architecture


# ---- by NVRTC itself


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    """A folder with NVRTC and the headers of CUDA and NCCL, for PYTHONPATH."""
    folder = tmp_path_factory.mktemp("packages")
    pins = dict(re.findall(r'"(nvidia-[\w-]+)==([\w.]+)"', (FOLDER.parents[2] / "pyproject.toml").read_text()))
    wanted = [f"{name}=={pins[name]}" for name in (compiler.PACKAGE, nccl.PACKAGE)]
    target = ["--target", str(folder), "--python", sys.executable]
    headers = f"nvidia-cuda-runtime-cu12=={pins[compiler.PACKAGE].rpartition('.')[0]}.*"
    subprocess.run(["uv", "pip", "install", "--quiet", "--no-deps", *target, *wanted, headers], check=True)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
@needs("uv")
def test_nvrtc_compiles_all_kernels_for_all_architectures(packages):
    """In a process that finds the package: this one may have loaded the stand-in."""
    code = "from tests.cuda import test_cuda_compiler; test_cuda_compiler.check_kernels()"
    told = {**os.environ, "PYTHONPATH": f"{packages}:{FOLDER.parents[2]}"}
    subprocess.run([sys.executable, "-c", code], env=told, check=True, cwd=FOLDER.parents[2])


def check_kernels() -> None:
    """Compile each program by NVRTC for each architecture and precision."""
    assert compiler.version() < (12, 99), "the stand-in"
    table = NGramShape(69, 1014, 4, 5, 1 << 20, 36, 1 << 18)
    shapes = [
        table,
        *(CrepeShape(69, 1014, 4, 5, 1 << 20, 36, 1 << 18, 5, 1 << 18, width, 4, 4, 0.3) for width in (36, 128)),
    ]
    for architecture in (70, 75, 80, 86, 89, 90, 100, 120):
        for shape in shapes:
            part = registry.part(shape.kind, "cuda")
            for precision in ("float32", "float16" if architecture < 80 else "bfloat16"):
                numbers = {**shared_constants(), **part.constants(shape), "PRECISION": PRECISIONS.index(precision)}
                image = compiler.compile_program(part.PROGRAM, numbers, f"sm_{architecture}")
                assert image.startswith(b"\x7fELF"), (shape, precision, architecture)
    for precision, architecture, numbers_of in (("float16", 70, "f32.f32"), ("bfloat16", 80, "f32.bf16.bf16.f32")):
        numbers["PRECISION"] = PRECISIONS.index(precision)
        ptx = compiler.compile_program("crepe.cu", numbers, f"compute_{architecture}")
        assert re.search(rf"wmma\.mma\.sync\.aligned\.\S+\.m16n16k16\.{numbers_of}".encode(), ptx), precision
