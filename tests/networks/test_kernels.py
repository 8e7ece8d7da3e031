"""The native kernels compute the same as the reference, in every build that this processor can run."""

from dataclasses import replace

import numpy as np
import pytest

from crepe_dist.model.network_config import NetworkConfig
from crepe_dist.native import library
from crepe_dist.native.library import Library
from crepe_dist.networks.crepe.config import CrepeConfig
from crepe_dist.networks.ngrams.config import NGramConfig
from crepe_dist.networks.paper.config import PaperConfig
from tests.helpers import reference
from tests.helpers.engines import answers, assert_near, learnt, sized, some_batch, varied

pytestmark = pytest.mark.usefixtures("every_build")
BUILDS = library.supported_builds()
LARGE = PaperConfig(69, 1014, 7, 64, 96)
# Widths that are multiples of the kernels' block sizes and others, the shortest text, the largest alphabet, and more
# classes than a block.
PAPERS = [
    PaperConfig(69, 123, 3, 8, 16),
    PaperConfig(69, 200, 40, 48, 33),
    PaperConfig(95, 331, 4, 32, 64),
    PaperConfig(254, 150, 2, 16, 16),
    LARGE,
]
TABLES = [NGramConfig(95, 200, 20, 7, 1 << 16, 62, 1 << 14), NGramConfig(254, 60, 2, 5, 1 << 12, 200, 1 << 10)]
# Each number of pools, texts of odd length, n-grams longer than the text, and strides that divide the text or do not.
CREPES = [
    sized(blocks=1),
    sized(width=48, blocks=2, length=61),
    sized(width=20, blocks=3, alphabet=254),
    sized(width=64, blocks=4, classes=40),
    CrepeConfig(69, 5, 3, 7, 1000, 36, 300, 7, 1000, 8, 4, 1, 0.0),
    sized(stride=2),
    sized(stride=5, blocks=2),
    CrepeConfig(69, 60, 5, 4, 1 << 12, 36, 1 << 10, 1, 1 << 10, 32, 1, 2, 0.0),
]
DROPPING = [PaperConfig(69, 200, 40, 48, 33, 0.5), sized(width=20, stride=3, dropout=0.3)]


def check(shape: NetworkConfig, got: dict[str, np.ndarray], wanted: dict[str, np.ndarray], most: float = 1e-5) -> None:
    if not isinstance(shape, PaperConfig):
        return assert_near(got, wanted, most)
    for name, array in wanted.items():  # Rounding moves the maximum of a few pools to another position.
        assert np.linalg.norm(got[name] - array) <= max(most, 1e-4) * np.linalg.norm(array), name


@pytest.mark.parametrize("shape", [*PAPERS, *TABLES, *CREPES, DROPPING[1]], ids=str)
def test_loss_gradients_and_logits_equal_the_reference(shape: NetworkConfig, monkeypatch):
    # The reference computes much for a row of the paper's network.
    rows = 7 if shape is LARGE else 21 if isinstance(shape, PaperConfig) else 37
    network, batch = varied(shape), some_batch(shape, rows)
    batch.packed[5, : shape.feature_len : 7] = 200  # Ids that are not in the alphabet, which count as blank.
    loss, wanted = reference.learnt(shape, network.values, batch, seed=1, step=4)
    assert all(array.any() for array in wanted.values())
    logits = reference.logits(shape, network.values, batch.packed[:, : shape.feature_len])
    wanted |= {"loss": np.array([loss]), "logits": logits}
    for name in BUILDS:
        for threads in ("1", "3"):
            monkeypatch.setenv("OMP_NUM_THREADS", threads)
            engine = network.opened(name)
            check(shape, {**learnt(engine, batch, 4), "logits": answers(engine, batch)}, wanted)
            of_another_step = learnt(engine, batch, 5)["loss"][0]
            assert (abs(of_another_step - loss) > 1e-4) == shape.is_matmul_bound  # by dropout


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("shape", [*PAPERS, *CREPES[::2]], ids=str)
def test_bfloat16_is_near_float32(name, shape):
    """Gradients differ by more than logits, because rounding can move the maximum of a pool to another position."""
    if "avx512_bf16" in library.BUILDS[name] and not Library(name).bfloat16:
        pytest.fail(f"{name} runs here but has no bfloat16")
    shape = replace(shape, dropout=0.0)
    network, batch = varied(shape), some_batch(shape, 7 if shape is LARGE else 37)
    exact, rounded = network.opened(name), network.opened(name, "bfloat16")
    wanted, got = learnt(exact, batch), learnt(rounded, batch)
    for each, array in wanted.items():
        assert np.linalg.norm(got[each] - array) < 0.4 * np.linalg.norm(array), each
    assert_near({"loss": got["loss"]}, {"loss": wanted["loss"]}, 0.02)
    check(shape, {"": answers(rounded, batch)}, {"": answers(exact, batch)}, 0.02)


@pytest.mark.skipif("avx512_bf16" not in BUILDS, reason="the processor has no AVX512-BF16")
@pytest.mark.parametrize("shape", [*PAPERS[:2], *CREPES], ids=str)
def test_bfloat16_in_software_equals_the_instruction_bit_for_bit(shape):
    network, batch = varied(shape), some_batch(shape, 37)
    instruction, software = (network.opened(name, "bfloat16") for name in ("avx512_bf16", "avx512"))
    wanted, got = learnt(instruction, batch), learnt(software, batch)
    assert all(np.array_equal(got[each], array) for each, array in wanted.items())
    assert np.array_equal(answers(software, batch), answers(instruction, batch))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("shape", DROPPING, ids=str)
def test_batches_leave_no_trace(name, precision, shape, monkeypatch):
    """Buffers are reused for larger and smaller batches, and for batches that are divided differently."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    network, batch = varied(shape), some_batch(shape, 21)
    gradients = learnt(network.opened(name, precision), batch)
    logits = answers(network.opened(name, precision), batch)
    engine = network.opened(name, precision)
    for rows in (40, 5, 1, 33, 70):
        learnt(engine, some_batch(shape, rows))
        answers(engine, some_batch(shape, rows + 2))
        got = learnt(engine, batch)
        assert all(np.array_equal(got[each], array) for each, array in gradients.items())
        assert np.array_equal(answers(engine, batch), logits)
