"""Classification of a table on each engine, by the example scripts and by the Python of the how-to page."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import crepe_dist
from tests.conftest import QUICK, command, run, train, write_csv
from tests.helpers.needs import needs

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ROWS = 600
ENGINES = ("dask", "ray", pytest.param("spark", marks=needs("java")))


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a table in files of 200 rows. Every 100th row has no text."""
    folder = tmp_path_factory.mktemp("table")
    train("--data", data, "--run-dir", folder / "run", *QUICK)
    run(command("export", "run", "--format", "huggingface", "--out", "model"), folder)
    texts = pd.read_csv(write_csv(folder / "new.csv", ROWS, seed=5), names=["label", "text"])["text"]
    frame = pd.DataFrame({"id": range(ROWS), "text": texts.where(texts.index % 100 > 0)})
    (folder / "new.parquet").mkdir()
    for start in range(0, ROWS, 200):
        frame[start : start + 200].to_parquet(folder / "new.parquet" / f"{start}.parquet", index=False)
    return folder


def start(python: Path, script: Path, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    # If `uv run` started the tests, Ray would start its workers by `uv run` as well.
    ray = {"RAY_ADDRESS": "local", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    return subprocess.run(
        [python, script, *map(str, arguments)],
        env={**os.environ, "PYSPARK_PYTHON": str(python), **ray},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_an_example_classifies_as_one_process_does(
    engine: str, environment: Callable[[str], Path], folder: Path, tmp_path: Path
) -> None:
    example = EXAMPLES / f"classify_{engine}.py"
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 40
    python = environment(engine) / "python"
    done = start(python, example, tmp_path, folder / "model", folder / "new.parquet", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    want, got = (
        frame.sort_values("id", ignore_index=True).fillna({"text": ""})
        for frame in (
            crepe_dist.FramePredictor(folder / "run")(pd.read_parquet(folder / "new.parquet")),
            pd.read_parquet(tmp_path / "out"),
        )
    )
    pd.testing.assert_frame_equal(got[list(want)], want, check_dtype=False)
    assert (got["problem"] != "").sum() == ROWS // 100
