"""All versions of the n-gram hash compute the same, on the vectors of ngram_hash.json; networks/ngrams/hashing.py
describes it."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crepe_dist.exporting.crepe_runtime import Classifier
from crepe_dist.exporting.web_page import ENCODER
from crepe_dist.native import library
from crepe_dist.networks.ngrams.hashing import edged, keys, look_up, rows_of
from crepe_dist.networks.ngrams.shape import NGramShape
from tests import torch_stand_in
from tests.browsing import CHROMIUM, chromium

VECTORS = json.loads(Path(__file__).with_name("ngram_hash.json").read_text())
NODE = shutil.which("node")
HASH = "JSON.parse(VECTORS).map((v) => [...Encoder.prototype.hashed(Uint8Array.from(v.text), v.longest, v.rows)])"


def expected(vector):
    return np.array(vector["hashed"], np.int64).reshape(len(vector["text"]), vector["longest"])


def by_numpy(vector):
    size = vector["alphabet_size"]
    text = edged(np.array([vector["codes"]], np.uint8), size)[:, : len(vector["text"])]
    assert text[0].tolist() == vector["text"]
    rows = np.full(expected(vector).shape, -1)
    for n, (key, known) in enumerate(keys(text, size + 1, min(vector["longest"], text.shape[1]))):
        rows[: key.shape[1], n] = np.where(known, rows_of(key, vector["rows"]), -1)
    return rows


def by_runtime(vector):
    hashed: Any = Classifier.hashed  # which does not read the classifier
    text = np.array([vector["text"]], np.uint8)
    (rows,) = hashed(None, text, vector["longest"], vector["rows"])
    return np.where(rows == vector["rows"], -1, rows)


def by_torch(vector):
    module = importlib.import_module("crepe_dist.networks.ngrams.torch")
    return module.hashed(np.array([vector["text"]], np.uint8), vector["longest"], vector["rows"])[0]


@pytest.mark.parametrize("version", [by_numpy, by_runtime, by_torch])
@pytest.mark.parametrize("vector", VECTORS, ids=range(len(VECTORS)))
def test_rows_of_each_position(version, vector, monkeypatch):
    if version is by_torch:
        torch_stand_in.install(monkeypatch)
        monkeypatch.delitem(sys.modules, "crepe_dist.networks.ngrams.torch", raising=False)
    if vector["text"]:
        np.testing.assert_array_equal(version(vector), expected(vector))


@pytest.mark.skipif(NODE is None and CHROMIUM is None, reason="needs node")
def test_rows_in_javascript():
    source = ENCODER.read_text(encoding="utf-8").replace("export class", "class")
    script = f"{source}; const VECTORS = {json.dumps(json.dumps(VECTORS))};"
    if NODE:
        program = f"{script} console.log(JSON.stringify({HASH}))"
        results = json.loads(subprocess.run([NODE, "-e", program], check=True, capture_output=True, text=True).stdout)
    else:
        with chromium() as browser:
            browser.get("about:blank")
            results = browser.execute_script(f"{script} return {HASH}")
    for vector, rows in zip(VECTORS, results):
        hashed = np.array(rows, np.int64).reshape(expected(vector).shape)
        np.testing.assert_array_equal(np.where(hashed == vector["rows"], -1, hashed), expected(vector))


@pytest.mark.parametrize("build", [*library.runnable(), library.NONE])
@pytest.mark.parametrize("vector", VECTORS, ids=range(len(VECTORS)))
def test_distinct_rows_of_a_text(build, vector, monkeypatch):
    monkeypatch.setenv(library.SWITCH, build)
    shape = NGramShape(vector["alphabet_size"], len(vector["codes"]), 2, vector["longest"], vector["rows"])
    (buckets,), (number,) = look_up(np.array([vector["codes"]], np.uint8), shape)
    assert buckets[:number].tolist() == sorted({row for row in expected(vector).ravel().tolist() if row >= 0})
