"""All measurements of one run, and their ratios."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import mxnet as mx
import numpy as np

from crepe_dist import __version__
from crepe_dist.cluster.world import World
from crepe_dist.data.alphabet import ALPHABET, Codes, Encoding
from crepe_dist.data.dataset import Dataset, open_dataset
from crepe_dist.data.loader import Batch
from crepe_dist.data.preparation import How, prepare
from crepe_dist.data.selection import Split
from crepe_dist.data.sources import find_sources
from crepe_dist.measuring import flops, notebook, ours, scaling
from crepe_dist.measuring.timing import alternate, rate
from crepe_dist.model.network import Shape


@dataclass(frozen=True)
class Sizes:
    """How much is measured; the network is the notebook's.

    Args:
        rounds: of each pair, in turns.
        seconds: of each measurement, at least.
        batch_size: documents a step.
        rows: documents of the data set that is loaded.
    """

    rounds: int = 5
    seconds: float = 4.0
    batch_size: int = 128
    rows: int = 20_000
    feature_len: int = 1014
    filters: int = 256
    units: int = 1024
    classes: int = 7


TINY = Sizes(rounds=1, seconds=0.05, batch_size=8, rows=200, feature_len=123, filters=16, units=32)


def run(sizes: Sizes, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures everything; ``folder`` is for scratch. Returns ``machine``, ``rates`` and ``ratios``."""
    device = mx.cpu()
    texts = _texts(sizes)
    shape = shape_of(sizes)
    rates: dict[str, float] = {}

    say("encoding")
    encoder = ours.Encoder(texts, Encoding(feature_len=sizes.feature_len))
    few = texts[: max(1, len(texts) // 200)]

    def encode_as_the_notebook() -> int:
        for text in few:
            notebook.encode(text, sizes.feature_len)
        return len(few)

    rates |= alternate(
        {
            "encode, documents": lambda: rate(encoder, sizes.seconds / 4),
            "encode, notebook, documents": lambda: rate(encode_as_the_notebook, sizes.seconds / 4),
        },
        sizes.rounds,
    )

    say("loading")
    dataset = _dataset(texts, sizes, folder)
    loading = ours.Loading(dataset.parts["train"], sizes.batch_size)
    rates |= alternate({"load, documents": lambda: rate(loading, sizes.seconds / 4)}, sizes.rounds)

    say("training and prediction")
    codes: Codes = dataset.parts["train"].codes(np.arange(sizes.batch_size))
    batch = ours.ready_batch(codes, sizes.classes)
    training = ours.Training(shape, World(), device)
    forward = ours.Forward(shape, device, batch)
    some = 2 * sizes.batch_size
    loop = notebook.Loop(texts[:some], [n % sizes.classes for n in range(some)], shape, sizes.batch_size)
    runs: dict[str, Callable[[], float]] = {
        "train, documents": lambda: rate(lambda: training.on(_again(batch, 2)), sizes.seconds),
        "train, notebook, documents": lambda: rate(loop.epoch, sizes.seconds),
        "forward, documents": lambda: rate(forward, sizes.seconds),
    }
    runs |= {f"matrix product, {name}, operations": run for name, run in flops.gemms(sizes.seconds / 4).items()}
    rates |= alternate(runs, sizes.rounds)
    scaled = _scaling(shape, sizes, say)
    ceiling = max(value for name, value in rates.items() if name.startswith("matrix product"))
    return {
        "machine": _machine(),
        "rates": rates,
        "ratios": {
            "train_vs_notebook": rates["train, documents"] / rates["train, notebook, documents"],
            "train_vs_matmul_ceiling": rates["train, documents"] * flops.training(shape) / ceiling,
            "forward_vs_matmul_ceiling": rates["forward, documents"] * flops.forward(shape) / ceiling,
            "encode_vs_notebook": rates["encode, documents"] / rates["encode, notebook, documents"],
            **({} if "skipped" in scaled else {"scaling_np2": scaling.weak_ratio(scaled, 2)}),
        },
        "scaling": scaled,
    }


def shape_of(sizes: Sizes) -> Shape:
    return Shape(len(ALPHABET), sizes.feature_len, sizes.classes, sizes.filters, sizes.units)


def training_rate(sizes: Sizes) -> float:
    """Documents a second of our training step alone, in this process."""
    codes = np.random.default_rng(0).integers(0, len(ALPHABET), [sizes.batch_size, sizes.feature_len], dtype=np.uint8)
    batch = ours.ready_batch(codes, sizes.classes)
    training = ours.Training(shape_of(sizes), World(), mx.cpu())
    runs = {"train": lambda: rate(lambda: training.on(_again(batch, 1)), sizes.seconds)}
    return alternate(runs, sizes.rounds)["train"]


def _scaling(shape: Shape, sizes: Sizes, say: Callable[[str], None]) -> dict[str, Any]:
    """What `scaling.run` returns, or why it was ``skipped``."""
    reason = scaling.obstacle()
    if reason:
        say(f"scaling is skipped: {reason}")
        return {"skipped": reason}
    say("scaling")
    # Many short turns: what others do on the machine weighs more here than the length of a measurement.
    return scaling.run(shape, sizes.batch_size, 2 * sizes.rounds, sizes.seconds / 4)


def _texts(sizes: Sizes) -> list[str]:
    """Seeded documents of the length of a review: 430 characters on average, in words."""
    generator = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucm fwyp vbgk "))
    lengths = np.clip(generator.lognormal(5.8, 0.8, sizes.rows), 20, 3000).astype(int)
    return ["".join(generator.choice(letters, length)) for length in lengths]


def _dataset(texts: list[str], sizes: Sizes, folder: Path) -> Dataset:
    source = folder / "texts.tsv"
    source.write_text("".join(f"{n % sizes.classes}\t{text}\n" for n, text in enumerate(texts)), encoding="utf-8")
    out = folder / "prepared"
    encoding = Encoding(feature_len=sizes.feature_len)
    prepare(find_sources([str(source)]), out, encoding, Split(test=0.0), How(processes=1))
    return open_dataset(out)


def _again(batch: Batch, times: int) -> Iterator[Batch]:
    return (batch for _ in range(times))


def _machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", ""),
        "Python": platform.python_version(),
        "MXNet": mx.__version__,
        "crepe_dist": __version__,
    }
