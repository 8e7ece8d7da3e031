#!/usr/bin/env python3
"""Measure how fast Ray, Spark and Dask classify a table on this machine, compared with `crepe predict`.

    uv sync --inexact --extra parquet --extra remote --extra ray --extra spark --extra dask
    python benchmarks/engines.py MODEL [--rows 200000 1000000]

MODEL is a folder that `crepe export --format crepe` has written. The scripts in examples/ classify two tables of short
texts, which differ in size. Each file of a table has 20,000 rows. The rate is computed from the differences in rows and
seconds between the two tables, so it does not include the start of the engine. The memory is the peak of the sum over
all processes (PSS, which counts each shared page once in total). The script prints a Markdown table.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PREDICT = "predict"  # `crepe predict`, without an engine
METHODS = (PREDICT, "dask", "ray", "spark")
FILE_ROWS = 20_000


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("model", type=Path)
    flags.add_argument("--rows", type=int, nargs=2, default=[200_000, 1_000_000], help="sizes of the two tables")
    methods_help = f"engines to measure; {PREDICT} is the command without an engine"
    flags.add_argument("--on", nargs="+", choices=METHODS, default=METHODS, help=methods_help)
    options = flags.parse_args()
    results: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for rows in options.rows:
            write_table(folder / str(rows), rows)
        for method in options.on:
            results[method] = [
                classify(method, options.model.absolute(), folder / str(rows), rows) for rows in options.rows
            ]
    few, many = options.rows
    print(f"| | {few:,} rows: s, MB | {many:,} rows: s, MB | rows/s |")
    print("|---|---|---|---|")
    for method, (first, last) in results.items():
        cells = " | ".join(f"{seconds:.1f}, {megabytes:,.0f}" for seconds, megabytes in (first, last))
        print(f"| {method} | {cells} | {(many - few) / (last[0] - first[0]):,.0f} |")


def write_table(folder: Path, rows: int) -> None:
    """Write a table of random texts with 4 to 20 words as Parquet files."""
    generator = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbg"))
    words = ["".join(generator.choice(letters, generator.integers(2, 10))) for _ in range(20_000)]
    folder.mkdir()
    for start in range(0, rows, FILE_ROWS):
        lengths = generator.integers(4, 21, FILE_ROWS)
        indices = np.split(generator.integers(0, len(words), lengths.sum()), lengths.cumsum()[:-1])
        texts = [" ".join(words[i] for i in row) for row in indices]
        frame = pd.DataFrame({"id": range(start, start + FILE_ROWS), "text": texts})
        frame.to_parquet(folder / f"{start:09d}.parquet", index=False)


def classify(method: str, model: Path, source: Path, rows: int) -> tuple[float, float]:
    """Classify a table, and check that the output contains each row once. Return the seconds and the peak megabytes."""
    out = source.with_name(f"{source.name}-{method}")
    if method == PREDICT:
        # `crepe predict` reads a single file.
        table = source.with_name(f"{source.name}.parquet")
        pd.read_parquet(source).to_parquet(table, index=False, row_group_size=FILE_ROWS)
        out = out.with_suffix(".parquet")
        command = [sys.executable, "-m", "crepe_dist", "predict", model, "--file", table, "--out", out]
    else:
        command = [sys.executable, EXAMPLES / f"classify_{method}.py", model, source, out]
    variables = {"PYSPARK_PYTHON": sys.executable, "RAY_ADDRESS": "local", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    start = time.perf_counter()
    process = subprocess.Popen(
        [*map(str, command)],
        env={**os.environ, **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    peak = [0.0]  # a list, so that the thread can change the value
    watcher = threading.Thread(target=_record_peak, args=(process, peak))
    watcher.start()
    _, errors = process.communicate()
    seconds = time.perf_counter() - start
    watcher.join()
    if process.returncode:
        sys.exit(errors)
    ids = pd.read_parquet(out, columns=["id"])["id"]
    if len(ids) != rows or ids.nunique() != rows:
        sys.exit(
            f"{method}: the output has {len(ids):,} rows with {ids.nunique():,} different ids, instead of {rows:,}"
        )
    return seconds, peak[0]


def _record_peak(process: subprocess.Popen[str], peak: list[float]) -> None:
    """Update ``peak[0]``, in megabytes, twice a second until the process ends."""
    while process.poll() is None:
        peak[0] = max(peak[0], _megabytes(process.pid))
        time.sleep(0.5)


def _megabytes(pid: int) -> float:
    """Return the memory (PSS) of a process and its descendants in megabytes."""
    parents = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    family = {pid}
    while children := {child for child, parent in parents.items() if parent in family} - family:
        family |= children
    kilobytes = 0
    for member in family:
        try:
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kilobytes / 1000


if __name__ == "__main__":
    main()
