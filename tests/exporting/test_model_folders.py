"""Model folders for other tools, MLflow, Triton and the Hugging Face Hub, and models at URLs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
import requests
import yaml

import crepe_dist
from crepe_dist.data.composition import Composition
from crepe_dist.exporting.exporter import export
from crepe_dist.files import cache_folder
from crepe_dist.predicting.frames import predict_frame
from crepe_dist.predicting.mlflow_model import _load_pyfunc
from crepe_dist.runs import checkpoint
from tests.conftest import run
from tests.exporting.test_export import CALIBRATION, CLASSES, ENCODINGS, STRANGE, make, texts
from tests.helpers.needs import needs
from tests.serving.test_serve import SECONDS, Process

ROOT = Path(__file__).parents[2]
SLOW = [pytest.mark.slow, pytest.mark.timeout(900), needs("uv")]


@pytest.fixture
def model(tmp_path):
    """The checkpoint of a run, and its predictor."""
    path = make(tmp_path / "run", "ngrams", ENCODINGS["paper"], data={"name": "three <b>kinds</b>"})
    return path, crepe_dist.load(path, device="cpu")


def exported(model, form: str, out: Path, **about: Any) -> list[str]:
    predictor = replace(model[1], about={**model[1].about, **about})
    files, difference = export(predictor, form, out, texts())
    assert difference == 0
    return [str(file.relative_to(out)) for file in files]


class TestMlflow:
    def test_the_folder_names_code_of_the_package_and_no_other(self, model, tmp_path):
        out = tmp_path / "out"
        composition = Composition(("headline", "body")).to_dict()
        files = exported(model, "mlflow", out, composition=composition)
        assert files == [
            "MLmodel",
            "input_example.json",
            "model.json",
            "model.safetensors",
            "serving_input_example.json",
        ]
        about = yaml.safe_load((out / "MLmodel").read_text(encoding="utf-8"))
        assert about["flavors"]["python_function"].keys() == {"loader_module", "python_version"}
        inputs = json.loads(about["signature"]["inputs"])
        assert [(each["name"], each["type"]) for each in inputs] == [("headline", "string"), ("body", "string")]
        example = json.loads((out / "input_example.json").read_text(encoding="utf-8"))
        loaded = _load_pyfunc(str(out))
        answers = loaded.predict(pd.DataFrame(example["data"], columns=example["columns"]))
        outputs = {each["name"]: each["type"] for each in json.loads(about["signature"]["outputs"])}
        assert list(outputs) == list(answers)
        assert outputs["predicted_probability"] == "double"
        given = f"{example['data'][0][0]} | {example['data'][0][1]}"
        assert answers["predicted_class"][0] == model[1].predict([given])[0].label

    def test_rows_without_an_answer(self, model):
        predictor = model[1]
        frame = pd.DataFrame({"n": [1, 2, 3, 4], "text": ["zig", "", None, "qua"]}, index=[3, 1, 4, 2])
        predictor.min_probability = 0.999
        rejected = predict_frame(predictor, frame)
        assert rejected["predicted_class"].tolist() == [""] * 4
        predictor.min_probability = 0.0
        answers = predict_frame(predictor, frame)
        assert answers.index.tolist() == [3, 1, 4, 2]
        assert answers["problem"].tolist() == ["", "empty text", "empty text", ""]
        assert answers["predicted_class"].tolist() == [
            each.label if not each.problem else "" for each in predictor.predict(["zig", "", "", "qua"])
        ]
        assert np.isnan(answers["predicted_probability"]).tolist() == [False, True, True, False]

    def test_several_labels(self, model):
        predictor = model[1]
        predictor.thresholds = np.array([0.0, 0.0, 2.0])
        answers = predict_frame(predictor, pd.DataFrame({"text": ["zig", ""]}))
        assert {*json.loads(answers["predicted_labels"][0])} == {*CLASSES[:2]}
        assert answers["predicted_labels"][1] == "[]"


@dataclass
class Tensor:
    """Stand-in for Triton's, with the names that Triton gives."""

    name: str
    array: np.ndarray[Any, Any]

    def as_numpy(self) -> np.ndarray[Any, Any]:
        return self.array


