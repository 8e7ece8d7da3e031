"""The Crepe network: its configuration, its n-grams, and its special cases in the kernels."""

from dataclasses import replace

import numpy as np
import pytest

from crepe_dist.data.batch import pack_batch
from crepe_dist.data.char_encoder import PAD_UNK_ID, CharEncoder
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.errors import UserError
from crepe_dist.model import weights_io
from crepe_dist.model.branch_weight import WEIGHTS, add_branches
from crepe_dist.native import library
from crepe_dist.native.constants import MIN_DISTINCT_ROWS
from crepe_dist.networks.crepe import config as crepe
from crepe_dist.networks.crepe.config import CrepeConfig
from crepe_dist.networks.crepe.init import CONV_LR_MULT, EMBEDDING_LR_MULT
from crepe_dist.networks.ngrams.config import MAX_MAXN, NGramConfig
from crepe_dist.networks.ngrams.hashing import hash_to_rows, ngram_keys
from crepe_dist.optim.fixed_point import OVERFLOW_BOUND
from crepe_dist.settings.options import ModelOptions, OptimizerOptions
from tests.helpers import reference
from tests.helpers.engines import TrainingStep, answers, assert_near, gradients, learnt, sized, some_batch, varied

pytestmark = pytest.mark.usefixtures("every_build")
BUILDS = library.supported_builds()


@pytest.mark.parametrize("name", BUILDS)
def test_a_text_of_one_character_repeated(name):
    """The positions of such a document have equal values, and only one of them counts as the maximum."""
    shape = sized(blocks=1)
    codes = np.full((4, shape.feature_len), PAD_UNK_ID, np.uint8)
    for row, known in enumerate((60, 40, 9, 7)):
        codes[row, :known] = row
    batch = pack_batch(codes, np.arange(4, dtype=np.int32), 4, 4)
    network = varied(shape)
    loss, wanted = reference.learnt(shape, network.values, batch, seed=1)
    assert_near(learnt(network.opened(name), batch), {"loss": np.array([loss]), **wanted})


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("stride", [1, 2])
def test_the_sum_of_a_row_that_all_ngrams_have_stays_within_its_bound(name, stride):
    """Bounds are sums over documents, so this holds for any number of documents."""
    shape = replace(sized(blocks=1, stride=stride), embedding_rows=1)
    engine = varied(shape).opened(name)
    gradients(engine, pack_batch(np.zeros((24, 60), np.uint8), np.zeros(24, np.int32), 24, 24))
    bound = engine.scales.sum_bounds[list(engine.scales.parameters).index("tower.table")]
    most = np.abs(engine.parameters["tower.table"].grad.astype(np.int64)).max() / engine.scales.bound_unit
    assert 0.5 * bound < most <= bound < OVERFLOW_BOUND


@pytest.mark.parametrize("rows", [MIN_DISTINCT_ROWS, crepe.SHORT_NGRAMS[1], crepe.LONG_NGRAMS[1]])
def test_three_ngrams_of_a_repeated_character_never_have_the_same_row(rows):
    """Their sum is then at most twice its bound, which int32 can represent."""
    text = np.arange(255, dtype=np.uint8)[:, None].repeat(MAX_MAXN, axis=1)
    places = np.stack([hash_to_rows(keys[:, 0], rows) for keys, _ in ngram_keys(text, 255, MAX_MAXN)])
    assert places.shape == (MAX_MAXN, 255)
    assert max(np.unique(row, return_counts=True)[1].max() for row in places.T) <= 2


class TestShape:
    @pytest.mark.parametrize(
        ("shape", "wrong"),
        [
            (sized(width=48, blocks=2, length=61), {"blocks": 3}),
            (NGramConfig(69, 61, 3, 4, 50, 36, 20), {"kind": "paper"}),
        ],
    )
    def test_a_shape_is_known_from_the_parameters_and_the_description(self, shape, wrong):
        arrays, about = varied(shape).values, shape.settings()
        assert weights_io.infer_config(arrays, 69, 61, about) == shape
        assert shape.num_parameters == sum(array.size for array in arrays.values())
        with pytest.raises(UserError, match="not parameters of a crepe_dist network"):
            weights_io.infer_config(arrays, 69, 61, {**about, **wrong})
        name, _ = arrays.popitem()
        with pytest.raises(UserError, match=f"{name} is missing"):
            weights_io.infer_config(arrays, 69, 61, about)

    @pytest.mark.parametrize("wrong", [{"blocks": 0}, {"maxn": "6"}, {"dropout": 1}])
    def test_a_description_of_no_such_network_is_refused(self, wrong):
        with pytest.raises(ValueError, match="is"):
            CrepeConfig.check_settings({**sized().settings(), **wrong})


