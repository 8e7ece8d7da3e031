"""What a run computes with: the data, and the network on its device; the same on every rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np

from crepe_dist import machine
from crepe_dist.data.alphabet import Encoding
from crepe_dist.data.dataset import Dataset, open_dataset
from crepe_dist.data.loader import epoch_order, share
from crepe_dist.distributed.device import pick
from crepe_dist.distributed.world import World
from crepe_dist.errors import UserError
from crepe_dist.model import ngrams, parameters
from crepe_dist.model.crepe import CrepeShape
from crepe_dist.model.engine import Engine, open_engine
from crepe_dist.model.ngrams import NGrams, NGramShape, buckets_for
from crepe_dist.model.objective import Objective, balanced
from crepe_dist.model.parameters import Network
from crepe_dist.model.precision import Plan, plan
from crepe_dist.model.shape import Shape
from crepe_dist.preparing.preparation import How, prepare_in_steps
from crepe_dist.preparing.selection import Split
from crepe_dist.preparing.sources import SAMPLE, SAMPLE_FEATURE_LEN, find_sources, folder_of
from crepe_dist.reports import data_page
from crepe_dist.settings.config import Config
from crepe_dist.settings.model_options import ModelOptions
from crepe_dist.training import transfer
from crepe_dist.training.display import Display
from crepe_dist.training.transfer import Start

SAMPLE_SPLIT = Split(test=0.2, validation=0.1)
COPIES = 4  # of a parameter: itself, its gradient, and what Adam keeps of both
COUNTED_AT_ONCE = 4096  # documents whose n-grams are counted
OVERFIT_STEPS = 100  # of an epoch that repeats a few batches


def set_up(
    config: Config, world: World, display: Display, sample: Path | None = None
) -> tuple[Dataset, Engine, str | None]:
    """The data as they are trained on; the engine on a network with its initial or given parameters; and what to say of
    given ones.

    Args:
        sample: the sample's folder, if it is another than the usual one; prepared if it is not there yet.

    Raises:
        UserError: on every rank, if something is missing on one of them or they do not agree.
    """
    dataset = open_data(config.data.source, world, display, sample)
    _check_parts(config, dataset)
    device = world.agree("device", lambda: pick(config.device, world.local_rank, world.local_size))
    world.agree("settings", lambda: None, same=lambda _: config.identity())
    start = world.agree("parameters to start from", lambda: _start(config, dataset), same=_identity)
    kind = start.shape.kind if start else config.model.kind(len(dataset.parts["train"]))
    computing = world.agree("precision", lambda: plan(config.model, device, kind), same=Plan.result)
    objective = world.agree("class weights", lambda: _objective(config, dataset))
    network = world.agree("network", lambda: build_network(config, dataset, device, start))
    if isinstance(network, NGrams) and start is None:
        look_at_ngrams(network, dataset, world, config.model.deviations)
    if config.training.overfit_batches:
        dataset = _few_batches(config, dataset)
    engine = open_engine(network, computing, device, objective, config.data.micro_batch_size or 0)
    return dataset, engine, start.said if start else None


def _start(config: Config, dataset: Dataset) -> Start | None:
    given = config.training.init_from
    return None if given is None else transfer.read(given, config.model, dataset)


def _identity(start: Start | None) -> list[str] | None:
    return [start.sha256, start.said] if start else None


def _check_parts(config: Config, dataset: Dataset) -> None:
    if config.training.patience and "validation" not in dataset.parts:
        raise UserError(
            "training.patience needs data with a validation part",
            "the test part must not decide when to stop",
            "prepare the data with --validation 0.1",
            on_all_ranks=True,
        )


def open_data(source: str, world: World, display: Display, sample: Path | None = None) -> Dataset:
    """Opens a prepared folder on every rank; the sample is prepared by rank 0 if it is not there yet.

    Raises:
        UserError: on every rank, if one of them cannot open it or sees other data.
    """
    folder = sample if source == SAMPLE and sample is not None else folder_of(source)
    missing = source == SAMPLE and world.broadcast(not folder.exists(), "sample missing")
    if missing:
        display.say(f"preparing the sample in {folder}")
        world.on_root("sample", _prepare_sample(folder))
    dataset = world.agree("data", lambda: _open(folder), same=lambda dataset: dataset.fingerprint)
    if "test" not in dataset.parts:
        raise UserError(
            f"{folder} has no test part",
            "each epoch is scored on it",
            "prepare the data with --test FILE or --test 0.2",
            on_all_ranks=True,
        )
    return dataset


def _open(folder: Path) -> Dataset:
    if folder.is_file():
        raise UserError(
            f"{folder} is not a prepared data set but a file",
            remedy=f"python -m crepe_dist.prepare {folder} --out data/{folder.name.split('.')[0]}, "
            "then give that folder",
        )
    return open_dataset(folder)


def _prepare_sample(folder: Path) -> Iterator[object]:
    encoding = Encoding(feature_len=SAMPLE_FEATURE_LEN)
    yield from prepare_in_steps(
        find_sources([SAMPLE]), folder, encoding, SAMPLE_SPLIT, How(processes=1, page=data_page.page)
    )


def build_network(config: Config, dataset: Dataset, device: Any, start: Start | None = None) -> Network:
    """The network that ``config`` and the data ask for, with its initial or given parameters."""
    shape = start.shape if start else _shape(config.model, dataset)
    _check_memory(shape)
    network = parameters.build(shape, config.model, device, config.training.seed)
    if start:
        start.give(network)
    return network


def look_at_ngrams(network: NGrams, dataset: Dataset, world: World, deviations: float) -> None:
    """Tells the network which n-grams are significant in the training part; every rank counts its share of it."""
    part, shape = dataset.parts["train"], network.shape
    counts = np.zeros((shape.buckets, shape.classes), np.int32)
    first, last = share(0, len(part), world.rank, world.size)
    for start in range(first, last, COUNTED_AT_ONCE):
        rows = np.arange(start, min(start + COUNTED_AT_ONCE, last))
        ngrams.count(part.codes(rows), part.labels[rows], shape, counts)
        world.beat()
    counts = world.sum(counts, "n-grams")
    found = ngrams.significant(counts, dataset.class_counts(), deviations)
    network.significant.set_data(mx.nd.array(found))


def _shape(options: ModelOptions, dataset: Dataset) -> CrepeShape | NGramShape:
    rows, classes, encoding = len(dataset.parts["train"]), len(dataset.classes), dataset.encoding
    characters = len(encoding.alphabet)
    if options.kind(rows) == "ngrams":
        buckets = options.buckets or buckets_for(classes)
        return NGramShape(characters, encoding.feature_len, classes, options.longest, buckets)
    return CrepeShape(characters, encoding.feature_len, classes, *options.widths(rows), options.dropout)


def _check_memory(shape: Shape) -> None:
    """Before an allocation that the system might end this process, or another one, for."""
    count = shape.parameters
    if count * COPIES * 4 > machine.memory():
        raise UserError(
            f"this network ({shape}) is too large for this machine",
            f"its {count:,} parameters take {COPIES * 4 * count / 1e9:,.0f} GB in training, "
            f"the machine has {machine.memory() / 1e9:,.0f} GB",
            "lower model.filters and model.units, or choose a model.size"
            if isinstance(shape, CrepeShape)
            else "lower model.buckets",
        )


def _objective(config: Config, dataset: Dataset) -> Objective:
    given, smoothing = config.training.class_weights, config.training.label_smoothing
    if given == "none":
        return Objective(smoothing)
    if given == "balanced":
        return Objective(smoothing, balanced(dataset.class_counts()))
    assert isinstance(given, dict)
    unknown = set(given) - set(dataset.classes)
    if unknown:
        raise UserError(
            f"training.class_weights names {', '.join(sorted(unknown))}, which is no class of the data",
            f"there are {', '.join(dataset.classes)}"[:300],
            "write the names as prepare shows them",
        )
    return Objective(smoothing, tuple(given.get(name, 1.0) for name in dataset.classes))


def _few_batches(config: Config, dataset: Dataset) -> Dataset:
    """The first batches of the first epoch, repeated to make an epoch, as the part to train and the part to score."""
    wanted, part = config.training.overfit_batches, dataset.parts["train"]
    rows = epoch_order(len(part), config.training.seed, 0)[: wanted * config.data.batch_size]
    times = max(1, OVERFIT_STEPS // wanted)
    return replace(dataset, parts={"train": part.some(rows, times), "test": part.some(rows)})
