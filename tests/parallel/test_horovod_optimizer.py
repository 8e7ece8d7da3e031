"""Gradients that MXNet computes: their sums, and the numbers of each rank."""

from __future__ import annotations

from tests.conftest import run
from tests.helpers.programs import program


def test_sums_where_horovod_would_average(tmp_path):
    printed = run(program("parallel/averaging_worker.py", processes=3), tmp_path)
    assert printed.count("all well on") == 3
