"""Compilation of CUDA kernels by NVRTC, which needs no GPU."""

import re

import pytest

from crepe_dist import network_registry
from crepe_dist.cuda import compiler
from crepe_dist.cuda.branch import PRECISIONS
from crepe_dist.engines.cuda_engine import shared_constants
from crepe_dist.errors import UserError
from crepe_dist.networks.crepe.config import CrepeConfig
from crepe_dist.networks.ngrams.config import NGramConfig
from tests.helpers import cuda_emulator


def compiled(factor=1, capability=(8, 6)):
    return compiler.compile_cached("probe.cu", {"FACTOR": factor}, capability)


def test_a_program_is_compiled_once_for_each_architecture_and_constant(monkeypatch, tmp_path):
    made, genuine = [], compiler.compile_program

    def compile_program(*given):
        made.append(given[2])
        return genuine(*given)

    monkeypatch.setattr(compiler, "compile_program", compile_program)
    monkeypatch.setattr(compiler, "KERNELS", cuda_emulator.FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    image = compiled()
    assert image == compiled()
    assert made == ["sm_86"]
    (path,) = (tmp_path / "cache" / "crepe_dist" / "cuda").glob("*.cubin")
    path.write_bytes(b"\0" + path.read_bytes()[1:])  # damaged: it is compiled again
    assert compiled() == image
    assert compiled(factor=2) != image
    assert compiled(capability=(8, 0)) != image
    assert made == ["sm_86"] * 3 + ["sm_80"]


def test_a_program_that_does_not_compile_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(compiler, "KERNELS", tmp_path)
    (tmp_path / "wrong.cu").write_text('#include "part.cuh"\n__device__ int wrong = missing;\n')
    (tmp_path / "part.cuh").write_text("__device__ int right;\n")
    with pytest.raises(UserError) as caught:
        compiler.compile_cached("wrong.cu", {}, (8, 6))
    assert caught.value.what == "the kernels in wrong.cu cannot be compiled for sm_86 (NVRTC_ERROR_COMPILATION)"
    assert 'wrong.cu(2): error: identifier "missing" is undefined' in caught.value.why
    assert "pip install nvidia-cuda-nvrtc-cu12" in caught.value.remedy


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [((7, 0), "sm_70"), ((8, 8), "compute_87"), ((10, 3), "compute_100"), ((13, 0), "compute_120")],
)
def test_the_architecture_for_a_gpu(capability, architecture, monkeypatch):
    monkeypatch.setattr(compiler, "_known_architectures", lambda: [50, 70, 80, 87, 89, 90, 100, 101, 120])
    assert compiler.architecture_for(capability) == architecture


@pytest.mark.slow
def test_nvrtc_compiles_all_kernels_for_all_architectures():
    table = NGramConfig(69, 1014, 4, 5, 1 << 20, 36, 1 << 18)
    shapes = [
        table,
        *(CrepeConfig(69, 1014, 4, 5, 1 << 20, 36, 1 << 18, 5, 1 << 18, width, 4, 4, 0.3) for width in (36, 128)),
    ]
    for architecture in (70, 75, 80, 86, 89, 90, 100, 120):
        for shape in shapes:
            part = network_registry.import_network_module(shape.kind, "cuda")
            for precision in ("float32", "float16" if architecture < 80 else "bfloat16"):
                numbers = {**shared_constants(), **part.constants(shape), "PRECISION": PRECISIONS.index(precision)}
                image = compiler.compile_program(part.PROGRAM, numbers, f"sm_{architecture}")
                assert image.startswith(b"\x7fELF"), (shape, precision, architecture)
    for precision, architecture, numbers_of in (("float16", 70, "f32.f32"), ("bfloat16", 80, "f32.bf16.bf16.f32")):
        numbers["PRECISION"] = PRECISIONS.index(precision)
        ptx = compiler.compile_program("crepe.cu", numbers, f"compute_{architecture}")
        assert re.search(rf"wmma\.mma\.sync\.aligned\.\S+\.m16n16k16\.{numbers_of}".encode(), ptx), precision
