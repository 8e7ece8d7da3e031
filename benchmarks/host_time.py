#!/usr/bin/env python3
"""Measure the host's time per training step on a GPU's path, beside the loop of Horovod's MXNet examples.

    uv run benchmarks/host_time.py
    uv run benchmarks/host_time.py --processes 2 --profile

Needs no GPU: MXNet computes on the CPU in a context that says it is one (``tests/gpu/stand_in.py``), and the network is
so small that little is left but the host's work. Ours is a whole run of `train`, with its loader, guards and records.
The examples' loop is written anew after horovod/examples/mxnet/mxnet_mnist.py (0.28.1): record, backward,
``DistributedTrainer.step``; once with its accuracy, which reads two arrays per step, and once without. It gets the same
block, optimizer and batches, made in advance. All loops take turns in the same processes, an epoch each.

Two times are given per step, in µs: that of the processor in the main thread, which waits for nothing, and that of the
clock, which includes the operators and the wait for them. A ratio is the median over the rounds of ours / theirs.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable

from crepe_dist.timing import paired

ROOT = Path(__file__).parents[1]
LOOPS = ("ours", "example", "example without accuracy")
Times = dict[str, list[tuple[float, float]]]


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    flags.add_argument("--precision", choices=("float32", "float16"), default="float32")
    flags.add_argument("--rounds", type=int, default=7, help="epochs of each loop, after one to warm up")
    flags.add_argument("--steps", type=int, default=300, help="steps per epoch")
    flags.add_argument("--dropout", type=float, default=0.5)
    flags.add_argument("--profile", action="store_true", help="print where the time of our steps goes, on rank 0")
    flags.add_argument("--worker", help=argparse.SUPPRESS)
    given = flags.parse_args()
    if given.worker is not None:
        work(Path(given.worker), given)
        return
    print("| processes | loop | main thread, µs | ours / it | clock, µs | ours / it |")
    print("|---|---|---|---|---|---|")
    for processes in given.processes:
        with tempfile.TemporaryDirectory() as folder:
            show(processes, run(Path(folder), processes, given))


def show(processes: int, times: Times) -> None:
    for name in LOOPS:
        cells = []
        for kind in (0, 1):
            ours, it = ([each[kind] for each in times[loop]] for loop in (LOOPS[0], name))
            cells += [f"{statistics.median(it):,.0f}", "" if name == LOOPS[0] else f"{paired(ours, it):.2f}"]
        print(f"| {processes} | {name} | {' | '.join(cells)} |")


def run(folder: Path, processes: int, given: argparse.Namespace) -> Times:
    """Start the workers; return the times of rank 0."""
    sys.path.insert(0, str(ROOT))
    from tests.gpu.machine import environment

    prepare(folder, rows=given.steps * 2 * processes)
    launcher = [sys.executable, str(ROOT / "tests" / "horovodrun.py"), "-np", str(processes)] if processes > 1 else []
    told = {**environment(folder, gpus=processes), "OMP_NUM_THREADS": "1"}
    worker = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--worker", str(folder)]
    subprocess.run([*launcher, *worker], cwd=folder, env=told, check=True)
    return {name: [tuple(pair) for pair in times] for name, times in json.loads((folder / "times.json").read_text())}


def prepare(folder: Path, rows: int) -> None:
    source = folder / "source"
    source.mkdir()
    lines = (f'{{"label": {number % 3}, "text": "document {number}"}}\n' for number in range(rows))
    (source / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    (source / "test.jsonl").write_text('{"label": 0, "text": "another"}\n' * 4, encoding="utf-8")
    arguments = [str(source), "--out", str(folder / "data"), "--feature-len", "123"]
    subprocess.run([sys.executable, "-m", "crepe_dist.prepare", *arguments], stdout=subprocess.DEVNULL, check=True)


def work(folder: Path, given: argparse.Namespace) -> None:
    """Train in this process; before each epoch, run the other loops for as many steps."""
    from crepe_dist.train import main as train

    arguments = {
        "--data": folder / "data",
        "--run-dir": folder / "run",
        "--device": "gpu",
        "--data.batch_size": 2 * int(os.environ.get("HOROVOD_SIZE", "1")),
        "--model.network": "paper",
        "--model.precision": given.precision,
        "--model.filters": 2,
        "--model.units": 4,
        "--model.dropout": given.dropout,
        "--optimizer.name": "sgd",
        "--training.epochs": given.rounds + 1,
        "--logging.report": "false",
    }
    sys.argv = ["train", *(f"{name}={value}" for name, value in arguments.items())]
    # MXNet reads its number of threads when it is imported, which `train` prepares.
    from crepe_dist.distributed.launch import detect, import_mxnet

    import_mxnet(detect())
    from crepe_dist.training import recipe

    times: dict[str, list[tuple[float, float]]] = {name: [] for name in LOOPS}
    others: dict[str, Callable[[], None]] = {}
    train_epoch, profile = recipe.train_epoch, cProfile.Profile(time.thread_time)

    def in_turns(run: Any, guards: Any) -> None:
        if not others:
            others.update(examples(run, given.steps))
        for name, loop in others.items():
            times[name].append(timed(loop, given.steps))
        warm = len(times["ours"]) > 0
        if given.profile and warm:
            profile.enable()
        times["ours"].append(timed(lambda: train_epoch(run, guards), given.steps))
        profile.disable()

    recipe.train_epoch = in_turns
    with open(os.devnull, "w") as quiet:
        out, sys.stdout = sys.stdout, quiet
        train()
        sys.stdout = out
    if detect().rank == 0:
        (folder / "times.json").write_text(json.dumps([(name, all_[1:]) for name, all_ in times.items()]))
        if given.profile:
            pstats.Stats(profile).sort_stats("tottime").print_stats(40)


def timed(loop: Callable[[], None], steps: int) -> tuple[float, float]:
    """Return the main thread's and the clock's µs per step."""
    import mxnet as mx

    mx.nd.waitall()
    thread, clock = time.thread_time(), time.perf_counter()
    loop()
    thread = time.thread_time() - thread
    mx.nd.waitall()
    return 1e6 * thread / steps, 1e6 * (time.perf_counter() - clock) / steps


def examples(run: Any, steps: int) -> dict[str, Callable[[], None]]:
    """Return the loops of the example with and without its accuracy."""
    import horovod.mxnet as hvd
    import mxnet as mx
    from mxnet import autograd, gluon

    from crepe_dist.engines.block import build, trained
    from crepe_dist.settings.model_options import ModelOptions
    from crepe_dist.training.recipe import epoch_batches

    hvd.init()
    context, size = run.engine.device, hvd.size()
    network = build(run.engine.network.shape, ModelOptions(), context, seed=0)
    network.compute_in(run.config.model.precision, context)
    trainer = hvd.DistributedTrainer(trained(network), "sgd", {"momentum": 0.9, "learning_rate": 0.01}, prefix="its.")
    loss_function = gluon.loss.SoftmaxCrossEntropyLoss()
    batches = []
    for batch in epoch_batches(run):
        codes, labels, _ = batch.on(mx.cpu())
        batches.append((codes, labels))
    assert len(batches) == steps

    def loop(accuracy: Any) -> None:
        for data, label in batches:
            data, label = data.as_in_context(context), label.as_in_context(context)
            with autograd.record():
                output = network(data)
                loss = loss_function(output, label)
            loss.backward()
            trainer.step(len(label) * size)
            if accuracy is not None:
                accuracy.update([label], [output])

    return {"example": lambda: loop(mx.metric.Accuracy()), "example without accuracy": lambda: loop(None)}


if __name__ == "__main__":
    main()
