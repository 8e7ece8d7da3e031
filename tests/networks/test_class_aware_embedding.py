"""Class-aware initialisation of the embeddings of the convolutional branch."""

from dataclasses import replace

import numpy as np
import pytest

from crepe_dist.data.dataset import Dataset, open_dataset
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.networks.crepe import init
from crepe_dist.networks.crepe.config import CrepeConfig, hash_positions
from crepe_dist.networks.crepe.init import class_aware_embedding
from crepe_dist.networks.ngrams import init as ngrams
from crepe_dist.settings.config import Config, parse
from crepe_dist.training.model_setup import build_engine
from tests.conftest import needs_kernels

SMALL = [
    "--embedding-rows=512",
    "--width=8",
    "--buckets=64",
    "--epochs=1",
]
DOCUMENTS = np.array([100, 100, 200])


def embedded(*counts: list[int]) -> np.ndarray:
    return class_aware_embedding(np.array(counts, np.int32), DOCUMENTS, 64, seed=3)


def test_an_n_gram_starts_in_the_directions_of_its_classes():
    first, more, other, even, weak = embedded([9, 0, 0], [36, 0, 0], [0, 50, 0], [25, 25, 50], [40, 15, 45])
    lengths = [np.linalg.norm(each) for each in (first, more, other, weak)]
    assert first @ more > 0.9 * lengths[0] * lengths[1]
    assert first @ other < 0.5 * lengths[0] * lengths[2]
    assert lengths[0] < lengths[1]  # With more documents, the same excess is less likely by chance.
    assert 0 < lengths[3] < lengths[0]
    assert not even.any()


def test_the_tower_counts_what_it_sees(data):
    dataset, world = open_dataset(data), ProcessGroup()
    shape = shape_for(dataset)
    part = dataset.splits["train"]
    expected = np.zeros((shape.embedding_rows, shape.num_classes), np.int32)
    buckets, own, _ = hash_positions(
        part.char_ids(np.arange(len(part))),
        shape.alphabet_size,
        shape.embedding_maxn,
        shape.embedding_rows,
        shape.stride,
    )
    for label, each, known in zip(part.labels, buckets, own):
        expected[np.unique(each[known]), label] += 1
    assert (ngrams.count_ngrams(shape.embedding_config, dataset, world) == expected).all()
    joined = ngrams.count_ngrams(replace(shape.embedding_config, num_classes=2), dataset, world)
    assert (joined == np.stack([expected[:, 0::2].sum(axis=1), expected[:, 1::2].sum(axis=1)], axis=1)).all()


def shape_for(dataset: Dataset) -> CrepeConfig:
    encoding = dataset.encoder
    return CrepeConfig.for_data(parse(SMALL).model, encoding, len(dataset.classes), 100)


def table(config: Config, dataset: Dataset) -> np.ndarray:
    with ProcessGroup() as world:
        engine = build_engine(config, dataset, world)
    return engine.state_dict()["tower.table"]


@needs_kernels
def test_a_new_network_has_a_head_start(data, monkeypatch):
    dataset, shape = open_dataset(data), shape_for(open_dataset(data))
    monkeypatch.setattr(init, "CLASS_AWARE_SCALE", 0.0)
    without = table(parse([*SMALL, "--device=cpu"]), dataset)
    assert without.std() == pytest.approx(0.2, rel=0.1)
    counts = ngrams.count_ngrams(shape.embedding_config, dataset, ProcessGroup())
    expected = class_aware_embedding(counts, dataset.class_counts(), shape.width, seed=parse([]).training.seed)
    assert expected.any()
    monkeypatch.setattr(init, "CLASS_AWARE_SCALE", 0.5)
    given = table(parse([*SMALL, "--device=cpu"]), dataset)
    assert given == pytest.approx(without + 0.5 * expected, abs=1e-6)
    monkeypatch.setattr(init, "MAX_COUNTS", 2 * shape.embedding_rows)  # some of the three classes share a direction
    shared = table(parse([*SMALL, "--device=cpu"]), dataset)
    assert (shared != without).any()
    assert (shared != given).any()


@needs_kernels
def test_rows_without_an_n_gram_of_the_training_split_start_at_zero(data):
    dataset, rows = open_dataset(data), 1 << 14
    shape = replace(shape_for(dataset), embedding_rows=rows)
    used = ngrams.count_ngrams(shape.embedding_config, dataset, ProcessGroup()).any(axis=1)
    assert 0 < used.sum() < rows
    assert (table(parse([*SMALL, "--device=cpu", f"--embedding-rows={rows}"]), dataset).any(axis=1) == used).all()


def test_only_a_new_network_learns_faster_in_few_steps(data):
    dataset = open_dataset(data)
    shape = shape_for(dataset)

    def rates(steps: int, *, is_given: bool = False) -> np.ndarray:
        made = init.init_parameters(shape, 0)
        init.init_from_data(made, shape, dataset, ProcessGroup(), 0, steps, made if is_given else ())
        return np.array([parameter.lr_mult for parameter in made.values()])

    usual = rates(1000)
    assert (rates(100) == 2 * usual).all()
    assert (rates(100, is_given=True) == usual).all()
