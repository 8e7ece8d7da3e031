"""The Crepe network: every build of our kernels that runs here computes what the reference does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from crepe_dist.data.alphabet import BLANK, Encoding
from crepe_dist.data.batch import Batch, pack
from crepe_dist.distributed.world import World
from crepe_dist.engines.engine import Engine
from crepe_dist.errors import UserError
from crepe_dist.model import parameters
from crepe_dist.model.objective import PLAIN, Objective
from crepe_dist.model.part_weight import WEIGHTS, combined
from crepe_dist.native import library
from crepe_dist.networks.crepe import shape as crepe
from crepe_dist.networks.crepe.initial import CONVOLUTIONS_RATE, TABLE_RATE
from crepe_dist.networks.crepe.shape import CrepeShape
from crepe_dist.settings.options import ModelOptions, OptimizerOptions
from tests.helpers import reference
from tests.helpers.engines import Network, TrainingStep, gradients, initial, some_codes

pytestmark = pytest.mark.usefixtures("every_build")
BUILDS = library.runnable()
IN_BFLOAT16 = [name for name in BUILDS if "avx512_bf16" in library.BUILDS[name]]


def sized(
    alphabet: int = 69, length: int = 60, classes: int = 5, width: int = 32, blocks: int = 3, stride: int = 1,
    dropout: float = 0.0,
) -> CrepeShape:  # fmt: skip
    return CrepeShape(
        alphabet, length, classes, 4, 1 << 12, min(36, alphabet), 1 << 10, 3, 1 << 10, width, blocks, stride, dropout
    )


# Widths that are and that are not multiples of the kernels' blocks, each number of pools, texts of odd length, the
# largest alphabet, more classes than a block, n-grams that are longer than the text, and strides that do and do not
# divide it.
SHAPES = [
    sized(blocks=1),
    sized(width=48, blocks=2, length=61),
    sized(width=20, blocks=3, alphabet=254),
    sized(width=64, blocks=4, classes=40),
    CrepeShape(69, 5, 3, 7, 1000, 36, 300, 7, 1000, 8, 4, 1, 0.0),
    sized(stride=2),
    sized(stride=5, blocks=2),
    CrepeShape(69, 60, 5, 4, 1 << 12, 36, 1 << 10, 1, 1 << 10, 32, 1, 2, 0.0),
]


def make(shape: CrepeShape):
    """A network in which no weight is zero, as all are of the second convolution of a new block."""
    network, generator = initial(shape, seed=1), np.random.default_rng(1)
    for name, array in network.values.items():
        if name == "ngrams.significant":
            array[:] = generator.random(array.shape) < 0.1
        elif name == "ngrams.weight":  # its rows are multiplied by 300
            array[:] = generator.normal(0, 0.01, array.shape)
        elif name != "tower.table":
            array += generator.normal(0, 0.05, array.shape).astype(np.float32)
    return network


def some_batch(shape: CrepeShape, rows: int, filling: int = 1, first: int = 3) -> Batch:
    labels = np.random.default_rng(rows).integers(0, shape.classes, rows).astype(np.int32)
    return pack(some_codes(shape, rows), labels, rows + filling, rows, first)


def answers(engine: Engine, batch: Batch) -> np.ndarray:
    engine.refresh()
    return engine.logits(batch)


def learnt(engine: Engine, batch: Batch, step: int = 0) -> dict[str, np.ndarray]:
    """Loss and gradients."""
    loss, found = gradients(engine, batch, 1, step)
    return {"loss": np.array([loss], np.float32), **found}


def expected(network: Network, batch: Batch, step: int = 0, objective: Objective = PLAIN) -> dict[str, np.ndarray]:
    """Loss and gradients of the reference."""
    loss, found = reference.learnt(network.shape, network.values, batch, objective, 1, step)
    return {"loss": np.array([loss]), **found}


def assert_near(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray], most: float = 1e-5) -> None:
    """Compare arrays; ``most``: largest difference, as a share of the largest number."""
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        assert np.abs(got[name] - array).max() <= most * np.abs(array).max(), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", BUILDS)
def test_our_kernels_equal_the_reference(name, shape, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    network, batch = make(shape), some_batch(shape, 37)
    wanted = expected(network, batch)
    assert all(array.any() for array in wanted.values())
    assert_near(learnt(network.opened(name), batch), wanted)
    logits = reference.logits(shape, network.values, batch.packed[:, : shape.feature_len])
    assert_near({"": answers(network.opened(name), batch)}, {"": logits})


@pytest.mark.parametrize("objective", [Objective(0.1), Objective(0.0, (1.0, 2.0, 3.0, 0.5, 0.0))])
def test_both_parts_have_the_objective(objective):
    shape = sized(blocks=2)
    network, batch = make(shape), some_batch(shape, 9)
    wanted = expected(network, batch, objective=objective)
    assert_near(learnt(network.opened(BUILDS[0], objective=objective), batch), wanted)
    assert abs(wanted["loss"] - expected(network, batch)["loss"]) > 0.001


@pytest.mark.parametrize("name", IN_BFLOAT16)
@pytest.mark.parametrize("shape", SHAPES[::2], ids=str)
def test_bfloat16_is_near_float32(name, shape):
    """Gradients move more than values, where rounding gives another position the maximum."""
    network, batch = make(shape), some_batch(shape, 37)
    exact, rounded = network.opened(name), network.opened(name, "bfloat16")
    wanted, got = learnt(exact, batch), learnt(rounded, batch)
    for each, array in wanted.items():
        assert np.linalg.norm(got[each] - array) < 0.4 * np.linalg.norm(array), each
    assert_near({"loss": got["loss"]}, {"loss": wanted["loss"]}, 0.01)
    assert_near({"": answers(rounded, batch)}, {"": answers(exact, batch)}, 0.02)


@pytest.mark.parametrize("name", BUILDS)
def test_dropout_is_that_of_the_reference(name):
    shape = sized(width=20, stride=3, dropout=0.3)
    network, batch = make(shape), some_batch(shape, 37)
    wanted = expected(network, batch, step=4)
    assert_near(learnt(network.opened(name), batch, step=4), wanted)
    assert abs(wanted["loss"] - learnt(network.opened(name), batch, step=5)["loss"]) > 1e-3


@pytest.mark.parametrize("name", BUILDS)
def test_a_text_of_one_character_repeated(name):
    """Its positions have equal values, of which one alone is the maximum."""
    shape = sized(blocks=1)
    codes = np.full((4, shape.feature_len), BLANK, np.uint8)
    for row, known in enumerate((60, 40, 9, 7)):
        codes[row, :known] = row
    batch = pack(codes, np.arange(4, dtype=np.int32), 4, 4)
    network = make(shape)
    assert_near(learnt(network.opened(name), batch), expected(network, batch))


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "float32") for name in BUILDS), *((name, "bfloat16") for name in IN_BFLOAT16)]
)
def test_batches_leave_no_trace(name, precision, monkeypatch):
    """Memory of larger, smaller and differently cut batches is used again."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    shape = sized(width=20, stride=3, dropout=0.3)
    network, batch = make(shape), some_batch(shape, 21)
    gradients, logits = (
        learnt(network.opened(name, precision), batch),
        answers(network.opened(name, precision), batch),
    )
    engine = network.opened(name, precision)
    for rows in (70, 5, 1, 33, 200):
        learnt(engine, some_batch(shape, rows))
        answers(engine, some_batch(shape, rows + 2))
        got = learnt(engine, batch)
        assert all(np.array_equal(got[each], array) for each, array in gradients.items())
        assert np.array_equal(answers(engine, batch), logits)


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "float32") for name in BUILDS), *((name, "bfloat16") for name in IN_BFLOAT16)]
)
def test_the_logits_of_a_document_do_not_depend_on_its_neighbours(name, precision):
    """Tiles of rows begin with a document, and see zeros around it."""
    shape = sized(blocks=1, length=61)
    engine, codes, labels = make(shape).opened(name, precision), some_codes(shape, 21), np.zeros(21, np.int32)
    together = answers(engine, pack(codes, labels, 21, 21))
    assert np.array_equal(answers(engine, pack(codes[::-1].copy(), labels, 21, 21))[::-1], together)
    alone = [answers(engine, pack(codes[row : row + 1], labels[:1], 1, 1))[0] for row in range(21)]
    assert np.array_equal(alone, together)


