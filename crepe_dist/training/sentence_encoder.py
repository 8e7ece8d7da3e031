"""Embeddings of texts by a sentence encoder. The teacher that labels unlabelled texts uses them.

The embeddings are stored in the user's cache folder, with the SHA-256 of the text as the key. Later runs read the
embeddings from this cache. The encoder encodes one text at a time, because in a batch, the rounding of an embedding
could depend on the other texts.
"""

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

ENCODED_SPLITS = ("train", "validation", UNLABELLED)  # Encoded splits. A .npy file has their rows in this order.
MESSAGE_SECONDS = 5.0  # Number of seconds between two progress messages.
MAX_TOKENS = 256  # Maximum number of tokens that an ONNX encoder reads. Longer texts are truncated.
# The embedding of this text identifies an encoder. Each encoder has its own cache file.
FINGERPRINT_TEXT = "Where is my order? It should have arrived 3 days ago!"


def decode_texts(data: Dataset) -> list[str]:
    """Return the texts of ``ENCODED_SPLITS``, decoded from the character ids that the network reads."""
    splits = map(data.documents_in, ENCODED_SPLITS)
    return [data.encoder.decode(ids).strip() for split in splits for ids in split.char_ids(np.arange(len(split)))]


def load_sentence_encoder(name: str, data: Dataset) -> Any:
    """Load a sentence encoder.

    Returns:
        The array of the embeddings of all texts if ``name`` is a .npy file, otherwise a function that computes the
        embedding of a text.

    Raises:
        UserError: The encoder cannot be loaded, or the array does not have one row per text.
    """
    library, _, model = name.partition(":")
    if name.endswith(".onnx") or name == "wordllama":
        extras.require("encoders", f"--sentence-encoder {name}")
    try:
        if name.endswith(".npy"):
            array = np.load(name, mmap_mode="r", allow_pickle=False)
            rows = {split: len(data.documents_in(split)) for split in ENCODED_SPLITS}
            if array.ndim != 2 or len(array) != sum(rows.values()) or not np.isfinite(array).all():
                raise ValueError(f"it holds {array.dtype} {list(array.shape)}, not a row of numbers for each of {rows}")
            return array
        if name.endswith(".onnx"):
            encode = _load_onnx(Path(name))
        elif name == "wordllama":
            encode = _load_wordllama()
        elif library == "model2vec":
            encode = import_module(library).StaticModel.from_pretrained(model).encode
        elif library == "sentence-transformers":
            # Other weight formats are pickles. Loading a pickle can execute arbitrary code.
            options = {"use_safetensors": True}
            encode = import_module("sentence_transformers").SentenceTransformer(model, model_kwargs=options).encode
        else:
            raise ValueError("there is no such encoder")
        if np.ndim(encode(FINGERPRINT_TEXT)) != 1:
            raise ValueError("it returns more than one vector for a text")
        return encode
    except Exception as error:  # Every library raises its own exceptions.
        remedy = "give wordllama, model2vec:MODEL, sentence-transformers:MODEL, MODEL.onnx or VECTORS.npy"
        remedy = f"pip install {library}" if isinstance(error, ModuleNotFoundError) else remedy
        raise UserError(f"--sentence-encoder {name} cannot be used", str(error)[:300], remedy) from error


def encode_dataset(name: str, data: Dataset, say: Callable[[str], None]) -> Generator[None, None, dict[str, Any]]:
    """Compute the embeddings of the texts of each split in ``ENCODED_SPLITS``. Yield every few seconds.

    Args:
        name: Encoder, as passed to ``--sentence-encoder``.
        say: Function that prints the progress.

    Returns:
        A mapping from split names to embeddings, in the format of ``quantize_unit_vectors``.
    """
    encode = load_sentence_encoder(name, data)
    if isinstance(encode, np.ndarray):
        vectors = quantize_unit_vectors(encode)
    else:
        vectors = yield from _encode_cached(encode, decode_texts(data), say)
    ends = np.cumsum([len(data.documents_in(split)) for split in ENCODED_SPLITS])
    return dict(zip(ENCODED_SPLITS, np.split(vectors, ends[:-1])))


def _encode_cached(encode: Any, texts: list[str], say: Callable[[str], None]) -> Generator[None, None, Any]:
    """Return the embeddings of texts, int16 [texts, dimensions]. Only texts that are not in the cache are encoded."""
    vectors, new_vectors, due = [], {}, time.monotonic() + MESSAGE_SECONDS
    fingerprint = hashlib.sha256(quantize_unit_vectors(encode(FINGERPRINT_TEXT)).tobytes()).hexdigest()
    path = cache_folder() / "vectors" / f"{fingerprint[:32]}.sqlite"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        store = sqlite3.connect(path, timeout=60)
        store.execute("create table if not exists vectors (text blob primary key, vector blob)")
        for text in texts:
            key = hashlib.sha256(text.encode()).digest()
            row = store.execute("select vector from vectors where text = ?", [key]).fetchone()
            if row is None and key not in new_vectors:
                new_vectors[key] = quantize_unit_vectors(encode(text)).tobytes()
            vectors.append(np.frombuffer(row[0] if row else new_vectors[key], np.int16))
            if time.monotonic() > due or len(vectors) == len(texts):
                # Other runs may use the file at the same time, so it is locked only while new embeddings are inserted.
                with store:
                    store.executemany("insert or ignore into vectors values (?, ?)", new_vectors.items())
                say(f"encoder   {number(len(vectors))} of {number(len(texts))} texts")
                new_vectors, due = {}, time.monotonic() + MESSAGE_SECONDS
                yield
    except (sqlite3.Error, OSError) as error:
        remedy = f"free some disk space, delete {path} if it is damaged, or set XDG_CACHE_HOME to another folder"
        raise UserError(f"the vectors of the texts cannot be stored in {path}", str(error), remedy) from error
    return np.stack(vectors)


def _load_onnx(path: Path) -> Callable[[str], Any]:
    """Load an ONNX model, and its tokenizer from ``tokenizer.json`` in the same folder."""
    from onnxruntime import InferenceSession, SessionOptions
    from tokenizers import Tokenizer

    options = SessionOptions()
    options.intra_op_num_threads = num_threads()
    session = InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_str(path.with_name("tokenizer.json").read_text("utf-8"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)

    def encode(text: str) -> Any:
        tokens = tokenizer.encode(text)
        inputs = {"input_ids": tokens.ids, "attention_mask": tokens.attention_mask, "token_type_ids": tokens.type_ids}
        output = session.run(None, {node.name: np.array([inputs[node.name]]) for node in session.get_inputs()})[0][0]
        # Some models return one vector per token; others return one for the whole text.
        return output.mean(axis=0) if output.ndim == 2 else output

    return encode


def _load_wordllama() -> Callable[[str], Any]:
    """Load WordLlama's embedding table and tokenizer from the files of the package ``wordllama``.

    The package is not imported, because its own loader searches for some files elsewhere, and because it may require a
    NumPy version that MXNet does not support.
    """
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    folder = Path((util.find_spec("wordllama").submodule_search_locations or [""])[0])  # type: ignore[union-attr]
    encode = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json")).encode
    table = load_file(folder / "weights" / "l2_supercat_256.safetensors")["embedding.weight"]
    return lambda text: table[encode(text, add_special_tokens=False).ids].sum(axis=0, dtype=np.float32)