@dataclass
class InferenceResponse:
    output_tensors: Any = ()
    error: Any = None


@pytest.fixture
def triton(monkeypatch):
    """A stand-in for the module that Triton's Python backend has; Triton itself is not run."""
    backend = ModuleType("triton_python_backend_utils")
    backend.Tensor, backend.InferenceResponse, backend.TritonError = Tensor, InferenceResponse, str  # type: ignore[attr-defined]
    backend.get_input_tensor_by_name = lambda request, name: request[name]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    yield
    sys.modules.pop("crepe_dist.predicting.triton_model", None)


@pytest.mark.usefixtures("triton")
class TestTriton:
    def served(self, out: Path):
        model = runpy.run_path(str(out / "1" / "model.py"))["TritonPythonModel"]()
        model.initialize({"model_repository": str(out), "model_version": "1"})
        return model

    def test_it_answers_batches_of_texts(self, model, tmp_path):
        out = tmp_path / "topics"
        files = exported(model, "triton", out)
        assert files == ["1/model.json", "1/model.py", "1/model.safetensors", "config.pbtxt", "labels.txt"]
        assert (out / "labels.txt").read_text(encoding="utf-8").splitlines() == CLASSES
        given = [text for text in STRANGE if text.isprintable()]
        encoded = [text.encode() for text in given]
        first, bad, rest = (
            {"text": Tensor("text", np.array(each, object).reshape(-1, 1))}
            for each in (encoded[:1], [b"\xff"], encoded[1:])
        )
        answers = self.served(out).execute([first, bad, rest])
        assert "UTF-8" in answers[1].error
        tensors = [{each.name: each.array for each in answer.output_tensors} for answer in (answers[0], answers[2])]
        found = {name: np.concatenate([each[name] for each in tensors]) for name in tensors[0]}
        expected = model[1].predict(given)
        assert found["label"].shape == found["problem"].shape == (len(given), 1)
        assert found["label"].ravel().tolist() == [
            (each.label if not each.problem else "").encode() for each in expected
        ]
        assert found["problem"].ravel().tolist() == [each.problem.encode() for each in expected]
        assert found["probabilities"].dtype == np.float32
        for row, each in zip(found["probabilities"], expected):
            assert row.tolist() == ([0, 0, 0] if each.problem else [dict(each.ranking)[name] for name in CLASSES])

    def test_an_export_replaces_one(self, model, tmp_path):
        for _ in range(2):
            exported(model, "triton", tmp_path / "out")
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1", "config.pbtxt", "labels.txt"]


class TestHub:
    def test_the_card(self, model, tmp_path):
        path, _ = model
        card = path.parent.parent / "model_card.md"
        for digest, expected in (("of another epoch", False), (checkpoint.sha256(path), True)):
            card.write_text(f"The SHA-256 of the parameters is `{digest}`.")
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            files = exported(model, "huggingface", tmp_path / "out")
            assert files == ["README.md", "model.json", "model.safetensors", *["model_card.md"] * expected]
        text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
        head = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        assert head is not None
        metadata = yaml.safe_load(head[1])
        assert (metadata["library_name"], metadata["pipeline_tag"]) == ("crepe_dist", "text-classification")
        (entry,) = metadata["model-index"]
        assert entry["name"] == "three <b>kinds</b>"
        assert entry["results"][0]["metrics"] == [{"type": "accuracy", "name": "accuracy", "value": 0.5}]
        body = text[head.end() :]
        assert "<b>" not in body
        assert 'crepe_dist.load("hf://OWNER/NAME")' in body
        assert "[The card of its run](model_card.md)" in body
        assert "good, schlecht, sehr, плохо" in body

    def test_parameters_from_elsewhere_have_a_card(self, model, tmp_path):
        export(replace(model[1], about={}), "huggingface", tmp_path / "out", texts())
        text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
        assert "model-index" not in text
        assert "test accuracy" not in text


