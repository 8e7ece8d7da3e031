"""The n-gram network: its counts, and the equality of all kernels."""

import numpy as np
import pytest

from crepe_dist.distributed.device import CPU
from crepe_dist.errors import UserError
from crepe_dist.model.backend import choose_backend
from crepe_dist.native import library
from crepe_dist.networks.ngrams import init as ngrams
from crepe_dist.networks.ngrams.config import NGramConfig
from crepe_dist.networks.ngrams.hashing import hash_documents
from crepe_dist.settings.options import ModelOptions
from tests.helpers.engines import some_codes

pytestmark = pytest.mark.usefixtures("every_build")


@pytest.mark.parametrize("native", [True, False])
def test_documents_are_counted_by_class(native, monkeypatch):
    if not native:
        monkeypatch.setattr(library, "find", lambda: (None, "not for this test"))
    shape = NGramConfig(69, 600, 3, 3, 1000, 36, 250)
    codes = some_codes(shape, 700)
    codes[0, ::7] = 200  # Ids that are not in the alphabet, which count as blank.
    labels = np.arange(700, dtype=np.int32) % 3
    counts = np.ones((1000, 3), np.int32)
    ngrams._count(codes, labels, shape, counts)
    expected = np.ones((1000, 3), np.int32)
    for (found, number), label in zip(zip(*hash_documents(codes, shape)), labels):
        expected[found[:number], label] += 1
    assert (counts == expected).all()


def test_significant_is_what_chance_does_not_explain():
    generator = np.random.default_rng(0)
    documents = np.array([3000, 1000])
    by_chance = np.array([generator.binomial(documents, p) for p in generator.uniform(0, 1, 20_000)])
    telling = np.array([[1000, 0], [0, 30], [900, 900], [100, 100]])
    found = ngrams.select_significant(
        np.concatenate([by_chance, telling, [[1, 0], [0, 1], [0, 0]]]).astype(np.int32), documents, 5.0
    )
    assert np.flatnonzero(found).tolist() == [20_000, 20_001, 20_002, 20_003]


def test_it_computes_in_float32_only():
    shape = NGramConfig(69, 30, 3, 4, 50, 36, 20)
    assert choose_backend(ModelOptions(), CPU, shape).precision == "float32"
    with pytest.raises(UserError, match="does not compute in bfloat16"):
        choose_backend(ModelOptions(precision="bfloat16"), CPU, shape)