class TestShape:
    def test_a_shape_is_known_from_the_parameters_and_the_description(self):
        shape = SHAPES[1]
        arrays = make(shape).values
        assert parameters.shape_of(arrays, 69, 61, shape.settings()) == shape
        assert shape.parameters == sum(array.size for array in arrays.values())
        with pytest.raises(UserError, match="not parameters of a crepe_dist network"):
            parameters.shape_of(arrays, 69, 61, replace(shape, blocks=3).settings())

    @pytest.mark.parametrize("wrong", [{"blocks": 0}, {"longest": "6"}, {"dropout": 1}])
    def test_a_description_of_no_such_network_is_refused(self, wrong):
        with pytest.raises(ValueError, match="is"):
            CrepeShape.check_settings({**SHAPES[0].settings(), **wrong})


@pytest.mark.parametrize(
    ("length", "stride", "reach", "rows"),
    [(1, 1, 5, 1 << 17), (64, 1, 5, 1 << 17), (65, 2, 5, 1 << 17), (1025, 8, 7, 1 << 19), (10**6, 64, 7, 1 << 19)],
)
def test_long_texts_are_read_in_steps(length, stride, reach, rows):
    shape = CrepeShape.for_data(ModelOptions(), Encoding(feature_len=length), 4, 1000)
    assert (shape.stride, shape.reach, shape.rows) == (stride, reach, rows)
    assert CrepeShape.for_data(ModelOptions(embeddings=10), Encoding(feature_len=length), 4, 1000).rows == 10