class TestUrls:
    def put(self, files, folder: Path) -> None:
        for path in folder.iterdir():
            files.pipe(f"/hub/model/{path.name}", path.read_bytes())

    @pytest.fixture
    def memory(self, model, tmp_path, monkeypatch):
        """A model folder at memory://hub/model, and an empty cache."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        exported(model, "crepe", tmp_path / "out")
        files = fsspec.filesystem("memory")
        self.put(files, tmp_path / "out")
        yield files
        files.rm("/", recursive=True)

    def test_a_model_is_copied_once_and_again_when_it_has_changed(self, memory, model, tmp_path):
        url = "memory://hub/model"
        expected = model[1].predict(texts())
        assert crepe_dist.load(url).predict(texts()) == expected
        assert len([*(cache_folder() / "models").iterdir()]) == 1
        memory.rm("/hub/model/model.safetensors")
        assert crepe_dist.load(f"{url}/").predict(texts()) == expected
        other = make(tmp_path / "other", "paper", ENCODINGS["paper"], calibration={**CALIBRATION, "temperature": 0.9})
        predictor = crepe_dist.load(other, device="cpu")
        export(predictor, "crepe", tmp_path / "out", texts())
        self.put(memory, tmp_path / "out")
        assert crepe_dist.load(url).predict(texts()) == predictor.predict(texts())
        assert len([*(cache_folder() / "models").iterdir()]) == 2

    def test_mistakes_are_told(self, memory, tmp_path, complaint):
        for url in ("memory://hub/none", "memory://hub"):
            said = complaint("predict", url, "--text", "hello", cwd=tmp_path)
            assert f"{url}/model.json does not exist" in said
        assert "cannot be read" in complaint("predict", "nowhere://hub/none", "--text", "hello", cwd=tmp_path)
        memory.pipe("/hub/model/model.safetensors", b"another")
        said = complaint("predict", "memory://hub/model", "--text", "hello", cwd=tmp_path)
        assert "was altered after it was written" in said


class Hub(BaseHTTPRequestHandler):
    """Stand-in for the Hub with one repository, owner/name: what its client asks for to read files."""

    folder: Path
    asked: list[str]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, each in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), each)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        files = {each.name: each.read_bytes() for each in self.folder.iterdir()}
        repository = "/api/models/owner/name"
        name = path.removeprefix("/owner/name/resolve/main/")
        if path == repository:
            about = {"id": "owner/name", "sha": "a" * 40, "siblings": [{"rfilename": each} for each in files]}
            self.answer(200, json.dumps(about).encode(), Content_Type="application/json")
        elif path == f"{repository}/tree/main":
            listed = [{"type": "file", "oid": "b" * 40, "size": len(files[each]), "path": each} for each in files]
            self.answer(200, json.dumps(listed).encode(), Content_Type="application/json")
        elif name in files:
            self.answer(200, files[name], ETag=f'"{hashlib.sha1(files[name]).hexdigest()}"', X_Repo_Commit="a" * 40)
        else:
            self.answer(404, b"", X_Error_Code="RepoNotFound")


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The Python of an environment with this package, and libraries that are later than those of training."""
    folder = tmp_path_factory.mktemp("tools")
    run(["uv", "venv", "-q", "-p", sys.executable, "venv"], folder)
    path = str(folder / "venv" / "bin" / "python")
    wanted = [f"{ROOT}[remote]", "mlflow", "huggingface_hub", "kserve", "tritonclient[http]", "nvidia-pytriton>=0.7"]
    run(["uv", "pip", "install", "-q", "--no-config", "-p", path, *wanted], folder, seconds=600)
    return path


