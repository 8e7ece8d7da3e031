"""A rank's private memory grows only by the order of its rows; the data's pages are shared."""

from __future__ import annotations

import json
import sys

import pytest

from crepe_dist.data.alphabet import Encoding
from crepe_dist.preparing.preparation import PrepareOptions, prepare
from crepe_dist.preparing.selection import SplitOptions
from crepe_dist.preparing.sources import find_sources
from tests.conftest import run

MEGABYTE = 1 << 20


def memory(folder, rows):
    source = folder / f"{rows}.tsv"
    source.write_text("".join(f"{row % 3}\tdocument number {row}\n" for row in range(rows)), encoding="utf-8")
    out = folder / str(rows)
    prepare(
        find_sources([str(source)]), out, Encoding(feature_len=123), SplitOptions(test=0.0), PrepareOptions(processes=1)
    )
    printed = run([sys.executable, "-m", "crepe_dist.benchmarking.loader_memory", str(out)], folder)
    return json.loads(printed)


@pytest.mark.slow
def test_memory_grows_by_eight_bytes_a_row(tmp_path):
    few, many = memory(tmp_path, 20_000), memory(tmp_path, 200_000)
    assert (few["documents"], many["documents"]) == (20_000, 200_000)
    growth = many["anonymous"] - few["anonymous"]
    assert growth < 8 * 180_000 + MEGABYTE
    assert many["mapped"] > 200_000 * 123 * 0.9
    assert many["mapped and private to this process"] == 0
