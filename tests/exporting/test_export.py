"""Exported models answer as predict does, also without this package where promised."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import crepe_dist.train
from crepe_dist import cli
from crepe_dist.data.alphabet import BLANK, Encoding
from crepe_dist.data.characters import frequent_alphabet
from crepe_dist.data.composition import Composition
from crepe_dist.errors import UserError
from crepe_dist.exporting import FORMATS, crepe_runtime, onnx_file
from crepe_dist.exporting.exporter import export, synthetic_texts
from crepe_dist.model.onnx_graph import Graph
from crepe_dist.model.shape import Shape
from crepe_dist.networks.crepe.shape import CrepeShape
from crepe_dist.networks.ngrams import onnx as ngrams_onnx
from crepe_dist.networks.ngrams.shape import NGramShape
from crepe_dist.networks.paper.shape import PaperShape
from crepe_dist.predicting.answers import answers
from crepe_dist.predicting.inputs import Input
from crepe_dist.runs import checkpoint
from crepe_dist.settings import config
from tests.conftest import FEATURE_LEN, QUICK, run
from tests.helpers.engines import initial

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
MANY = "".join(map(chr, (*range(0x4E00, 0x4E00 + 400), *range(0x1F600, 0x1F640))))  # of which some have two codes
ENCODINGS = {
    "paper": Encoding("paper", FEATURE_LEN),
    "full": Encoding("full", FEATURE_LEN + 7, False),
    "notebook": Encoding("notebook", FEATURE_LEN),
    "own": Encoding("paper", FEATURE_LEN, None, *frequent_alphabet(CHARACTERS, "paper")),
    "own, cases apart": Encoding("full", FEATURE_LEN, None, *frequent_alphabet(CHARACTERS, "full")),
    "rare ones": Encoding(
        "paper", FEATURE_LEN, None, *frequent_alphabet(CHARACTERS + Counter(map(ord, MANY * 9)), "paper")
    ),
}
KINDS = ("crepe", "ngrams", "paper")
CALIBRATION = {"temperature": 0.7, "min_probability": 0.6}  # which every export has to apply
CASES = [
    ("crepe", "full"), ("crepe", "rare ones"), ("ngrams", "own"), ("ngrams", "own, cases apart"), ("paper", "notebook"),
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
    encoding: Encoding,
    names: Sequence[str] = CLASSES,
    data: dict[str, Any] | None = None,
    calibration: Any = CALIBRATION,
) -> Path:
    """A checkpoint with parameters by chance, of which no two texts should think alike."""
    size, classes = encoding.codes, len(names)
    shapes: dict[str, Shape] = {
        "crepe": CrepeShape(
            size, encoding.feature_len, classes, 6, 5000, reach=5, rows=1024, width=32, blocks=3, stride=2
        ),
        "ngrams": NGramShape(size, encoding.feature_len, classes, 6, 5000),
        "paper": PaperShape(size, encoding.feature_len, classes, filters=8, units=16),
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
    for name, array in arrays.items():  # the tower's second convolutions start at zero
        if "convolutions" in name:
            arrays[name] = generator.normal(0, 0.1, array.shape).astype(np.float32)
    about = {"epoch": 0, "test_accuracy": 0.5, "encoding": encoding.to_dict(), "classes": list(names)}
    about |= {"composition": Composition().to_dict(), **({"calibration": calibration} if calibration else {})}
    about |= {"data": {**data, "fingerprint": "", "test": ""}} if data else {}
    # In float32, as what is exported; what was only found on this processor might be less.
    return checkpoint.write(folder, arrays, {**about, "network": {**shape.settings(), "precision": "float32"}})


@pytest.fixture(scope="module", params=CASES, ids=": ".join)
def made(request, tmp_path_factory):
    """The predictor of a checkpoint, and the folder of its ONNX model."""
    kind, name = request.param
    folder = tmp_path_factory.mktemp("made")
    predictor = crepe_dist.load(make(folder, kind, ENCODINGS[name]), device="cpu")
    files, difference = export(predictor, "onnx", folder / "out", synthetic_texts(predictor.encoding))
    assert [file.name for file in files] == ["crepe_runtime.py", "model.onnx"]
    assert difference < 1e-5
    return predictor, folder / "out"


def classifier(folder: Path) -> Any:
    """The classifier of a model, by the module that was written beside it."""
    return runpy.run_path(str(folder / "crepe_runtime.py"))["Classifier"](str(folder / "model.onnx"))


class TestRuntime:
    def test_answers_as_predict_does(self, kernels, made):
        _, folder = made
        (checkpoint_file,) = folder.parent.rglob("*.params")
        predictor = crepe_dist.load(checkpoint_file, device="cpu")
        given = texts()
        expected = predictor.predict(given)
        found = classifier(folder).predict(given)
        assert len(found) == len(given) == 200
        for one, other in zip(found, expected):
            assert (one.read, one.characters_cut) == (other.read, other.characters_cut)
            assert dict(one.ranking) == pytest.approx(dict(other.ranking), abs=1e-5)
            if other.ranking[0][1] - other.ranking[1][1] > 1e-4:
                assert one.label == other.label
            assert one.ranking[0] == (one.label, one.probability)
        assert len({answer.label for answer in expected}) > 1
        about = classifier(folder).about
        assert Encoding.from_dict(about) == predictor.encoding
        assert (about["classes"], about["version"]) == (CLASSES, crepe_dist.__version__)
        assert sum(answer.characters_cut > 0 for answer in expected) > 50
        assert np.std([answer.ranking[0][1] for answer in expected]) > 0.001

    def test_alone(self, tmp_path):
        """Run the export in a process without this package and MXNet, by arguments and by lines."""
        predictor, folder = crepe_dist.load(make(tmp_path, "ngrams", ENCODINGS["own"])), tmp_path / "out"
        export(predictor, "onnx", folder, texts())
        given = ["one text", "ภาษาไทย", "Съешь же ещё, été", ""]
        told = answers("text", None, (), len(CLASSES))
        expected = [
            told.line(Input(number, text, prediction.problem), None if prediction.problem else prediction)
            for number, (text, prediction) in enumerate(zip(given, predictor.predict(given)), 1)
        ]
        blocked = "import runpy, sys; sys.modules['mxnet'] = sys.modules['crepe_dist'] = None; "
        script = f"{blocked}sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
        start = [sys.executable, "-I", "-c", script, "crepe_runtime.py", "model.onnx"]
        lines = "\ufeff" + "\r\n".join(given) + "\r\n"
        for arguments, stdin in ((given, ""), ([], lines)):
            done = subprocess.run(
                [*start, *arguments], cwd=folder, input=stdin, capture_output=True, encoding="utf-8", check=False
            )
            found = done.stdout.splitlines()
            assert len(found) == len(expected), done.stderr
            for one, other in zip(found, expected):
                if other.startswith("not classified"):
                    assert one == other
                else:
                    assert parsed(one) == pytest.approx(parsed(other), abs=0.11)  # percent: the last digit's rounding
            assert done.returncode == 1

    def test_needs_what_it_says(self):
        text = Path(crepe_runtime.__file__).read_text(encoding="utf-8")
        nodes = list(ast.walk(ast.parse(text, feature_version=(3, 9))))
        names = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {str(node.module).split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
        assert names == {"__future__", "json", "sys", "collections", "itertools", "typing", "numpy", "onnxruntime"}

    def test_refuses_what_is_no_model(self, tmp_path):
        (tmp_path / "odd.onnx").write_bytes(b"odd")
        printed = run([sys.executable, crepe_runtime.__file__, "odd.onnx", "text"], tmp_path, code=1)
        assert printed.startswith("error: 'odd.onnx' cannot be used")


def parsed(line: str) -> dict[str, float]:
    """Return the percentage of each class; of "< 0.1 %" the number."""
    found = [re.fullmatch(r"(.+?) (?:[<>] )?([0-9.]+) %", part) for part in line.split("   ")]
    assert all(found), line
    return {match[1]: float(match[2]) for match in found if match}


def test_quantized_tables(tmp_path):
    predictor = crepe_dist.load(make(tmp_path, "crepe", ENCODINGS["paper"]), device="cpu")
    some = texts()
    for out, quantize in (("full", False), ("small", True)):
        _, difference = export(predictor, "onnx", tmp_path / out, some, quantize=quantize)
        assert difference < 1e-5  # beside a network with the same rounded tables
    full, small = (crepe_runtime.Classifier(str(tmp_path / out / "model.onnx")) for out in ("full", "small"))
    off = np.abs(full.run(some)[0] - small.run(some)[0]).max()
    assert 1e-5 < off < 0.02
    sizes = [(tmp_path / out / "model.onnx").stat().st_size for out in ("small", "full")]
    tables = sum(predictor.engine.arrays[name].nbytes for name in predictor.engine.shape.tables)
    assert sizes[1] - sizes[0] > 0.55 * tables  # a scale for each row of three numbers


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_graph_encodes_every_character_and_text_alike(name):
    encoding = ENCODINGS[name]
    graph = Graph(quantize=False)
    encoded = onnx_file.encode(graph, encoding)
    values = [onnx.helper.make_tensor_value_info(each, onnx.TensorProto.INT32, None) for each in encoded]
    made = onnx.helper.make_graph(graph.nodes, name, graph.inputs, values, graph.values)
    opset = [onnx.helper.make_opsetid("", onnx_file.OPSET_VERSION)]
    model = onnx.helper.make_model(made, opset_imports=opset, ir_version=onnx_file.IR_VERSION)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    points = [point for point in (*range(0x40000), *range(0x10FF00, 0x110000)) if not 0xD800 <= point < 0xE000]
    each = [chr(point) for point in points]
    for several in (each, texts()):
        longest = max(1, *map(len, several))
        batch = np.array([[*map(ord, text), *[-1] * (longest - len(text))] for text in several], np.int32)
        codes, read, cut = session.run(None, {"text": batch})
        expected = encoding.encode(several)
        assert (codes == expected[:, : codes.shape[1]]).all()
        assert (expected[:, codes.shape[1] :] == BLANK).all()
        known = encoding.counted(expected) & (expected != encoding.alphabet.index(" "))
        assert (read == known.sum(axis=1)).all()
        assert cut.tolist() == [len(encoding.unread(text)) for text in several]


@pytest.fixture
def command_line(monkeypatch, capsys):
    """Runs export in this process, to save the imports; returns what it prints."""

    def of(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
        cli.main("export")
        return capsys.readouterr().out

    return of


def test_parameters_from_elsewhere(tmp_path, command_line):
    """The notebook's, without a description."""
    path = make(tmp_path, "paper", ENCODINGS["notebook"], calibration=None)
    path.with_suffix(".json").unlink()
    told = ("--mode", "notebook", "--feature-len", FEATURE_LEN, "--classes", "a,b,c")
    for form in FORMATS:
        if form == "web":  # tests/exporting/test_web.py has it
            continue
        printed = command_line(path, "--format", form, "--out", tmp_path / "out", *told)
        assert "on 0 texts of the test split and 100 synthetic ones" in printed
    assert crepe_runtime.Classifier(str(tmp_path / "out" / "model.onnx")).classes == ["a", "b", "c"]
    assert crepe_dist.load(tmp_path / "out").classes == ["a", "b", "c"]