CLIENTS = {
    "triton": """
import sys
import numpy as np
import tritonclient.http as http

address, model = sys.argv[1:]
client = http.InferenceServerClient(address)
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(model)
texts = np.array([[b"zig"], ["zig zag \u00e9".encode()], [b""]], object)
for binary in (False, True):
    tensor = http.InferInput("text", texts.shape, client.get_model_metadata(model)["inputs"][0]["datatype"])
    tensor.set_data_from_numpy(texts, binary_data=binary)
    chosen = [http.InferRequestedOutput(name, binary_data=binary) for name in ("label", "probabilities", "problem")]
    for outputs in (None, chosen):
        result = client.infer(model, [tensor], outputs=outputs, request_id="7")
        assert result.get_response()["id"] == "7"
        assert result.as_numpy("probabilities").shape == (3, 3)
        print(*(text if isinstance(text, str) else text.decode() for text in result.as_numpy("label").ravel()), sep=";")
try:
    client.infer("other", [tensor])
except Exception as error:
    assert "not found" in str(error), error
tensor.set_data_from_numpy(np.array([[b"zig"], [b"\\xff"], [b""]], object))
try:
    client.infer(model, [tensor])
except Exception as error:
    assert "is not UTF-8" in str(error), error
""",
    "kserve": """
import asyncio, sys
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

async def ask(address, model):
    client, url = InferenceRESTClient(RESTConfig(protocol="v2")), f"http://{address}"
    assert await client.is_server_live(url) and await client.is_server_ready(url)
    assert await client.is_model_ready(url, model)
    texts = np.array([["zig"], ["zig zag \u00e9"], [""]], object)
    for binary in (False, True):
        tensor = InferInput("text", list(texts.shape), "BYTES")
        tensor.set_data_from_numpy(texts, binary_data=binary)
        answer = await client.infer(url, InferRequest(model_name=model, infer_inputs=[tensor]), model_name=model)
        (labels,) = (each.as_numpy() for each in answer.outputs if each.name == "label")
        print(*(text if isinstance(text, str) else text.decode() for text in labels.ravel()), sep=";")

asyncio.run(ask(*sys.argv[1:]))
""",
}


@contextmanager
def triton_server(python: str, models: Path, folder: Path) -> Iterator[str]:
    """Triton's own server, without a GPU, from the wheel of PyTriton; its stub runs the Python of the environment."""
    (packages,) = Path(python).parents[1].glob("lib/python*/site-packages")
    server = packages / "pytriton" / "tritonserver"
    shutil.copytree(server / "backends", folder / "backends")
    (stub,) = server.glob(f"python_backend_stubs/{packages.parent.name.removeprefix('python')}/*")
    shutil.copy(stub, folder / "backends" / "python")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = {"model-repository": models, "backend-directory": folder / "backends", "model-control-mode": "explicit"}
    flags |= {"load-model": "*", "http-address": "127.0.0.1", "http-port": port}
    flags |= {"allow-grpc": "false", "allow-metrics": "false"}
    command = [str(server / "bin" / "tritonserver"), *(f"--{name}={value}" for name, value in flags.items())]
    libraries = str(packages / "nvidia_pytriton.libs")
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries, "PATH": f"{Path(python).parent}:{os.environ['PATH']}"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(SECONDS * 10):
            with suppress(requests.ConnectionError):
                if requests.get(f"http://127.0.0.1:{port}/v2/health/ready", timeout=SECONDS).ok:
                    break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(SECONDS)


