"""The Open Inference Protocol: answers in the published form, and refusals."""

import json

import jsonschema
import numpy as np
import pytest

from crepe_dist.predicting.prediction import Prediction
from tests.serving.test_serve import CLASSES, by_length, service, value

MODEL = "/v2/models/crepe"
INFER = f"{MODEL}/infer"


def form(required: dict[str, object], optional: dict[str, object] | None = None) -> dict[str, object]:
    """Return the JSON Schema of an object that has these names and no others."""
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


# The forms of specification/protocol/open_inference_rest.yaml of kserve/open-inference-protocol, closed.
TEXT = {"type": "string"}
NAMES = {"type": "array", "items": TEXT}
SHAPE = {"type": "array", "items": {"type": "integer"}}
TENSOR = {"name": TEXT, "shape": SHAPE, "datatype": {"enum": ["BYTES", "FP32"]}}
DATA = {"type": "array", "items": {"type": ["string", "number", "boolean"]}}
SERVER = form({"name": TEXT, "version": TEXT, "extensions": NAMES})
TENSORS = {"type": "array", "items": form(TENSOR)}
METADATA = form({"name": TEXT, "platform": TEXT, "inputs": TENSORS, "outputs": TENSORS}, {"versions": NAMES})
OUTPUTS = {"type": "array", "items": form({**TENSOR, "data": DATA})}
ANSWER = form({"model_name": TEXT, "outputs": OUTPUTS}, {"id": TEXT})
ERROR = form({"error": TEXT})


def question(*texts: object, **more: object) -> dict[str, object]:
    tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}
    return {"inputs": [tensor], **more}


def outputs(answer: dict) -> dict[str, list]:
    jsonschema.validate(answer, ANSWER)
    for tensor in answer["outputs"]:
        assert np.prod(tensor["shape"]) == len(tensor["data"])
    return {tensor["name"]: tensor["data"] for tensor in answer["outputs"]}


@pytest.fixture(scope="module")
def client():
    with service(max_chars=50, max_batch=3, max_body=1000) as client:
        yield client


class TestForms:
    def test_server_and_model(self, client):
        for path in ("/v2", "/v2/"):
            jsonschema.validate(client.get(path).json(), SERVER)
        about = client.get(MODEL).json()
        jsonschema.validate(about, METADATA)
        shapes = {tensor["name"]: tensor["shape"] for tensor in about["outputs"]}
        assert shapes == {"label": [-1], "probabilities": [-1, 4], "classes": [4], "problem": [-1]}

    def test_answers_are_those_of_predict(self, client):
        found = client.post(INFER, json=question("a", "abc", id="7")).json()
        assert (found["id"], found["model_name"]) == ("7", "crepe")
        values = outputs(found)
        expected = [dict(each.ranking) for each in by_length(["a", "abc"])]
        assert values["label"] == [CLASSES[1], CLASSES[3]]
        assert values["classes"] == CLASSES
        assert values["probabilities"] == [shares[name] for shares in expected for name in CLASSES]

    def test_columns_and_chosen_outputs(self, client):
        asked = question("a", "abc", outputs=[{"name": "label", "parameters": {"binary_data": False}}])
        asked["inputs"][0] |= {"shape": [2, 1], "data": [["a"], ["abc"]]}  # type: ignore[index]
        assert outputs(client.post(INFER, json=asked).json()) == {"label": [CLASSES[1], CLASSES[3]]}

    def test_texts_without_an_answer(self):
        def predict(texts):
            first, second = by_length(texts)
            return [first._replace(error="empty text"), second._replace(rejected=True)]

        with service(predict) as client:
            values = outputs(client.post(INFER, json=question("", "zig")).json())
            assert value(client.get("/metrics").text, "crepe_dist_texts_total") == 2
        assert values["label"] == ["", ""]
        assert values["problem"] == ["empty text", ""]
        assert values["probabilities"] == [0, 0, 0, 0, 0.2, 0.1, 0, 0.7]

    def test_several_labels(self):
        ranking = tuple((name, 0.5) for name in CLASSES)
        prediction = Prediction(*ranking[0], ranking, 1, labels=(CLASSES[1], CLASSES[2]))
        with service(lambda texts: [prediction for _ in texts], several=True) as client:
            assert "labels" in [tensor["name"] for tensor in client.get(MODEL).json()["outputs"]]
            (labels,) = outputs(client.post(INFER, json=question("a")).json())["labels"]
        assert json.loads(labels) == CLASSES[1:3]

    def test_it_is_ready_until_it_stops(self):
        with service() as client:
            ready = ("/v2/health/ready", f"{MODEL}/ready")
            assert [client.get(path).status_code for path in (*ready, "/v2/health/live")] == [200] * 3
            client.batcher.close()
            for path in ready:
                refused = client.get(path)
                assert refused.status_code == 503
                jsonschema.validate(refused.json(), ERROR)


