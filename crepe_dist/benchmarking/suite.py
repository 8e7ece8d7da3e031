"""Suite of all measurements of a benchmark run, and their ratios."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable

import numpy as np

from crepe_dist import machine
from crepe_dist.benchmarking import ceiling, notebook, ours, peers, scaling, short_texts
from crepe_dist.benchmarking.sections import OutOfTime, limited
from crepe_dist.benchmarking.short_texts import Rows
from crepe_dist.data.alphabet import ALPHABET, Codes, Encoding
from crepe_dist.data.dataset import Dataset, open_dataset
from crepe_dist.distributed.world import World
from crepe_dist.engines.matrix_products import products
from crepe_dist.native import library
from crepe_dist.networks.paper.shape import PaperShape
from crepe_dist.preparing.preparation import PrepareOptions, prepare
from crepe_dist.preparing.selection import SplitOptions
from crepe_dist.preparing.sources import find_sources
from crepe_dist.timing import alternate, rate

ALL_ROWS = Rows()


@dataclass(frozen=True)
class Sizes:
    """Sizes of a benchmark; the defaults are the notebook's network.

    Args:
        rounds: number of measurements of each implementation.
        seconds: minimum duration of a measurement.
        batch_size: documents per step.
        rows: documents in the data set for the loader.
        short_texts: sizes of the benchmark on the sample.
        patience: seconds after which an attempt of another implementation is given up.
        limit: seconds after which the last sections are given up: the network's rounds end after half of it, scaling
            after two thirds of what is left.
    """

    rounds: int = 5
    seconds: float = 4.0
    batch_size: int = 128
    rows: int = 20_000
    feature_len: int = 1014
    filters: int = 256
    units: int = 1024
    classes: int = 7
    short_texts: Rows = ALL_ROWS
    patience: float = 200.0
    limit: float = 3600.0


QUICK = Sizes(2, 1.0, short_texts=Rows(1, 1500, 3000, crepe_epochs=1, crepe_per_class=400), patience=40.0, limit=260.0)
TINY = Sizes(1, 0.05, batch_size=8, rows=200, feature_len=123, filters=16, units=32, short_texts=Rows(1, 20, 40, 1, 20))


def run(
    sizes: Sizes, folder: Path, say: Callable[[str], None], device: Any, python: str | None = None
) -> dict[str, Any]:
    """Run all measurements.

    Args:
        folder: scratch folder.
        say: function that prints progress.
        device: MXNet context.
        python: interpreter with PyTorch and ONNX Runtime; they are only measured on a CPU.

    Returns:
        ``machine``, ``rates`` per second, ``ratios``, ``waiting`` (share of time that a step 100 times as fast as ours
        would wait for data), ``peers``, ``scaling``, and on a CPU ``short_texts``.
    """
    end = time.monotonic() + sizes.limit
    texts = _texts(sizes)
    shape = shape_of(sizes)
    say("encoding")
    rates = _encoding(texts, sizes)
    say("loading")
    split = _dataset(texts, sizes, folder).splits["train"]
    rates |= alternate({"load": partial(rate, ours.Loading(split, sizes.batch_size), sizes.seconds / 4)}, sizes.rounds)
    say("training and prediction")
    if python is not None and device.device_type != "cpu":
        say("PyTorch and ONNX Runtime are only measured on CPUs")
        python = None
    codes = split.codes(np.arange(sizes.batch_size))
    network, shares, about = _network(texts, codes, shape, sizes, device, say, python, end - sizes.limit / 2)
    rates |= network
    step = sizes.batch_size / max(_ours("train", rates).values())
    waits = {"waiting": lambda: ours.waiting(split, sizes.batch_size, step / 100)}
    waited = alternate(waits, sizes.rounds)["waiting"]
    scaled = _scaling(shape, sizes, device, say, (end - time.monotonic()) * 2 / 3)
    short: dict[str, Any] = {"table": {}, "ratios": {}}
    if device.device_type == "cpu":
        try:
            with limited(end - time.monotonic()):
                short = short_texts.run(sizes.short_texts, folder, say, python, sizes.patience)
        except OutOfTime:
            say(f"short texts are skipped: not finished {sizes.limit:.0f} s after the start")
    return {
        "machine": {**machine.describe(), "device": str(device)},
        "rates": rates,
        "ratios": _ratios(rates, scaled) | shares | short.pop("ratios"),
        "waiting": waited,
        "peers": about,
        "scaling": scaled,
        "short_texts": short["table"],
    }


def _encoding(texts: list[str], sizes: Sizes) -> dict[str, float]:
    few = texts[: max(1, len(texts) // 200)]

    def encode_like_notebook() -> int:
        for text in few:
            notebook.encode(text, sizes.feature_len)
        return len(few)

    encoder = ours.Encoder(texts, Encoding(feature_len=sizes.feature_len))
    runs: dict[str, Callable[[], int]] = {"encode": encoder, "encode, notebook": encode_like_notebook}
    return alternate({name: partial(rate, work, sizes.seconds / 4) for name, work in runs.items()}, sizes.rounds)


def _network(
    texts: list[str],
    codes: Codes,
    shape: PaperShape,
    sizes: Sizes,
    device: Any,
    say: Callable[[str], None],
    python: str | None,
    until: float,
) -> tuple[dict[str, float], dict[str, float], dict[str, Any]]:
    """Measure training, forward passes and matrix products; return rates, shares of the ceiling, the peers' report."""
    batch = ours.ready_batch(codes, sizes.classes)
    some = texts[: 2 * sizes.batch_size]
    labels = [number % sizes.classes for number in range(len(some))]
    loop = notebook.Loop(some, labels, shape, sizes.batch_size, device)
    works: dict[str, Callable[[], int]] = {"train, notebook, from text": loop}
    networks = [ceiling.open_network(shape, device, batch, precision) for precision in ours.precisions(device)]
    for network in networks:
        works[f"train, ours, {network.precision}"] = partial(network.training.repeat, batch, 2)
        works[f"forward, ours, {network.precision}"] = network.forward
    encoding = Encoding(feature_len=sizes.feature_len)
    works["train, ours, from text"] = partial(networks[-1].training.on_texts, some, labels, encoding, sizes.batch_size)
    runs: dict[str, Callable[[], float]] = {name: partial(rate, work, sizes.seconds) for name, work in works.items()}
    runs |= {f"matrix product, {name}": run for name, run in products(sizes.seconds / 4, device).items()}
    with peers.started(python, sizes, library.threads(), 20 * sizes.seconds, say, sizes.patience) as worker:
        rates = worker.kept(alternate(runs | worker.runs(sizes.seconds), sizes.rounds, until))
        return rates, ceiling.shares(networks, shape, rates, device, 2 * sizes.rounds, until), worker.about()


