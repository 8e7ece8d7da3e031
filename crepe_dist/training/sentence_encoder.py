"""Vectors of texts by a sentence encoder, for the teacher of unlabelled texts.

They are kept by text in the user's cache, so that neither a resumed run nor another one computes them again. The
encoder reads the texts one by one: in a batch, the bits of a vector could depend on the other texts.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Callable, Generator
from importlib import import_module, util
from pathlib import Path
from typing import Any

import numpy as np

from crepe_dist import extras
from crepe_dist.data.dataset import UNLABELLED, Dataset
from crepe_dist.errors import UserError
from crepe_dist.files.folders import cache_folder
from crepe_dist.formatting import number
from crepe_dist.model.teacher_ensemble import quantize_unit_vectors
from crepe_dist.native.library import num_threads

ENCODED_SPLITS = ("train", "validation", UNLABELLED)  # splits, in the order of the rows of a .npy file
MESSAGE_SECONDS = 5.0  # between two messages
FINGERPRINT_TEXT = "Where is my order? It should have arrived 3 days ago!"  # its vector tells one model from another


def decode_texts(data: Dataset) -> list[str]:
    """Return the texts of ``ENCODED`` as the network reads them."""
    parts = map(data.documents_in, ENCODED_SPLITS)
    return [data.encoder.decode(codes).strip() for part in parts for codes in part.char_ids(np.arange(len(part)))]


def load_sentence_encoder(name: str, data: Dataset) -> Any:
    """Open an encoder: a function from a text to its vector, or an array of the vectors of all texts.

    Raises:
        UserError: it cannot be opened, or has vectors of other texts.
    """
    library, _, model = name.partition(":")
    if name.endswith(".onnx") or name == "wordllama":
        extras.require("encoders", f"--sentence-encoder {name}")
    try:
        if name.endswith(".npy"):
            found = np.load(name, mmap_mode="r", allow_pickle=False)
            rows = {split: len(data.documents_in(split)) for split in ENCODED_SPLITS}
            if found.ndim != 2 or len(found) != sum(rows.values()) or not np.isfinite(found).all():
                raise ValueError(f"it holds {found.dtype} {list(found.shape)}, not a row of numbers for each of {rows}")
            return found
        if name.endswith(".onnx"):
            encode = _onnx(Path(name))
        elif name == "wordllama":
            encode = _wordllama()
        elif library == "model2vec":
            encode = import_module(library).StaticModel.from_pretrained(model).encode
        elif library == "sentence-transformers":  # safetensors only: other weights are pickles
            only = {"use_safetensors": True}
            encode = import_module("sentence_transformers").SentenceTransformer(model, model_kwargs=only).encode
        else:
            raise ValueError("there is no such encoder")
        if np.ndim(encode(FINGERPRINT_TEXT)) != 1:
            raise ValueError("it gives a text more than one vector")
        return encode
    except Exception as error:  # every library has its own
        remedy = "give wordllama, model2vec:MODEL, sentence-transformers:MODEL, MODEL.onnx or VECTORS.npy"
        remedy = f"pip install {library}" if isinstance(error, ModuleNotFoundError) else remedy
        raise UserError(f"--sentence-encoder {name} cannot be used", str(error)[:300], remedy) from error


def encode_dataset(name: str, data: Dataset, say: Callable[[str], None]) -> Generator[None, None, dict[str, Any]]:
    """Return the vectors of the texts of each split in ``ENCODED``, as ``quantize_unit_vectors``; yield every few
    seconds.
    """
    encode = load_sentence_encoder(name, data)
    rows = (
        quantize_unit_vectors(encode)
        if isinstance(encode, np.ndarray)
        else (yield from _encode_cached(encode, decode_texts(data), say))
    )
    return dict(
        zip(ENCODED_SPLITS, np.split(rows, np.cumsum([len(data.documents_in(split)) for split in ENCODED_SPLITS])[:-1]))
    )


def _encode_cached(encode: Any, texts: list[str], say: Callable[[str], None]) -> Generator[None, None, Any]:
    found, fresh, due = [], {}, time.monotonic() + MESSAGE_SECONDS
    about = hashlib.sha256(quantize_unit_vectors(encode(FINGERPRINT_TEXT)).tobytes()).hexdigest()
    path = cache_folder() / "vectors" / f"{about[:32]}.sqlite"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        store = sqlite3.connect(path, timeout=60)
        store.execute("create table if not exists vectors (text blob primary key, vector blob)")
        for text in texts:
            key = hashlib.sha256(text.encode()).digest()
            row = store.execute("select vector from vectors where text = ?", [key]).fetchone()
            if row is None and key not in fresh:
                fresh[key] = quantize_unit_vectors(encode(text)).tobytes()
            found.append(np.frombuffer(row[0] if row else fresh[key], np.int16))
            if time.monotonic() > due or len(found) == len(texts):
                with store:  # a short lock, as other runs may use the file
                    store.executemany("insert or ignore into vectors values (?, ?)", fresh.items())
                say(f"encoder   {number(len(found))} of {number(len(texts))} texts")
                fresh, due = {}, time.monotonic() + MESSAGE_SECONDS
                yield
    except (sqlite3.Error, OSError) as error:
        remedy = f"make room, delete {path} if it is damaged, or set XDG_CACHE_HOME to another folder"
        raise UserError(f"the vectors of the texts cannot be kept in {path}", str(error), remedy) from error
    return np.stack(found)


def _onnx(path: Path) -> Callable[[str], Any]:
    from onnxruntime import InferenceSession, SessionOptions
    from tokenizers import Tokenizer

    options = SessionOptions()
    options.intra_op_num_threads = num_threads()
    session = InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_str(path.with_name("tokenizer.json").read_text("utf-8"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)  # tokens, of which the first say most

    def encode(text: str) -> Any:
        tokens = tokenizer.encode(text)
        given = {"input_ids": tokens.ids, "attention_mask": tokens.attention_mask, "token_type_ids": tokens.type_ids}
        output = session.run(None, {each.name: np.array([given[each.name]]) for each in session.get_inputs()})[0][0]
        return output.mean(axis=0) if output.ndim == 2 else output  # of the tokens, or of the text

    return encode


def _wordllama() -> Callable[[str], Any]:
    """Read WordLlama's files: its module looks for some of them elsewhere, and may need another NumPy than MXNet."""
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    folder = Path((util.find_spec("wordllama").submodule_search_locations or [""])[0])  # type: ignore[union-attr]
    encode = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json")).encode
    table = load_file(folder / "weights" / "l2_supercat_256.safetensors")["embedding.weight"]
    return lambda text: table[encode(text, add_special_tokens=False).ids].sum(axis=0, dtype=np.float32)
