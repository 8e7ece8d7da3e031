"""Quanta of gradients in whole numbers: they follow the bounds of the sums."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest

from crepe_dist.data.batch import pack_batch
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.networks.ngrams.config import NGramConfig
from crepe_dist.optim.fixed_point import INITIAL_EXPONENT, MIN_EXPONENT, OVERFLOW_BOUND, FixedPointScales
from crepe_dist.optim.parameter import Parameter
from crepe_dist.settings.options import OptimizerOptions
from tests.conftest import needs_kernels
from tests.helpers.engines import TrainingStep, best, initial
from tests.parallel.test_sharded_embedding import CREPE, Training, weigh

TABLE = NGramConfig(69, 8, 2, 2, 1 << 8, 36, 1 << 6)


def bounds(*each: float) -> list[list[float]]:
    return np.array([each], np.float32).tolist()


def quanta(parameters: int) -> FixedPointScales:
    return FixedPointScales({str(number): Parameter(np.zeros(1, np.float32)) for number in range(parameters)})


def settled(*exponents: int) -> FixedPointScales:
    """Quanta that an update has decided."""
    sums = quanta(len(exponents))
    sums.load_state_dict(np.array(exponents, np.int32))
    sums.start_step(1)
    return sums


def test_the_next_quantum_leaves_room_for_a_sum_eight_times_as_large():
    sums = settled(-20, -20, -20)
    assert sums.update_scales(bounds(OVERFLOW_BOUND - 1, 2**17, 2**17 - 1))
    sums.start_step(1)
    assert sums.exponents[:] == [-17, -19, -20]


def test_a_step_that_might_not_fit_is_computed_again():
    sums = settled(-20, -20)
    assert not sums.update_scales(bounds(2**25, 2**17))
    first, second = sums.exponents
    assert first > -20
    assert second >= -20
    assert sums.update_scales(bounds(2**19, 2**16))


def test_numbers_that_are_not_finite_are_not_computed_again():
    sums = settled(-20)
    assert sums.update_scales(bounds(np.nan))
    assert sums.exponents[:] == [-20]


def test_the_first_step_is_computed_until_the_quanta_are_small():
    sums = quanta(2)
    assert sums.exponents[:] == [INITIAL_EXPONENT] * 2
    assert sums.state_dict() is None
    tries = 0
    while not sums.update_scales(bounds(20, 2**15)):
        tries += 1
    assert sums.exponents[0] == MIN_EXPONENT  # the bound of twenty tiny terms is never less
    assert sums.exponents[1] <= INITIAL_EXPONENT
    assert 0 < tries < 10
    kept = sums.state_dict()
    assert kept is not None
    assert kept.shape == (2,)


@pytest.mark.parametrize("documents", [2**16, 2**20])
def test_quanta_settle_for_any_number_of_terms(documents):
    sums, largest = quanta(1), 1e-3
    for _ in range(30):
        sums.start_step(documents)
        while True:
            terms = np.ceil((largest / 2.0 ** sums.exponents[0] + 1) / sums.bound_unit) * documents
            if sums.update_scales([[float(np.float32(terms))]]):
                break
    (exponent,) = sums.exponents
    assert largest / 32 > 2.0**exponent > documents * largest / 2**30


@needs_kernels
def test_a_huge_batch_is_trained_like_a_small_one():
    """Many times the same documents: their mean gradient is that of one copy."""
    found = []
    for times in (1, 2**14 + 1):  # 131,080 documents
        engine = initial(TABLE).opened(best())
        options = OptimizerOptions(name="sgd", momentum=0.0, weight_decay=0.0)
        exchange = engine.create_optimizer(ProcessGroup(), options, 8 * times)
        step = TrainingStep(engine, exchange)
        generator = np.random.default_rng(0)
        codes = generator.integers(0, 4, (8, TABLE.feature_len)).astype(np.uint8)
        labels = generator.integers(0, TABLE.num_classes, 8).astype(np.int32)
        batch = pack_batch(np.tile(codes, (times, 1)), np.tile(labels, times), 8 * times, 8 * times)
        losses = [step(batch, number, 0.01).loss / batch.global_batch_size for number in range(1, 26)]
        found.append(losses)
    assert found[0][-1] < found[0][0] / 2
    np.testing.assert_allclose(found[0], found[1], rtol=0.03)


@needs_kernels
def test_a_gradient_that_grows_is_rounded_as_finely():
    """The step in which it grows is computed twice; the third of its kind is not."""
    training = Training(CREPE).steps(0, 4)
    before = training.exchange.state_dict()["quanta"]
    weigh(training.engine, 1e5)
    with mock.patch.object(training.engine, "forward_backward", wraps=training.engine.forward_backward) as computed:
        training.steps(4, 5)
        assert computed.call_count > 1
        assert (training.exchange.state_dict()["quanta"] > before).all()
        computed.reset_mock()
        training.steps(5, 6)
        assert computed.call_count == 1