class TestTools:
    pytestmark = SLOW

    def test_mlflow(self, python, model, tmp_path):
        exported(model, "mlflow", tmp_path / "out")
        rows = {"columns": ["text"], "data": [["zig"], ["qua vex"], [""]]}
        (tmp_path / "rows.json").write_text(json.dumps({"dataframe_split": rows}))
        script = "import sys; sys.modules['mxnet'] = None; from mlflow.cli import cli; cli()"
        flags = ["--env-manager", "local", "-m", "out", "-i", "rows.json", "-o", "answers.json", "-t", "json"]
        run([python, "-c", script, "models", "predict", *flags], tmp_path)
        answers = json.loads((tmp_path / "answers.json").read_text())["predictions"]
        expected = model[1].predict(["zig", "qua vex"])
        assert [each["predicted_class"] for each in answers] == [*(each.label for each in expected), ""]
        found = [each["predicted_probability"] for each in answers[:2]]
        assert found == pytest.approx([each.probability for each in expected], abs=1e-6)
        read = (
            "import mlflow, mlflow.models; about = mlflow.models.Model.load('out')\n"
            "print(about.load_input_example('out').columns[0], about.signature.inputs.input_names()[0])"
        )
        assert run([python, "-c", read], tmp_path).splitlines()[-1] == "text text"

    @needs("java")
    def test_mlflow_in_spark(self, python, model, tmp_path):
        run(["uv", "pip", "install", "-q", "--no-config", "-p", python, "pyspark", "pyarrow"], tmp_path, seconds=600)
        exported(model, "mlflow", tmp_path / "out")
        code = (
            "import mlflow\nfrom pyspark.sql import SparkSession\n"
            "spark = SparkSession.builder.master('local[2]').config('spark.ui.enabled', 'false').getOrCreate()\n"
            "classify = mlflow.pyfunc.spark_udf(spark, 'out', env_manager='local')\n"
            "frame = spark.createDataFrame([('zig',), ('qua vex',), (None,)], ['text'])\n"
            "rows = frame.select(classify('text').alias('answer')).select('answer.*').toPandas()\n"
            "rows.to_json('answers.json', orient='records')\n"
        )
        environment = {**os.environ, "PYSPARK_PYTHON": python, "OMP_NUM_THREADS": "1", "SPARK_LOCAL_IP": "127.0.0.1"}
        subprocess.run([python, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=600)
        answers = json.loads((tmp_path / "answers.json").read_text())
        labels = [each.label for each in model[1].predict(["zig", "qua vex"])]
        assert [each["predicted_class"] for each in answers] == [*labels, ""]
        assert [each["problem"] for each in answers] == ["", "", "empty text"]

    def test_the_hub(self, python, model, tmp_path):
        exported(model, "huggingface", tmp_path / "out")
        handler = type("OneHub", (Hub,), {"folder": tmp_path / "out", "asked": []})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}"
            environment = {
                **os.environ,
                "HF_ENDPOINT": address,
                "XDG_CACHE_HOME": str(tmp_path),
                "HF_HOME": str(tmp_path),
            }
            for name, code in (("name", 0), ("name", 0), ("other", 1)):
                command = [python, "-m", "crepe_dist.predict", f"hf://owner/{name}", "--text", "zig"]
                done = subprocess.run(
                    command, env=environment, capture_output=True, text=True, timeout=200, check=False
                )
                assert done.returncode == code, done.stderr
                if code == 0:
                    assert done.stdout.startswith(model[1].predict(["zig"])[0].label)
                else:
                    assert "error: hf://owner/other/model.json does not exist" in done.stderr
            server.shutdown()
        assert handler.asked.count("/owner/name/resolve/main/model.safetensors") == 1  # type: ignore[attr-defined]
        card = "from huggingface_hub import ModelCard; print(ModelCard.load('out/README.md').data.eval_results[0])"
        assert "accuracy" in run([python, "-c", card], tmp_path)

    def ask(self, python, client, address, name, model, tmp_path):
        """Classify by a client; all answers are those of predict."""
        labels = [each.label for each in model[1].predict(["zig", "zig zag é"])]
        printed = run([python, "-c", CLIENTS[client], address, name], tmp_path).splitlines()
        assert {*printed} == {";".join([*labels, ""])}

    @pytest.mark.parametrize("client", CLIENTS)
    def test_clients_of_serve(self, client, python, model, tmp_path):
        process = Process(model[0].parents[1])
        try:
            self.ask(python, client, process.url.removeprefix("http://"), "crepe", model, tmp_path)
        finally:
            process.stop()

    def test_triton(self, python, model, tmp_path):
        exported(model, "triton", tmp_path / "models" / "topics")
        with triton_server(python, tmp_path / "models", tmp_path) as address:
            self.ask(python, "triton", address, "topics", model, tmp_path)