def test_a_position_sees_the_ngrams_that_start_there():
    codes = np.full((3, 6), BLANK, np.uint8)
    codes[0], codes[2, 0] = (1, 2, 1, 200, 2, BLANK), 2
    places, own, inside = crepe.look_up(codes, 69, 2, 1 << 20, 1)
    both, one, none = [True, True], [True, False], [False, False]
    assert own[0].tolist() == [both, both, both, one, none, both, one, none]  # |1, 12, 21, 1, nothing, 2|, |
    assert inside.sum(axis=1).tolist() == [7, 0, 3]
    edge, first, second = places[0, :3, 0]
    assert first == places[0, 3, 0]
    assert second == places[0, 5, 0] == places[2, 1, 0]
    assert edge == places[0, 6, 0] == places[2, 0, 0] == places[2, 2, 0]
    assert np.unique(places[own]).size == 8  # |, 1, 2, |1, 12, 21, 2| and |2
    wide, its_own, inside = crepe.look_up(codes, 69, 2, 1 << 20, 3)
    assert wide.shape == (3, 3, 6)
    assert inside.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    assert (wide.reshape(3, -1)[:, :16][own.reshape(3, -1)] == places[own]).all()
    assert its_own.sum() == own.sum()


def test_embeddings_learn_faster_than_convolutions():
    """Adam's first update moves each number, or the root of the mean square of a row, by the learning rate."""
    shape = sized()
    engine = make(shape).opened(BUILDS[0])
    before = {name: each.copy() for name, each in engine.values().items() if "significant" not in name}
    exchange = engine.open_exchange(World(), OptimizerOptions(weight_decay=0.0), 20)
    TrainingStep(engine, exchange)(some_batch(shape, 20), 1, 0.001)
    exchange.flush()
    moved = {name: np.abs(engine.values()[name] - array) for name, array in before.items()}
    for table in ("ngrams.weight", "tower.table"):  # with one second moment for each row
        moved[table] = np.sqrt((moved[table] ** 2).mean(axis=1))
    moved = {name: each.max() for name, each in moved.items()}
    wanted = dict.fromkeys(moved, 0.001)
    wanted |= {name: 0.001 * CONVOLUTIONS_RATE for name in moved if "convolutions" in name}
    wanted["tower.table"] = 0.001 * TABLE_RATE
    assert moved == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", BUILDS)
def test_a_checkpoint_has_the_weight_of_the_tower_and_the_same_logits(name, stride):
    shape = sized(stride=stride)
    network, batch = make(shape), some_batch(shape, 37)
    engine = network.opened(name)
    plain = answers(engine, batch)
    parts = engine.parts(batch)
    np.testing.assert_array_equal(combined(parts, 1.0), plain)
    assert (np.abs(parts).max(axis=(0, 2)) > 0.1).all()
    for weight in WEIGHTS:
        arrays = shape.weighted(engine.values(), weight)
        other = make(shape)
        for each, array in other.values.items():
            array[:] = arrays[each]
        again = other.opened(name)
        np.testing.assert_array_equal(combined(parts, weight), answers(again, batch))
