"""Processes on different processors use the best build of the kernels that all of them can run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.files.json_file import read_json
from crepe_dist.model.backend import Backend
from crepe_dist.native import library
from crepe_dist.settings.options import ModelOptions, Precision
from crepe_dist.training.model_setup import common_kernels, common_precision
from tests.conftest import QUICK, command, needs_kernels, run
from tests.helpers.programs import program


@pytest.mark.parametrize(
    ("usable_builds", "expected"),
    [
        ([["amx", "avx2", "generic"], ["avx2", "generic"]], "avx2"),
        ([["avx512", "avx2"], ["amx", "avx512", "avx2"]], "avx512"),
        ([["avx2"], ["avx2"]], None),
        ([["amx"], []], None),  # No common build. The ranks then disagree on the kernels, which is an error.
    ],
)
def test_the_best_common_build_is_used(usable_builds: list[list[str]], expected: str | None) -> None:
    group = SimpleNamespace(size=2, all_gather_json=lambda value, name: usable_builds)
    assert common_kernels(cast(ProcessGroup, cast(Any, group))) == expected


@pytest.mark.parametrize(
    ("requested", "precisions", "expected"),
    [("auto", ["bfloat16", "float32"], "float32"), ("auto", ["bfloat16"] * 2, "bfloat16"),
     ("bfloat16", ["bfloat16", "float32"], "bfloat16")],
)  # fmt: skip
def test_the_precision_suits_all_ranks(requested: Precision, precisions: list[str], expected: str) -> None:
    group = SimpleNamespace(all_gather_json=lambda value, name: precisions)
    own = Backend("bfloat16", None, "the processor has AVX512-BF16")
    backend = common_precision(own, ModelOptions(precision=requested), cast(ProcessGroup, cast(Any, group)))
    assert backend.precision == expected


@needs_kernels
@pytest.mark.skipif(library.supported_builds()[0] == "avx2", reason="this processor has no build above avx2")
@pytest.mark.skipif("avx2" not in library.supported_builds(), reason="this processor has no AVX2")
def test_one_rank_with_an_older_processor(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run equals a run of a single process with the older build. Its checkpoints name the build."""
    monkeypatch.delenv(library.KERNELS_ENV, raising=False)
    flags = ["--data", str(data), *QUICK, "--run-dir"]
    run(program("distributed/older_processor_worker.py", *flags, "two", processes=2), tmp_path)
    run(command("train", *flags, "one", "--kernels=avx2"), tmp_path)
    two, one = (sorted((tmp_path / name / "checkpoints").glob("*.params")) for name in ("two", "one"))
    assert [path.read_bytes() for path in two] == [path.read_bytes() for path in one]
    assert read_json(two[0].with_suffix(".json"))["numerics"]["model.kernels"] == "avx2"
