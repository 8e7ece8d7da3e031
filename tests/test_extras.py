"""Libraries that only some features need: what needs none, and what is said where one is missing."""

import re
import sys
from pathlib import Path

import pytest

from crepe_dist import extras
from tests.conftest import QUICK, needs_kernels, run, write_csv
from tests.helpers.programs import program
from tests.helpers.without_extras import MODULES

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def without_extras(name: str, *arguments: object) -> list[str]:
    return program("helpers/without_extras.py", name, *arguments)


def test_pyproject_has_the_same_extras():
    section = PYPROJECT.read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    lines = re.findall(r"^(\w+) = \[(.*)\]$", section, re.MULTILINE)
    declared = {name: tuple(re.findall('"([^"<>= ]*)[^"]*"', packages)) for name, packages in lines}
    large = ("encoders", "gpu", "gpus", "mlflow", "mpi", "ray", "wandb")
    small = [name for name in extras.PACKAGES if name not in large]
    assert declared.pop("all") == (f"crepe_dist[{','.join(small)}]",)
    assert declared == dict(extras.PACKAGES)


def test_the_core_imports_no_library_of_an_extra(tmp_path):
    imported = run(program("helpers/print_core_imports.py"), tmp_path).split()
    assert not {"horovod", "mxnet", "pandas", *MODULES}.intersection(imported)


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        ("parquet", ("prepare", "rows.parquet", "--out", "out")),
        ("remote", ("prepare", "s3://bucket/rows.csv", "--out", "out")),
        ("reports", ("evaluate", "--html", "page.html")),
        ("serve", ("serve", "run")),
    ],
)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(extra, line, complaint, tmp_path, monkeypatch):
    for module in MODULES:
        monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    what, why, remedy = complaint(*line, cwd=tmp_path).splitlines()
    assert what.endswith(f" needs {', '.join(extras.PACKAGES[extra])}")
    assert why == f"  why: not installed in {sys.prefix}"
    packages = " ".join(extras.PACKAGES[extra])
    assert remedy == f"  do:  pip install {packages}; in a clone of the repository: uv sync --inexact --extra {extra}"


@needs_kernels  # Without kernels, MXNet computes, which imports requests.
def test_what_is_prepared_and_trained_without_extras_has_no_pages(tmp_path):
    write_csv(tmp_path / "rows.csv", 120, seed=1)
    said = " ".join(run(without_extras("prepare", "rows.csv", "--out", "data", "--test", "0.2"), tmp_path).split())
    assert "report no page without jinja2, matplotlib, tensorboardX; to install: pip install" in said
    assert not (tmp_path / "data" / "report.html").exists()
    line = ("--data", "data", "--run-dir", "run", *QUICK, "--logging.report=true")
    said = run(without_extras("train", *line), tmp_path)
    assert said.startswith("note: no report without jinja2, matplotlib, tensorboardX; to install: ")
    assert not {"report.html", "model_card.md", "tensorboard"}.intersection(
        path.name for path in (tmp_path / "run").iterdir()
    )
    for name, *more in (("predict", "run", "--text", "a film"), ("evaluate", "run")):
        assert run(without_extras(name, *more), tmp_path)
