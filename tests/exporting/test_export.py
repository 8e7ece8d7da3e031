"""Exported models answer as predict does, also without this package where promised."""

import ast
import runpy
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest

import crepe_dist
from crepe_dist.data.char_encoder import PAD_UNK_ID, CharEncoder
from crepe_dist.data.characters import frequent_alphabet
from crepe_dist.data.text_preprocessing import TextPreprocessor
from crepe_dist.errors import UserError
from crepe_dist.exporting import FORMATS, crepe_runtime, onnx_file
from crepe_dist.exporting.exporter import export, synthetic_texts
from crepe_dist.model.network_config import NetworkConfig
from crepe_dist.model.onnx_graph import GraphBuilder
from crepe_dist.networks.crepe.config import CrepeConfig
from crepe_dist.networks.ngrams import onnx as ngrams_onnx
from crepe_dist.networks.ngrams.config import NGramConfig
from crepe_dist.networks.paper.config import PaperConfig
from crepe_dist.runs import checkpoint
from tests.conftest import FEATURE_LEN
from tests.helpers.engines import initial
from tests.helpers.nasty_texts import marked_encoders, nasty_texts

CLASSES = ["good", "schlecht, sehr", "плохо"]
CYRILLIC = "съешь же ещё этих мягких французских булок, да выпей чаю ЙЁ "
STRANGE = [
    "",
    " ",
    "\0",
    "日本語",
    "\ud800",
    "x" * 5000,
    "Ünïcödé ﬁǅŉ",
    "İSTANBUL ß",
    f"Subject: Ærø\n{'ß' * FEATURE_LEN}\n\U0001f600 the end",
    CYRILLIC,
    "한국어 é e\u0301",
    "\U0001f600",
]
CHARACTERS = Counter(map(ord, CYRILLIC * 9))
# Some of these characters are encoded as two ids.
MANY = "".join(map(chr, (*range(0x4E00, 0x4E00 + 400), *range(0x1F600, 0x1F640))))
ENCODINGS = {
    "paper": CharEncoder("fold", FEATURE_LEN),
    "accents": CharEncoder("fold", FEATURE_LEN + 7, False),
    "marked": CharEncoder("keep", FEATURE_LEN),
    "own, marked": CharEncoder("keep", FEATURE_LEN, None, *frequent_alphabet(CHARACTERS, "keep")),
    "notebook": CharEncoder("notebook", FEATURE_LEN),
    "own": CharEncoder("fold", FEATURE_LEN, None, *frequent_alphabet(CHARACTERS, "fold")),
    "rare ones": CharEncoder(
        "fold", FEATURE_LEN, None, *frequent_alphabet(CHARACTERS + Counter(map(ord, MANY * 9)), "fold")
    ),
    "rare ones, marked": marked_encoders(FEATURE_LEN)["two ids"],
}
KINDS = ("crepe", "ngrams", "paper")
CALIBRATION = {"temperature": 0.7, "min_probability": 0.6}  # Every export must apply these values.
CASES = [
    ("crepe", "accents"), ("crepe", "own, marked"), ("ngrams", "marked"),
    ("crepe", "rare ones"), ("ngrams", "own"), ("paper", "notebook"),
    ("paper", "paper"),
]  # fmt: skip


def texts(count: int = 200) -> list[str]:
    generator = np.random.default_rng(1)
    characters = np.array([*"abcdefghij klmnopqrstuvwxyz ABCDE 0123.,!", *"éÀñßÆ\n", *CYRILLIC, *MANY[::20], "日"])
    lengths = generator.integers(1, 2 * FEATURE_LEN, count - len(STRANGE))
    return [*STRANGE, *("".join(generator.choice(characters, length)) for length in lengths)]


