"""All versions of the n-gram hash compute the same, on the vectors of ngram_hash.json; networks/ngrams/hashing.py
describes it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from crepe_dist.model.onnx_graph import Graph
from crepe_dist.native import library
from crepe_dist.networks.ngrams import onnx as ngrams_onnx
from crepe_dist.networks.ngrams.config import NGramShape
from crepe_dist.networks.ngrams.hashing import edged, keys, look_up, rows_of, word_keys
from tests.exporting.test_export import session_of

VECTORS = json.loads(Path(__file__).with_name("ngram_hash.json").read_text())


def expected(vector):
    return np.array(vector["hashed"], np.int64).reshape(len(vector["text"]), vector["longest"])


def table(vector):
    sizes = vector["longest"], vector["rows"] + vector["words"], vector["letters"], vector["words"]
    return NGramShape(vector["alphabet_size"], len(vector["codes"]), 2, *sizes)


def by_numpy(vector):
    size = vector["alphabet_size"]
    text = edged(np.array([vector["codes"]], np.uint8), size)[:, : len(vector["text"])]
    assert text[0].tolist() == vector["text"]
    rows = np.full(expected(vector).shape, -1)
    for n, (key, known) in enumerate(keys(text, size + 1, min(vector["longest"], text.shape[1]))):
        rows[: key.shape[1], n] = np.where(known, rows_of(key, vector["rows"]), -1)
    words = np.array(word_keys(text[0], vector["letters"]), np.uint64)
    return rows, rows_of(words, vector["words"])


def by_onnx(vector):
    graph, rows = Graph(), vector["rows"]
    codes = graph.input("codes", onnx.TensorProto.INT32, 1, "positions")
    outputs = [ngrams_onnx.rows_of(graph, codes, vector["longest"], rows, rows)]
    outputs.append(ngrams_onnx.word_rows(graph, codes, table(vector)))
    (found,), (words,) = session_of(graph, outputs).run(None, {"codes": np.array([vector["text"]], np.int32)})
    return np.where(found == rows, -1, found), words[words < rows + vector["words"]] - rows


@pytest.mark.parametrize("version", [by_numpy, by_onnx])
@pytest.mark.parametrize("vector", VECTORS, ids=range(len(VECTORS)))
def test_rows_of_each_position(version, vector):
    if vector["text"]:
        rows, words = version(vector)
        np.testing.assert_array_equal(rows, expected(vector))
        assert sorted(words.tolist()) == sorted(vector["of_words"])


@pytest.mark.parametrize("build", [*library.runnable(), library.NONE])
@pytest.mark.parametrize("vector", VECTORS, ids=range(len(VECTORS)))
def test_distinct_rows_of_a_text(build, vector, monkeypatch):
    monkeypatch.setenv(library.SWITCH, build)
    (buckets,), (number,) = look_up(np.array([vector["codes"]], np.uint8), table(vector))
    ngrams = {row for row in expected(vector).ravel().tolist() if row >= 0}
    assert buckets[:number].tolist() == sorted(ngrams | {vector["rows"] + row for row in vector["of_words"]})