@pytest.mark.parametrize(
    ("length", "stride", "embedding_maxn", "embedding_rows"),
    [(1, 1, 5, 1 << 17), (64, 1, 5, 1 << 17), (65, 2, 5, 1 << 17), (1025, 8, 7, 1 << 19), (10**6, 64, 7, 1 << 19)],
)
def test_long_texts_are_read_in_steps(length, stride, embedding_maxn, embedding_rows):
    shape = CrepeConfig.for_data(ModelOptions(), CharEncoder(feature_len=length), 4, 1000)
    assert (shape.stride, shape.embedding_maxn, shape.embedding_rows) == (stride, embedding_maxn, embedding_rows)
    assert (
        CrepeConfig.for_data(ModelOptions(embedding_rows=10), CharEncoder(feature_len=length), 4, 1000).embedding_rows
        == 10
    )


def test_a_position_sees_the_ngrams_that_start_there():
    codes = np.full((3, 6), PAD_UNK_ID, np.uint8)
    codes[0], codes[2, 0] = (1, 2, 1, 200, 2, PAD_UNK_ID), 2
    places, own, inside = crepe.hash_positions(codes, 69, 2, 1 << 20, 1)
    both, one, none = [True, True], [True, False], [False, False]
    assert own[0].tolist() == [both, both, both, one, none, both, one, none]  # |1, 12, 21, 1, nothing, 2|, |
    assert inside.sum(axis=1).tolist() == [7, 0, 3]
    edge, first, second = places[0, :3, 0]
    assert first == places[0, 3, 0]
    assert second == places[0, 5, 0] == places[2, 1, 0]
    assert edge == places[0, 6, 0] == places[2, 0, 0] == places[2, 2, 0]
    assert np.unique(places[own]).size == 8  # |, 1, 2, |1, 12, 21, 2| and |2
    wide, its_own, inside = crepe.hash_positions(codes, 69, 2, 1 << 20, 3)
    assert wide.shape == (3, 3, 6)
    assert inside.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    assert (wide.reshape(3, -1)[:, :16][own.reshape(3, -1)] == places[own]).all()
    assert its_own.sum() == own.sum()


def test_embeddings_learn_faster_than_convolutions():
    """Adam's first update changes each element, or the root mean square of a row, by the learning rate."""
    shape = sized()
    engine = varied(shape).opened(BUILDS[0])
    before = {name: each.copy() for name, each in engine.state_dict().items() if "significant" not in name}
    exchange = engine.create_optimizer(ProcessGroup(), OptimizerOptions(weight_decay=0.0), 20)
    TrainingStep(engine, exchange)(some_batch(shape, 20), 1, 0.001)
    exchange.synchronize()
    moved = {name: np.abs(engine.state_dict()[name] - array) for name, array in before.items()}
    for table in ("ngrams.weight", "tower.table"):  # These have one second moment per row.
        moved[table] = np.sqrt((moved[table] ** 2).mean(axis=1))
    moved = {name: each.max() for name, each in moved.items()}
    wanted = dict.fromkeys(moved, 0.001)
    wanted |= {name: 0.001 * CONV_LR_MULT for name in moved if "convolutions" in name}
    wanted["tower.table"] = 0.001 * EMBEDDING_LR_MULT
    assert moved == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", BUILDS)
def test_a_checkpoint_has_the_weight_of_the_tower_and_the_same_logits(name, stride):
    shape = sized(stride=stride)
    network, batch = varied(shape), some_batch(shape, 37)
    engine = network.opened(name)
    plain = answers(engine, batch)
    parts = engine.branch_logits(batch)
    np.testing.assert_array_equal(add_branches(parts, 1.0), plain)
    assert (np.abs(parts).max(axis=(0, 2)) > 0.1).all()
    for weight in WEIGHTS:
        arrays = shape.with_branch_weight(engine.state_dict(), weight)
        other = varied(shape)
        for each, array in other.values.items():
            array[:] = arrays[each]
        again = other.opened(name)
        np.testing.assert_array_equal(add_branches(parts, weight), answers(again, batch))
