"""Groups of rows in a data set folder: opened, checked, and kept aligned with the rows."""

from dataclasses import replace

import numpy as np
import pytest

import crepe_dist
from crepe_dist.data.arrays import groups_file, write_array
from crepe_dist.data.dataset import open_dataset, write_manifest
from crepe_dist.data.verification import verify
from crepe_dist.errors import UserError

TABLE = {"text": [f"text {row}" for row in range(40)], "label": ["a", "b"] * 20}


def add_groups(folder, groups):
    """Add the files of the groups of each split to a prepared folder."""
    manifest = {**open_dataset(folder).manifest}
    for split, values in groups.items():
        manifest["splits"][split]["files"] |= write_array(folder, groups_file(split), np.array(values, np.int32))
    write_manifest(folder, manifest)
    return open_dataset(folder)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "out"
    crepe_dist.prepare(TABLE, folder, test=0.25, validation=0.25, verbose=False)
    assert open_dataset(folder).splits["train"].groups is None
    return add_groups(folder, {"train": range(20), "validation": range(20, 30), "test": [30] * 10})


def test_views_keep_the_groups_aligned(data):
    train, validation = data.splits["train"], data.splits["validation"]
    assert train.groups.tolist() == list(range(20))
    chosen = train.select(np.array([3, 1]))
    assert chosen.groups.tolist() == [3, 1]
    assert chosen.select(np.array([1])).groups.tolist() == [1]
    joined = train.concatenate(validation, validation.labels, validation.targets)
    assert joined.groups.tolist() == list(range(30))
    plain = replace(validation, groups=None)
    assert train.concatenate(plain, plain.labels, plain.targets).groups.tolist() == [*range(20), *range(-1, -11, -1)]
    assert replace(train, groups=None).concatenate(validation, validation.labels, validation.targets).groups is None


def test_the_numbers_of_groups_are_verified(data):
    again = add_groups(data.folder, {"test": [31] * 10})
    assert again.fingerprint != data.fingerprint
    verify(again)
    path = data.folder / groups_file("test")
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match="altered"):
        verify(open_dataset(data.folder))


def test_negative_numbers_are_refused(data):
    with pytest.raises(UserError, match=r"damaged|altered"):
        add_groups(data.folder, {"test": [-1] * 10})