def packed(*texts: str) -> bytes:
    encoded = [text.encode() for text in texts]
    return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)


def with_binary(content: bytes, size: int | None = None, shape: tuple[int, ...] = (2,)) -> tuple[bytes, int]:
    """Return a body that contains JSON followed by texts, and the length of the JSON."""
    size = len(content) if size is None else size
    tensor = {"name": "text", "shape": shape, "datatype": "BYTES", "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + content, len(head)


class TestBinaryData:
    def test_texts_and_outputs_behind_the_json(self, client):
        body, length = with_binary(packed("é", "abc"))
        answer = client.post(INFER, content=body, headers={"Inference-Header-Content-Length": str(length)})
        assert answer.status_code == 200
        end = int(answer.headers["inference-header-content-length"])
        found = {}
        for tensor in json.loads(answer.content[:end])["outputs"]:
            start, end = end, end + tensor["parameters"]["binary_data_size"]
            found[tensor["name"]] = answer.content[start:end]
        assert end == len(answer.content)
        assert found["label"] == packed(CLASSES[1], CLASSES[3])
        assert found["classes"] == packed(*CLASSES)
        expected = [dict(each.ranking)[name] for each in by_length(["é", "abc"]) for name in CLASSES]
        assert np.frombuffer(found["probabilities"], "<f4").tolist() == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("body", "why"),
        [
            (with_binary(packed("a", "b") + b"\1"), "is incomplete"),
            (with_binary(b"\1\0\0\0\xff", shape=(1,)), "text 0 is not UTF-8"),
            (with_binary(packed("a", "b"), size=9), "10 bytes follow"),
            (with_binary(b""), "0 texts"),
        ],
    )
    def test_what_is_no_tensor(self, client, body, why):
        content, length = body
        refused = client.post(INFER, content=content, headers={"Inference-Header-Content-Length": str(length)})
        assert refused.status_code == 400
        jsonschema.validate(refused.json(), ERROR)
        assert why in refused.json()["error"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "status", "why"),
        [
            (b"{", 400, "not JSON"),
            (question("a", ["b", ["c"]]), 422, "inputs.0.data.1"),
            (question(), 400, "0 texts"),
            ({"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}, 422, "inputs.0.name"),
            ({"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a"]}]}, 400, "shape is [2]"),
            (question("a", outputs=[{"name": "score"}]), 422, "there is no output 'score'"),
        ],
        ids=str,
    )
    def test_bodies(self, client, body, status, why):
        refused = client.post(INFER, content=body if isinstance(body, bytes) else json.dumps(body))
        assert refused.status_code == status
        jsonschema.validate(refused.json(), ERROR)
        assert why in refused.json()["error"]

    def test_paths_and_failures(self, client):
        for answer in (client.post("/v2/models/other/infer"), client.get(INFER)):
            assert answer.status_code in (404, 405)
            jsonschema.validate(answer.json(), ERROR)

        def fail(texts):
            raise ValueError("secret")

        with service(fail) as failing:
            refused = failing.post(INFER, json=question("a"))
        assert (refused.status_code, refused.json()) == (500, {"error": "the service failed; try again"})

    def test_pages_of_other_sites(self, client):
        content = json.dumps(question("a"))
        from_elsewhere = {"Origin": "http://evil.example"}
        assert client.post(INFER, content=content).status_code == 200  # Clients may omit the content type.
        assert client.post(INFER, content=content, headers=from_elsewhere).status_code == 415
        same_site = {**from_elsewhere, "Content-Type": "application/json"}
        assert client.post(INFER, content=content, headers=same_site).status_code == 200
