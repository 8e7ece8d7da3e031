"""Fixed-point scales of gradients: they follow the bounds of the scales."""

from unittest import mock

import numpy as np
import pytest

from crepe_dist.data.batch import pack_batch
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.networks.ngrams.config import NGramConfig
from crepe_dist.optim.fixed_point import INITIAL_EXPONENT, MIN_EXPONENT, OVERFLOW_BOUND, FixedPointScales
from crepe_dist.optim.optimizers import batch_factor
from crepe_dist.optim.parameter import Parameter
from crepe_dist.settings.options import OptimizerOptions
from tests.conftest import needs_kernels
from tests.helpers.engines import TrainingStep, best, initial
from tests.parallel.test_sharded_embedding import CREPE, Training, set_class_weight

TABLE = NGramConfig(69, 8, 2, 2, 1 << 8, 36, 1 << 6)


def one_process(*sum_bounds: float) -> list[list[float]]:
    """Return the bounds of a single process, as float32 numbers."""
    return np.array([sum_bounds], np.float32).tolist()


def create_scales(num_parameters: int) -> FixedPointScales:
    return FixedPointScales({str(index): Parameter(np.zeros(1, np.float32)) for index in range(num_parameters)})


def scales_after_first_step(*exponents: int) -> FixedPointScales:
    """Return scales whose exponents a previous step has chosen."""
    scales = create_scales(len(exponents))
    scales.load_state_dict(np.array(exponents, np.int32))
    scales.start_step(1)
    return scales


def test_the_next_scale_leaves_room_for_a_sum_eight_times_as_large():
    scales = scales_after_first_step(-20, -20, -20)
    assert scales.update_scales(one_process(OVERFLOW_BOUND - 1, 2**17, 2**17 - 1))
    scales.start_step(1)
    assert scales.exponents[:] == [-17, -19, -20]


def test_a_step_that_may_overflow_is_computed_again():
    scales = scales_after_first_step(-20, -20)
    assert not scales.update_scales(one_process(2**25, 2**17))
    first, second = scales.exponents
    assert first > -20
    assert second >= -20
    assert scales.update_scales(one_process(2**19, 2**16))


def test_a_step_that_is_not_finite_is_not_computed_again():
    scales = scales_after_first_step(-20)
    assert scales.update_scales(one_process(np.nan))
    assert scales.exponents[:] == [-20]


def test_the_first_step_is_repeated_until_the_scales_are_small():
    scales = create_scales(2)
    assert scales.exponents[:] == [INITIAL_EXPONENT] * 2
    assert scales.state_dict() is None
    num_retries = 0
    while not scales.update_scales(one_process(20, 2**15)):
        num_retries += 1
    assert scales.exponents[0] == MIN_EXPONENT  # The bound of twenty tiny terms is never smaller.
    assert scales.exponents[1] <= INITIAL_EXPONENT
    assert 0 < num_retries < 10
    exponents = scales.state_dict()
    assert exponents is not None
    assert exponents.shape == (2,)


@pytest.mark.parametrize("documents", [2**16, 2**20])
def test_scales_settle_for_any_number_of_terms(documents):
    scales, largest = create_scales(1), 1e-3
    for _ in range(30):
        scales.start_step(documents)
        while True:
            terms = np.ceil((largest / 2.0 ** scales.exponents[0] + 1) / scales.bound_unit) * documents
            if scales.update_scales([[float(np.float32(terms))]]):
                break
    (exponent,) = scales.exponents
    assert largest / 32 > 2.0**exponent > documents * largest / 2**30


@needs_kernels
def test_a_huge_batch_is_trained_like_a_small_one():
    """A batch with many copies of the same documents has the mean gradient of one copy."""
    losses_by_size = []
    for times in (1, 2**14 + 1):  # 131,080 documents
        engine = initial(TABLE).opened(best())
        options = OptimizerOptions(name="sgd", momentum=0.0, weight_decay=0.0)
        step = TrainingStep(engine, engine.create_optimizer(ProcessGroup(), options, 8 * times))
        learning_rate = 0.01 / batch_factor(8 * times) ** 2
        generator = np.random.default_rng(0)
        codes = generator.integers(0, 4, (8, TABLE.feature_len)).astype(np.uint8)
        labels = generator.integers(0, TABLE.num_classes, 8).astype(np.int32)
        batch = pack_batch(np.tile(codes, (times, 1)), np.tile(labels, times), 8 * times, 8 * times)
        losses = [step(batch, number, learning_rate).loss / batch.global_batch_size for number in range(1, 26)]
        losses_by_size.append(losses)
    small, huge = losses_by_size
    assert small[-1] < small[0] / 2
    np.testing.assert_allclose(small, huge, rtol=0.03)


@needs_kernels
def test_a_gradient_that_grows_is_rounded_with_a_larger_scale():
    """When the gradient grows, the step is computed again. The next step with a large gradient is not."""
    training = Training(CREPE).steps(0, 4)
    exponents = training.optimizer.state_dict()["exponents"]
    set_class_weight(training.engine, 1e5)
    with mock.patch.object(
        training.engine, "forward_backward", wraps=training.engine.forward_backward
    ) as forward_backward:
        training.steps(4, 5)
        assert forward_backward.call_count > 1
        assert (training.optimizer.state_dict()["exponents"] > exponents).all()
        forward_backward.reset_mock()
        training.steps(5, 6)
        assert forward_backward.call_count == 1