@pytest.mark.parametrize(("existing", "scale"), [(False, 9.0), (True, 9.0), (False, float("nan"))])
def test_what_answers_otherwise_is_not_there(existing, scale, tmp_path, monkeypatch):
    predictor, out = crepe_dist.load(make(tmp_path, "ngrams", ENCODINGS["paper"])), tmp_path / "new" / "out"
    if existing:
        out.mkdir(parents=True)
        (out / "model.onnx").write_text("of before")
    monkeypatch.setattr(ngrams_onnx, "ROOT_SCALE", scale)
    with pytest.raises(UserError, match="computes other probabilities than ours") as raised:
        export(predictor, "onnx", out, texts())
    assert raised.value.remedy
    assert out.exists() == existing
    if existing:
        assert [path.name for path in out.iterdir()] == ["model.onnx"]
        assert (out / "model.onnx").read_text() == "of before"


def test_mistakes_are_told(tmp_path, monkeypatch, complaint):
    path = make(tmp_path, "ngrams", ENCODINGS["paper"])
    (tmp_path / "file").write_text("")
    for flags, message in (
        (["--out", "file"], "file is not a folder"),
        (["--out", "new", "--format", "onyx"], "give one of onnx"),
        (["--out", "new", "--data", "nowhere"], "nowhere"),
        (["--out", "new", "--mode", "paper"], "already has a description"),
        (["--out", "new", "--format", "crepe", "--quantize"], "--quantize does not apply to --format crepe"),
    ):
        assert message in complaint("export", path, *flags, cwd=tmp_path)
    monkeypatch.setattr(onnx_file, "MAX_PARAMETER_BYTES", 1000)
    assert "too large for an ONNX file: 80" in complaint("export", path, "--out", "new", cwd=tmp_path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    said = complaint("export", path, "--out", "new", cwd=tmp_path)
    assert "export to ONNX files and web pages needs onnx\n" in said
    assert not (tmp_path / "new").exists()


def test_it_is_tried_on_the_test_part(data, tmp_path, monkeypatch, command_line):
    monkeypatch.chdir(tmp_path)
    crepe_dist.train.train(config.parse(["--data", str(data), "--run-dir", "run", *QUICK]))
    assert "on 97 texts of the test split and 100 synthetic ones" in command_line("run", "--out", "out")
