"""All implementations of the n-gram hash compute the rows of one table of cases, ngram_hash.json.

docs/how-to/network.md specifies the hash.
"""

import json
from base64 import b64encode
from pathlib import Path

import numpy as np
import onnx
import pytest

from crepe_dist.cuda import gpu
from crepe_dist.cuda.branch import KernelProgram
from crepe_dist.engines.cuda_engine import shared_constants
from crepe_dist.exporting import web_page
from crepe_dist.files.folders import cache_folder
from crepe_dist.model.onnx_graph import GraphBuilder
from crepe_dist.native import library
from crepe_dist.native.constants import NUM_BUCKET_GROUPS
from crepe_dist.networks.ngrams import cuda as ngrams_cuda
from crepe_dist.networks.ngrams import onnx as ngrams_onnx
from crepe_dist.networks.ngrams.config import NGramConfig
from crepe_dist.networks.ngrams.hashing import add_boundary_symbols, hash_documents, hash_to_rows, ngram_keys, word_keys
from tests.exporting.test_export import serialize, session_of
from tests.helpers import cuda_emulator
from tests.helpers.browsing import needs_browser
from tests.helpers.needs import needs

NO_ROW = 0xFFFFFFFF  # see cuda/kernels/common.cuh
IN_PAGE = Path(__file__).with_name("run_onnx.js").read_text(encoding="utf-8")
VECTORS = json.loads(Path(__file__).with_name("ngram_hash.json").read_text())
TEXTS = [vector for vector in VECTORS if vector["text"]]


def expected(vector):
    return np.array(vector["hashed"], np.int64).reshape(len(vector["text"]), vector["maxn"])


def distinct(vector):
    ngrams = {row for row in expected(vector).ravel().tolist() if row >= 0}
    return sorted(ngrams | {vector["rows"] + row for row in vector["of_words"]})


def table(vector):
    sizes = vector["maxn"], vector["rows"] + vector["word_buckets"], vector["num_word_char_ids"], vector["word_buckets"]
    return NGramConfig(vector["alphabet_size"], len(vector["codes"]), 2, *sizes)


def by_numpy(vector):
    size = vector["alphabet_size"]
    text = add_boundary_symbols(np.array([vector["codes"]], np.uint8), size)[:, : len(vector["text"])]
    assert text[0].tolist() == vector["text"]
    rows = np.full(expected(vector).shape, -1)
    for n, (key, known) in enumerate(ngram_keys(text, size + 1, min(vector["maxn"], text.shape[1]))):
        rows[: key.shape[1], n] = np.where(known, hash_to_rows(key, vector["rows"]), -1)
    words = np.array(word_keys(text[0], vector["num_word_char_ids"]), np.uint64)
    return rows, hash_to_rows(words, vector["word_buckets"])


def onnx_graph(vector):
    """Build the graph that maps the symbols of a text to the rows of n-grams and words."""
    graph, rows = GraphBuilder(), vector["rows"]
    codes = graph.input("codes", onnx.TensorProto.INT32, 1, "positions")
    outputs = [ngrams_onnx.hash_to_rows(graph, codes, vector["maxn"], rows, rows)]
    outputs.append(ngrams_onnx.word_rows(graph, codes, table(vector)))
    return graph, outputs


def onnx_rows(vector, found, words):
    """Replace the padding rows of the graph's outputs: -1 for an n-gram, nothing for a word."""
    rows = vector["rows"]
    return np.where(found == rows, -1, found), words[words < rows + vector["word_buckets"]] - rows


def by_onnx(vector):
    session = session_of(*onnx_graph(vector))
    (found,), (words,) = session.run(None, {"codes": np.array([vector["text"]], np.int32)})
    return onnx_rows(vector, found, words)


def check(vector, rows, words):
    np.testing.assert_array_equal(rows, expected(vector))
    assert sorted(words.tolist()) == sorted(vector["of_words"])


@pytest.mark.parametrize("version", [by_numpy, by_onnx])
@pytest.mark.parametrize("vector", TEXTS)
def test_rows_of_each_position(version, vector):
    check(vector, *version(vector))


@pytest.mark.web
@needs_browser
@needs(*([] if (cache_folder() / web_page.ARCHIVE).exists() else ["npm"]))
def test_rows_of_each_position_in_the_runtime_of_the_web_page(browser):
    """The page runs the ONNX graph, by WebAssembly."""
    script, binary = web_page.web_runtime()
    models = [b64encode(serialize(*onnx_graph(vector))).decode() for vector in TEXTS]
    texts = [vector["text"] for vector in TEXTS]
    browser.get("data:text/html,<p>")
    browser.execute_script("const script = document.createElement('script'); script.text = arguments[0];"
                           "document.head.append(script);", script)  # fmt: skip
    found = browser.execute_async_script(IN_PAGE, b64encode(binary).decode(), models, texts)
    for vector, (rows, words) in zip(TEXTS, found, strict=True):
        check(vector, *onnx_rows(vector, np.array(rows).reshape(expected(vector).shape), np.array(words)))


@pytest.mark.parametrize("build", [*library.supported_builds(), library.NONE])
@pytest.mark.parametrize("vector", VECTORS, ids=range(len(VECTORS)))
def test_distinct_rows_of_a_text(build, vector, monkeypatch):
    monkeypatch.setenv(library.KERNELS_ENV, build)
    (buckets,), (number,) = hash_documents(np.array([vector["codes"]], np.uint8), table(vector))
    assert buckets[:number].tolist() == distinct(vector)


@pytest.fixture(scope="module")
def program():
    with cuda_emulator.used():
        yield KernelProgram(gpu.Gpu(0), ngrams_cuda.PROGRAM, shared_constants(), "float32")


@needs("g++")
@pytest.mark.parametrize("vector", VECTORS, ids=range(len(VECTORS)))
def test_distinct_rows_of_a_text_on_a_gpu(vector, program):
    shape, codes, memory = table(vector), np.array([vector["codes"]], np.uint8), program.gpu
    (length,), symbols = codes.shape[1:], codes.shape[1] + 2
    places = (shape.maxn + 1) * symbols
    size = 1 << (2 * places - 1).bit_length()
    texts, lengths = memory.allocate(symbols), memory.allocate(4)
    ngrams, counts, sets = (memory.allocate(4 * count) for count in (places, NUM_BUCKET_GROUPS, 2 * size))
    significant = memory.copy(np.zeros(shape.buckets, np.float32))
    program("add_boundary_symbols", 1, memory.copy(codes), length, length, shape.alphabet_size, texts, lengths)
    program(
        "find_ngrams", 1, texts, lengths, symbols, shape.maxn, shape.buckets, shape.num_word_char_ids,
        shape.word_buckets, significant, sets, size, ngrams, counts, block=ngrams_cuda.FINDERS,
    )  # fmt: skip
    found = np.empty(places, np.uint32)
    ngrams.read(found)
    # The two highest bits have the group of a row.
    assert sorted((found[found != NO_ROW] % (1 << 30)).tolist()) == distinct(vector)
