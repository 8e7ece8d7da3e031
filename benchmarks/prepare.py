#!/usr/bin/env python3
"""Measure the speed (rows/s) and the peak of anonymous memory of `prepare` for different formats.

    uv run benchmarks/prepare.py --rows 1000000 --formats csv jsonl.gz parquet

Writes synthetic reviews (seeded; 20 to 1,000 characters, 430 on average, 5 classes) into --folder, prepares each file
with `python -m crepe_dist.prepare`, and prints a Markdown table. Memory is RssAnon in /proc, sampled ten times per
second: of the largest process, and of all processes together.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import itertools
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

WORDS = 20_000
CHUNK = 20_000


def reviews(rows: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    generator = random.Random(seed)
    words = ["".join(generator.choices("etaoinshrdlucmfwypvbgkjqxz", k=generator.randint(2, 11))) for _ in range(WORDS)]
    # Rows are slices of one long text: as varied as words drawn one by one, and much faster to make.
    book = " ".join(generator.choice(words) for _ in range(400_000))
    for _ in range(rows):
        label = generator.randint(1, 5)
        start = generator.randrange(len(book) - 1100)
        text = book[start : start + min(1000, max(20, int(generator.lognormvariate(5.8, 0.8))))]
        yield str(label), f"{text}, {words[label]}!"


def write(path: Path, kind: str, rows: int) -> None:
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([("label", pa.string()), ("text", pa.string())])
        with pq.ParquetWriter(path, schema) as writer:
            source = reviews(rows)
            while chunk := list(itertools.islice(source, CHUNK)):
                labels, texts = zip(*chunk)
                writer.write_table(pa.table([pa.array(labels), pa.array(texts)], schema=schema))
        return
    # Level 6 is what the command gzip uses.
    opened: Any = gzip.open(path, "wt", compresslevel=6) if kind.endswith(".gz") else path.open("w")  # noqa: SIM115
    with opened as stream:
        if kind.startswith("csv"):
            csv.writer(stream).writerows(reviews(rows))
        elif kind.startswith("tsv"):
            stream.writelines(f"{label}\t{text}\n" for label, text in reviews(rows))
        else:
            stream.writelines(json.dumps({"label": label, "text": text}) + "\n" for label, text in reviews(rows))


def measure(command: list[str]) -> tuple[float, int, int]:
    """Run a command; return seconds and the peaks of anonymous memory in bytes, of one process and of all."""
    start = time.monotonic()
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    one = total = 0
    while running.poll() is None:
        now = [_anonymous(process) for process in _family(running.pid)]
        one, total = max([one, *now]), max(total, sum(now))
        time.sleep(0.1)
    if running.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    return time.monotonic() - start, one, total


def _family(process: int) -> list[int]:
    pids = [process]
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(OSError):  # the process has ended
                pids += map(int, task.read_text().split())
    return pids


def _anonymous(process: int) -> int:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon"))


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--rows", type=int, default=1_000_000)
    flags.add_argument("--formats", nargs="+", default=["csv", "csv.gz", "tsv", "jsonl", "jsonl.gz", "parquet"])
    flags.add_argument("--folder", type=Path, default=Path("data/benchmark"))
    flags.add_argument("--feature-len", type=int, default=1014)
    flags.add_argument("more", nargs="*", help="further flags for prepare, after --")
    options = flags.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print("| format | rows | file | seconds | rows/s | peak anonymous memory, one process | all processes |")
    print("|---|---|---|---|---|---|---|")
    for kind in options.formats:
        path, out = options.folder / f"reviews.{kind}", options.folder / "prepared"
        shutil.rmtree(out, ignore_errors=True)
        write(path, kind, options.rows)
        prepare = [sys.executable, "-m", "crepe_dist.prepare", str(path), "--out", str(out), *options.more]
        seconds, one, total = measure([*prepare, f"--feature-len={options.feature_len}"])
        print(
            f"| {kind} | {options.rows:,} | {path.stat().st_size / 1e6:,.0f} MB | {seconds:.1f} | "
            f"{options.rows / seconds:,.0f} | {one / 1e6:,.0f} MB | {total / 1e6:,.0f} MB |",
            flush=True,
        )
        path.unlink()
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
