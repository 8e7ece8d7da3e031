#!/usr/bin/env python3
"""Use the commands of an installed wheel, and print a row of a table for each.

    uv build --wheel
    uv venv -p 3.13 /tmp/fresh
    uv pip install -p /tmp/fresh "$(ls dist/*.whl)[sklearn]"
    /tmp/fresh/bin/python tools/try_wheel.py

Needs nothing beside that environment, so it also runs in a container or on an emulated processor. Trains small networks
on made-up texts: the SHA-256 of the parameters is the same for every Python with the same build of the kernels. Exits
with 1 if a command failed.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TEXTS = 400
WORDS = {"good": "sunny bright warm lovely gentle", "bad": "rainy gloomy cold nasty rough"}
SMALL = ("--buckets=4096", "--embedding-rows=1024", "--width=16", "--epochs=3")
CLASSIFIER = """
from crepe_dist import CrepeClassifier
import csv
rows = list(csv.DictReader(open("rows.csv")))
texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
found = CrepeClassifier(network="ngrams", epochs=3, settings={"model.buckets": 4096}).fit(texts, labels)
print(f"accuracy {found.score(texts, labels):.2f}")
"""
RUNS = {"train": "run", "supervise -np 2": "two"}  # folder of the run of each training, with the same parameters
ABOUT = """
import numpy, pandas
from crepe_dist.native import library
found, trouble = library.find()
print(f"NumPy {numpy.__version__}, pandas {pandas.__version__} | {found.name if found else trouble}")
"""
# Name of the row, arguments of Python, and a text that the command prints.
COMMANDS = (
    ("--help", ("-m", "crepe_dist", "--help"), "train a classifier"),
    ("doctor", ("-m", "crepe_dist", "doctor"), ""),
    ("prepare", ("-m", "crepe_dist", "prepare", "rows.csv", "--out=data", "--validation=0.2", "--test=0.2"), ""),
    ("train", ("-m", "crepe_dist", "train", "--data=data", "--run-dir=run", *SMALL), ""),
    ("evaluate", ("-m", "crepe_dist", "evaluate", "run", "--data=data"), "accuracy"),
    ("predict", ("-m", "crepe_dist", "predict", "run", "--text=sunny warm"), "good"),
    ("export", ("-m", "crepe_dist", "export", "run", "--data=data", "--format=crepe", "--out=model"), ""),
    ("predict, exported", ("-m", "crepe_dist", "predict", "model", "--text=sunny warm"), "good"),
    ("inspect", ("-m", "crepe_dist", "inspect", "data", "--out=findings"), ""),
    ("CrepeClassifier", ("-c", CLASSIFIER), "accuracy 1.00"),
    ("supervise -np 2", ("-m", "crepe_dist", "supervise", "-np", "2", "--data=data", "--run-dir=two", *SMALL), ""),
)


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--only", metavar="NAMES", help="rows to try, with commas between them; default: all")
    flags.add_argument("--seconds", type=float, default=300, metavar="S", help="time for each command; default: 300")
    args = flags.parse_args()
    only = args.only.split(",") if args.only else [name for name, _, _ in COMMANDS]
    about = subprocess.run([sys.executable, "-c", ABOUT], capture_output=True, text=True, check=True, cwd="/").stdout
    place = f"{platform.python_version()} | {platform.machine()} | {about.strip()}"
    failed, trained = 0, set()
    with tempfile.TemporaryDirectory() as folder:
        _write_rows(Path(folder) / "rows.csv")
        for name, arguments, expected in COMMANDS:
            if name not in only:
                continue
            began = time.perf_counter()
            seen, trouble = _run(folder, arguments, expected, args.seconds)
            took = f"{time.perf_counter() - began:.1f} s"
            if name in RUNS and not trouble:
                seen = _parameters(Path(folder) / RUNS[name])
                trained.add(seen)
                trouble = "" if len(trained) == 1 else f"other parameters than one process: {seen}"
            failed += bool(trouble)
            print(f"| {place} | {name} | {'failed' if trouble else 'works'} | {took} | {trouble or seen} |", flush=True)
    return 1 if failed else 0


def _run(folder: str, arguments: tuple[str, ...], expected: str, seconds: float) -> tuple[str, str]:
    """Run Python; return the line that shows that it worked, and the reason if it did not."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return "", f"no end within {seconds:.0f} s"
    lines = [line.strip() for line in f"{done.stderr}\n{done.stdout}".splitlines() if line.strip()]
    if done.returncode or any(line.startswith("Traceback") for line in lines):
        errors = [line for line in lines if line.startswith("error")] or lines[-1:]
        return "", errors[0] if errors else f"exit code {done.returncode}"
    found = [line for line in lines if expected in line]
    return (found[0 if expected else -1], "") if found else ("", f"does not print {expected!r}")


def _parameters(run: Path) -> str:
    """Return what identifies the trained parameters."""
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256((run / result["checkpoint"]).read_bytes()).hexdigest()
    return f"SHA-256 {digest[:16]}, test accuracy {result['test_accuracy']:.3f}"


def _write_rows(path: Path) -> None:
    """Write texts of two classes that differ in their words."""
    lines = ["label,text"]
    for row in range(TEXTS):
        label = ("good", "bad")[row % 2]
        words = WORDS[label].split()
        lines.append(f"{label},{words[row % 5]} {words[row // 5 % 5]} day number {row}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