def make(
    folder: Path,
    kind: str,
    encoding: CharEncoder,
    names: Sequence[str] = CLASSES,
    data: dict[str, Any] | None = None,
    calibration: Any = CALIBRATION,
    more: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint with random parameters, which give different texts different probabilities.

    Args:
        more: Further entries of its description.
    """
    size, classes = encoding.num_ids, len(names)
    shapes: dict[str, NetworkConfig] = {
        "crepe": CrepeConfig(
            size,
            encoding.feature_len,
            classes,
            6,
            5000,
            encoding.num_word_ids,
            1250,
            embedding_maxn=5,
            embedding_rows=1024,
            width=32,
            blocks=3,
            stride=2,
        ),
        "ngrams": NGramConfig(size, encoding.feature_len, classes, 6, 5000, encoding.num_word_ids, 1250),
        "paper": PaperConfig(size, encoding.feature_len, classes, filters=8, units=16),
    }
    shape = shapes[kind]
    arrays = initial(shape, seed=1).values
    generator = np.random.default_rng(1)
    if kind == "paper":
        arrays["14.weight"] *= 8
    else:
        table = "ngrams." if kind == "crepe" else ""
        arrays[f"{table}weight"] = generator.normal(0, 0.1, arrays[f"{table}weight"].shape).astype(np.float32)
        arrays[f"{table}bias"] = generator.normal(0, 1, classes).astype(np.float32)
        arrays[f"{table}significant"] = generator.integers(0, 2, arrays[f"{table}significant"].size).astype(np.float32)
    for name, array in arrays.items():  # In a new network, the second convolution of each block is zero.
        if "convolutions" in name:
            arrays[name] = generator.normal(0, 0.1, array.shape).astype(np.float32)
    about = {"epoch": 0, "test_accuracy": 0.5, "encoding": encoding.to_dict(), "classes": list(names)}
    about |= {"composition": TextPreprocessor().to_dict(), **({"calibration": calibration} if calibration else {})}
    about |= {"data": {**data, "fingerprint": ""}} if data else {}
    about |= more or {}
    # In float32, like the exported model. The default precision depends on the processor.
    return checkpoint.write_checkpoint(
        folder, arrays, {**about, "network": {**shape.settings(), "precision": "float32"}}
    )


def classifier(folder: Path) -> Any:
    """Open an exported model with the runtime module in its folder."""
    return runpy.run_path(str(folder / "crepe_runtime.py"))["Classifier"](str(folder / "model.onnx"))


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_it_answers_as_predict_does(kind, name, kernels, tmp_path):
    predictor, given = crepe_dist.load(make(tmp_path, kind, ENCODINGS[name]), device="cpu"), texts()
    files, difference = export(predictor, "onnx", tmp_path / "out", synthetic_texts(predictor.encoding))
    assert [file.name for file in files] == ["crepe_runtime.py", "model.onnx"]
    assert difference < 1e-5
    exported = classifier(tmp_path / "out")
    expected, found = predictor.predict(given), exported.predict(given)
    for one, other in zip(found, expected, strict=True):
        assert (one.characters_read, one.characters_truncated, one.error) == (
            other.characters_read,
            other.characters_truncated,
            other.error,
        )
        assert dict(one.ranking) == pytest.approx(dict(other.ranking), abs=1e-5)
        if other.margin > 1e-4:
            assert one.label == other.label
    assert len({answer.label for answer in expected}) > 1
    assert sum(answer.characters_truncated > 0 for answer in expected) > 50
    assert CharEncoder.from_dict(exported.metadata) == predictor.encoding
    assert (exported.metadata["classes"], exported.metadata["version"]) == (CLASSES, crepe_dist.__version__)


def test_it_needs_what_it_says():
    assert imported(Path(crepe_runtime.__file__).read_text(encoding="utf-8")) == {
        "json", "collections", "itertools", "typing", "numpy", "onnxruntime",
    }  # fmt: skip


def imported(source: str) -> set[str]:
    """Return the top-level packages that a module imports."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {str(node.module).split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}


def serialize(graph: GraphBuilder, outputs: Sequence[str]) -> bytes:
    """Make an ONNX file of a graph whose outputs are int32."""
    infos = [onnx.helper.make_tensor_value_info(each, onnx.TensorProto.INT32, None) for each in outputs]
    made = onnx.helper.make_graph(graph.nodes, "graph", graph.inputs, infos, graph.values)
    opset = [onnx.helper.make_opsetid("", onnx_file.OPSET_VERSION)]
    model = onnx.helper.make_model(made, opset_imports=opset, ir_version=onnx_file.IR_VERSION)
    return model.SerializeToString()


def session_of(graph: GraphBuilder, outputs: Sequence[str]) -> onnxruntime.InferenceSession:
    """Open a graph whose outputs are int32."""
    return onnxruntime.InferenceSession(serialize(graph, outputs), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_graph_encodes_every_character_and_text_alike(name):
    encoding = ENCODINGS[name]
    graph = GraphBuilder()
    session = session_of(graph, [onnx_file.encode(graph, encoding), *onnx_file.COUNTS])
    # All characters that an encoding here knows, and some of the others.
    points = (*range(0x5000), *range(0x5000, 0xD800, 9), *range(0xE000, 0x1F600, 9), *range(0x1F600, 0x1F640))
    characters = [chr(point) for point in (*points, *range(0x10FF00, 0x110000))]
    # The rarer characters share texts, because encoding a text costs as much as encoding 30 characters.
    rarer = [" ".join(characters[start : start + 30]) for start in range(0x600, len(characters), 30)]
    for several in (characters[:0x600], rarer, texts(), nasty_texts(200, encoding.feature_len)):
        longest = max(1, *map(len, several))
        batch = np.array([[*map(ord, text), *[-1] * (longest - len(text))] for text in several], np.int32)
        codes, read, cut = session.run(None, {"text": batch})
        expected = encoding.encode(several)
        assert (codes == expected[:, : codes.shape[1]]).all()
        assert (expected[:, codes.shape[1] :] == PAD_UNK_ID).all()
        known = encoding.starts_character(expected) & (expected != encoding.alphabet.index(" "))
        assert (read == known.sum(axis=1)).all()
        assert cut.tolist() == [len(encoding.truncated_range(text)) for text in several]


def test_parameters_from_elsewhere(tmp_path, printed_by):
    """The parameters of the notebook have no description."""
    path = make(tmp_path, "paper", ENCODINGS["notebook"], calibration=None)
    path.with_suffix(".json").unlink()
    crepe_dist.load(path, classes=["a", "b", "c"], feature_len=FEATURE_LEN).save(tmp_path / "saved")
    for form in FORMATS:
        if form == "web":  # See tests/exporting/test_web.py.
            continue
        printed = printed_by("export", tmp_path / "saved", "--format", form, "--out", tmp_path / "out")
        assert "on 0 texts of the test split and 100 synthetic texts" in printed
    assert crepe_runtime.Classifier(str(tmp_path / "out" / "model.onnx")).classes == ["a", "b", "c"]
    assert crepe_dist.load(tmp_path / "out").classes == ["a", "b", "c"]


def test_the_runtime_limits_the_activations_of_a_batch(monkeypatch, tmp_path):
    predictor = crepe_dist.load(make(tmp_path, "ngrams", ENCODINGS["paper"]), device="cpu")
    export(predictor, "onnx", tmp_path / "out", synthetic_texts(predictor.encoding))
    model = onnx.load(tmp_path / "out" / "model.onnx")
    monkeypatch.setattr(crepe_runtime, "FILTERS", 1)
    values_per_text = predictor.encoding.feature_len * 6 * len(predictor.classes)
    monkeypatch.setattr(crepe_runtime, "MAX_ACTIVATIONS", 5 * values_per_text)
    assert crepe_runtime.Classifier(model.SerializeToString()).batch_size == 5


def test_the_runtime_refuses_what_is_no_list_of_texts():
    wrong: tuple[Any, ...] = ("one text", {"text": ["a"]}, pd.DataFrame({"text": ["a"]}), 5)
    for given in wrong:
        with pytest.raises(TypeError, match=type(given).__name__):
            crepe_runtime.checked(given)
    assert crepe_runtime.checked(pd.Series(["a b", " "])) == ["a b", " "]


@pytest.mark.parametrize(("existing", "scale"), [(False, float("nan")), (True, 9.0)])
def test_what_answers_otherwise_is_not_there(existing, scale, tmp_path, monkeypatch):
    predictor, out = crepe_dist.load(make(tmp_path, "ngrams", ENCODINGS["paper"])), tmp_path / "new" / "out"
    if existing:
        out.mkdir(parents=True)
        (out / "model.onnx").write_text("of before")
    monkeypatch.setattr(ngrams_onnx, "NGRAM_ROOT_SCALE", scale)
    with pytest.raises(UserError, match="computes different probabilities"):
        export(predictor, "onnx", out, texts())
    found = {path.name: path.read_text() for path in out.iterdir()} if out.exists() else None
    assert found == ({"model.onnx": "of before"} if existing else None)


def test_mistakes_are_told(tmp_path, monkeypatch, complaint):
    path = make(tmp_path, "ngrams", ENCODINGS["paper"])
    (tmp_path / "file").write_text("")
    for flags, message in (
        (["--out", "file"], "file is not a folder"),
        (["--out", "new", "--data", "nowhere"], "nowhere"),
        (["--out", "new", "--max-size-mb", "1", "--format", "onnx"], "--max-size-mb does not apply to --format onnx"),
    ):
        assert message in complaint("export", path, *flags, cwd=tmp_path)
    monkeypatch.setattr(onnx_file, "MAX_PARAMETER_BYTES", 1000)
    assert "too large for an ONNX file: 80" in complaint("export", path, "--out", "new", cwd=tmp_path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    said = complaint("export", path, "--out", "new", cwd=tmp_path)
    assert "export to ONNX files and web pages needs onnx\n" in said
    assert not (tmp_path / "new").exists()