def _ours(kind: str, rates: dict[str, float]) -> dict[str, float]:
    """Select our rates, by precision."""
    start = f"{kind}, ours, "
    return {
        name[len(start) :]: rate for name, rate in rates.items() if name.startswith(start) and "from text" not in name
    }


def _ratios(rates: dict[str, float], scaled: dict[str, Any]) -> dict[str, float]:
    train, forward = _ours("train", rates), _ours("forward", rates)
    ratios = {
        "train_vs_notebook": rates["train, ours, from text"] / rates["train, notebook, from text"],
        **peers.ratios(train, forward, rates),
        "encode_vs_notebook": rates["encode"] / rates["encode, notebook"],
        "loader_documents_per_second": rates["load"],
    }
    if "skipped" not in scaled:
        ratios["scaling_np2"] = scaling.weak_ratio(scaled, 2)
    return ratios


def shape_of(sizes: Sizes) -> PaperShape:
    return PaperShape(len(ALPHABET), sizes.feature_len, sizes.classes, sizes.filters, sizes.units)


def training_rate(sizes: Sizes, device: Any) -> float:
    """Measure our training step alone, in documents/s."""
    codes = np.random.default_rng(0).integers(0, len(ALPHABET), [sizes.batch_size, sizes.feature_len], dtype=np.uint8)
    batch = ours.ready_batch(codes, sizes.classes)
    training = ours.Training(shape_of(sizes), World(), device)
    step = partial(training.repeat, batch, 1)
    return alternate({"train": partial(rate, step, sizes.seconds)}, sizes.rounds)["train"]


def _scaling(shape: PaperShape, sizes: Sizes, device: Any, say: Callable[[str], None], limit: float) -> dict[str, Any]:
    """Measure scaling (see ``scaling.run``) in so many seconds, or return the reason as ``skipped``."""
    reason = scaling.obstacle(device.device_type)
    if not reason:
        say("scaling")
        try:
            with limited(limit):
                # Many short measurements, because other programs on the machine cause more error than short durations.
                return scaling.run(shape, sizes.batch_size, 2 * sizes.rounds, sizes.seconds / 4, device.device_type)
        except OutOfTime:
            reason = f"not finished in {limit:.0f} s"
    say(f"scaling is skipped: {reason}")
    return {"skipped": reason}


def _texts(sizes: Sizes) -> list[str]:
    """Generate random documents as long as reviews: 430 characters on average, in words."""
    generator = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucm fwyp vbgk "))
    lengths = np.clip(generator.lognormal(5.8, 0.8, sizes.rows), 20, 3000).astype(int)
    return ["".join(generator.choice(letters, length)) for length in lengths]


def _dataset(texts: list[str], sizes: Sizes, folder: Path) -> Dataset:
    source = folder / "texts.tsv"
    source.write_text("".join(f"{n % sizes.classes}\t{text}\n" for n, text in enumerate(texts)), encoding="utf-8")
    out = folder / "prepared"
    encoding = Encoding(feature_len=sizes.feature_len)
    prepare(find_sources([str(source)]), out, encoding, SplitOptions(test=0.0), PrepareOptions(processes=1))
    return open_dataset(out)
