"""All measurements of one run, and their ratios."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable

import numpy as np

from crepe_dist import machine
from crepe_dist.benchmarking import notebook, ours, peers, scaling
from crepe_dist.data.alphabet import ALPHABET, Codes, Encoding
from crepe_dist.data.dataset import Dataset, open_dataset
from crepe_dist.distributed.world import World
from crepe_dist.model.crepe import CrepeShape
from crepe_dist.model.matrix_products import products
from crepe_dist.native import library
from crepe_dist.preparing.preparation import How, prepare
from crepe_dist.preparing.selection import Split
from crepe_dist.preparing.sources import find_sources
from crepe_dist.timing import alternate, rate


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


def run(
    sizes: Sizes, folder: Path, say: Callable[[str], None], device: Any, python: str | None = None
) -> dict[str, Any]:
    """Measures everything; ``folder`` is for scratch, ``python`` has PyTorch and ONNX Runtime to compare with on a CPU.

    Returns ``machine``, ``rates`` a second, ``ratios``, ``waiting`` (the share of its time that a step 100 times as
    fast as ours would wait for data), ``peers`` and ``scaling``.
    """
    texts = _texts(sizes)
    shape = shape_of(sizes)
    say("encoding")
    rates = _encoding(texts, sizes)
    say("loading")
    part = _dataset(texts, sizes, folder).parts["train"]
    rates |= alternate({"load": partial(rate, ours.Loading(part, sizes.batch_size), sizes.seconds / 4)}, sizes.rounds)
    say("training and prediction")
    if python is not None and device.device_type != "cpu":
        say("PyTorch and ONNX Runtime are compared with on CPUs only")
        python = None
    codes = part.codes(np.arange(sizes.batch_size))
    network, about = _network(texts, codes, shape, sizes, device, say, python)
    rates |= network
    step = sizes.batch_size / max(_ours("train", rates).values())
    waits = {"waiting": lambda: ours.waiting(part, sizes.batch_size, step / 100)}
    scaled = _scaling(shape, sizes, device, say)
    return {
        "machine": {**machine.describe(), "device": str(device)},
        "rates": rates,
        "ratios": _ratios(shape, rates, scaled),
        "waiting": alternate(waits, sizes.rounds)["waiting"],
        "peers": about,
        "scaling": scaled,
    }


def _encoding(texts: list[str], sizes: Sizes) -> dict[str, float]:
    few = texts[: max(1, len(texts) // 200)]

    def as_the_notebook() -> int:
        for text in few:
            notebook.encode(text, sizes.feature_len)
        return len(few)

    encoder = ours.Encoder(texts, Encoding(feature_len=sizes.feature_len))
    runs: dict[str, Callable[[], int]] = {"encode": encoder, "encode, notebook": as_the_notebook}
    return alternate({name: partial(rate, work, sizes.seconds / 4) for name, work in runs.items()}, sizes.rounds)


def _network(
    texts: list[str],
    codes: Codes,
    shape: CrepeShape,
    sizes: Sizes,
    device: Any,
    say: Callable[[str], None],
    python: str | None,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Rates of training, forward passes and matrix products of all, in turns; and what the peers say of themselves."""
    batch = ours.ready_batch(codes, sizes.classes)
    some = texts[: 2 * sizes.batch_size]
    labels = [number % sizes.classes for number in range(len(some))]
    loop = notebook.Loop(some, labels, shape, sizes.batch_size, device)
    works: dict[str, Callable[[], int]] = {"train, notebook, from text": loop}
    for precision in ours.precisions(device):
        training = ours.Training(shape, World(), device, precision)
        works[f"train, ours, {precision}"] = partial(training.on_again, batch, 2)
        works[f"forward, ours, {precision}"] = ours.Forward(shape, device, batch, precision)
    encoding = Encoding(feature_len=sizes.feature_len)
    works["train, ours, from text"] = partial(training.on_texts, some, labels, encoding, sizes.batch_size)
    runs: dict[str, Callable[[], float]] = {name: partial(rate, work, sizes.seconds) for name, work in works.items()}
    runs |= {f"matrix product, {name}": run for name, run in products(sizes.seconds / 4, device).items()}
    with peers.open(python, sizes, library.threads(), 20 * sizes.seconds, say) as worker:
        rates = worker.kept(alternate(runs | worker.runs(sizes.seconds), sizes.rounds))
        return rates, worker.about()


def _ours(kind: str, rates: dict[str, float]) -> dict[str, float]:
    """Our rates by precision."""
    start = f"{kind}, ours, "
    return {
        name[len(start) :]: rate for name, rate in rates.items() if name.startswith(start) and "from text" not in name
    }


def _ratios(shape: CrepeShape, rates: dict[str, float], scaled: dict[str, Any]) -> dict[str, float]:
    train, forward = _ours("train", rates), _ours("forward", rates)
    ratios = {
        "train_vs_notebook": rates["train, ours, from text"] / rates["train, notebook, from text"],
        **peers.ratios(train, forward, rates),
        "encode_vs_notebook": rates["encode"] / rates["encode, notebook"],
        "loader_documents_per_second": rates["load"],
    }
    for kind, own, operations in (
        ("train", train, shape.training_operations()),
        ("forward", forward, shape.forward_operations()),
    ):
        shares = {}
        for precision, achieved in own.items():
            ceiling = max(
                rate for name, rate in rates.items() if name.startswith("matrix") and name.endswith(f", {precision}")
            )
            shares[precision] = achieved * operations / ceiling
            ratios[f"{kind}_vs_matmul_ceiling_{precision}"] = shares[precision]
        ratios[f"{kind}_vs_matmul_ceiling"] = min(shares.values())
    if "skipped" not in scaled:
        ratios["scaling_np2"] = scaling.weak_ratio(scaled, 2)
    return ratios


def shape_of(sizes: Sizes) -> CrepeShape:
    return CrepeShape(len(ALPHABET), sizes.feature_len, sizes.classes, sizes.filters, sizes.units)


def training_rate(sizes: Sizes, device: Any) -> float:
    """Documents a second of our training step alone, in this process."""
    codes = np.random.default_rng(0).integers(0, len(ALPHABET), [sizes.batch_size, sizes.feature_len], dtype=np.uint8)
    batch = ours.ready_batch(codes, sizes.classes)
    training = ours.Training(shape_of(sizes), World(), device)
    step = partial(training.on_again, batch, 1)
    return alternate({"train": partial(rate, step, sizes.seconds)}, sizes.rounds)["train"]


def _scaling(shape: CrepeShape, sizes: Sizes, device: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """What `scaling.run` returns, or why it was ``skipped``."""
    reason = scaling.obstacle(device.device_type)
    if reason:
        say(f"scaling is skipped: {reason}")
        return {"skipped": reason}
    say("scaling")
    # Many short turns: what others do on the machine weighs more here than the length of a measurement.
    return scaling.run(shape, sizes.batch_size, 2 * sizes.rounds, sizes.seconds / 4, device.device_type)


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
