#!/usr/bin/env python3
"""Measure how fast Ray, Spark and Dask classify a table on this machine, compared with `crepe predict`.

    uv sync --inexact --extra parquet --extra remote --extra ray --extra spark --extra dask
    python benchmarks/engines.py MODEL [--rows 200000 1000000]

MODEL is a folder of `crepe export --format crepe`. The scripts in examples/ classify tables of short texts in two
sizes, with 20,000 rows per file. The rate is computed from the difference between the two sizes, so it does not include
the start of the engine. The memory is the largest sum over all processes (PSS: shared pages count once). The script
prints a Markdown table.
"""

from __future__ import annotations

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
ALONE = "predict"
WAYS = (ALONE, "dask", "ray", "spark")
FILE_ROWS = 20_000


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("model", type=Path)
    flags.add_argument("--rows", type=int, nargs=2, default=[200_000, 1_000_000])
    flags.add_argument("--on", nargs="+", choices=WAYS, default=WAYS, help=f"{ALONE}: the command alone")
    given = flags.parse_args()
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for rows in given.rows:
            write_table(folder / str(rows), rows)
        for who in given.on:
            found[who] = [classify(who, given.model.absolute(), folder / str(rows), rows) for rows in given.rows]
    few, many = given.rows
    print(f"| | {few:,} rows: s, MB | {many:,} rows: s, MB | rows/s |")
    print("|---|---|---|---|")
    for who, (first, last) in found.items():
        cells = " | ".join(f"{seconds:.1f}, {megabytes:,.0f}" for seconds, megabytes in (first, last))
        print(f"| {who} | {cells} | {(many - few) / (last[0] - first[0]):,.0f} |")


def write_table(folder: Path, rows: int) -> None:
    """Write Parquet files of texts of 4 to 20 words."""
    generator = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbg"))
    words = ["".join(generator.choice(letters, generator.integers(2, 10))) for _ in range(20_000)]
    folder.mkdir()
    for start in range(0, rows, FILE_ROWS):
        lengths = generator.integers(4, 21, FILE_ROWS)
        chosen = np.split(generator.integers(0, len(words), lengths.sum()), lengths.cumsum()[:-1])
        texts = [" ".join(words[i] for i in each) for each in chosen]
        frame = pd.DataFrame({"id": range(start, start + FILE_ROWS), "text": texts})
        frame.to_parquet(folder / f"{start:09d}.parquet", index=False)


def classify(who: str, model: Path, source: Path, rows: int) -> tuple[float, float]:
    """Return the seconds and the megabytes of a command that classifies a table, after a check of its rows."""
    out = source.with_name(f"{source.name}-{who}")
    if who == ALONE:
        # One file: what `crepe predict` reads.
        whole = source.with_name(f"{source.name}.parquet")
        pd.read_parquet(source).to_parquet(whole, index=False, row_group_size=FILE_ROWS)
        out = out.with_suffix(".parquet")
        command = [sys.executable, "-m", "crepe_dist", "predict", model, "--file", whole, "--out", out]
    else:
        command = [sys.executable, EXAMPLES / f"classify_{who}.py", model, source, out]
    own = {"PYSPARK_PYTHON": sys.executable, "RAY_ADDRESS": "local", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    began = time.perf_counter()
    process = subprocess.Popen(
        [*map(str, command)], env={**os.environ, **own}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    largest = [0.0]
    watcher = threading.Thread(target=_watch, args=(process, largest))
    watcher.start()
    _, printed = process.communicate()
    seconds = time.perf_counter() - began
    watcher.join()
    if process.returncode:
        sys.exit(printed)
    ids = pd.read_parquet(out, columns=["id"])["id"]
    if len(ids) != rows or ids.nunique() != rows:
        sys.exit(f"{who} answered {len(ids):,} rows of {rows:,}")
    return seconds, largest[0]


def _watch(process: subprocess.Popen[str], largest: list[float]) -> None:
    while process.poll() is None:
        largest[0] = max(largest[0], _megabytes(process.pid))
        time.sleep(0.5)


def _megabytes(pid: int) -> float:
    """Return the memory of a process and its descendants."""
    parents = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    kilobytes = 0
    for each in family:
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kilobytes / 1000


if __name__ == "__main__":
    main()
