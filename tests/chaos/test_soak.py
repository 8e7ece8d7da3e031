"""Random faults in sequence; the run is bit-identical to an unbroken one."""

from __future__ import annotations

import random

import pytest

from tests.chaos import soak
from tests.needs import needs

pytestmark = needs("mount", root=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_few(tmp_path):
    chosen = [
        ("cut file", "train"),
        ("full disk", "save"),
        ("bad row", "evaluate"),
    ]
    recoveries = soak.run(tmp_path, soak.make_data(tmp_path / "data"), 2, chosen, seed=1)
    assert [(each.kind, each.phase) for each in recoveries] == chosen
    assert max(each.lost for each in recoveries) <= 2 * 4
    assert "| cut file | train | 1 | 1 |" in soak.table(recoveries)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_a_hundred(tmp_path, processes):
    chosen = soak.faults(100, random.Random(0))[processes - 1 :: 4]
    recoveries = soak.run(tmp_path, soak.make_data(tmp_path / "data"), processes, chosen, seed=processes)
    assert len(recoveries) == 25
