"""The service: answers, refusals, a real process from start to end, and the page in a browser."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from crepe_dist.commands.serve import Serve
from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.data.text_preprocessing import TextPreprocessor
from crepe_dist.distributed.launch import LauncherEnv
from crepe_dist.errors import UserError
from crepe_dist.formatting import percent
from crepe_dist.model.backend import Backend
from crepe_dist.predicting.loading import load
from crepe_dist.predicting.occlusion import Explanation, Word
from crepe_dist.predicting.output_formats import explanation_to_dict, json_record
from crepe_dist.predicting.prediction import Prediction
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.reports import explanation as explanations
from crepe_dist.serving import batching
from crepe_dist.serving.app import ServiceMetrics, create_app
from crepe_dist.serving.batching import DynamicBatcher
from crepe_dist.serving.requests import HttpError, PredictRequest
from crepe_dist.settings.options import ServiceOptions
from tests.conftest import FEATURE_LEN, QUICK, command, needs_kernels, train
from tests.exporting.test_export import ENCODINGS, make
from tests.helpers.browsing import SECONDS, Browsing, needs_browser

COLUMNS = TextPreprocessor(("subject", "body"))
JSON = {"Content-Type": "application/json"}
CLASSES = ["<i>plain</i>", "naïve", "quoted \"'&", "end"]
ENGINE: Any = SimpleNamespace(backend=Backend("float32", None, "", "numpy"))
ABOUT = {"data": {"name": "some data"}, "test_accuracy": 0.5}
FACTS = Predictor(ENGINE, CharEncoder(feature_len=FEATURE_LEN), CLASSES, path=Path("some.params"), metadata=ABOUT)


def by_length(texts):
    """Stand-in of a network. The class is the length modulo 4, so that each answer identifies its text."""
    ranked = [CLASSES[(len(text) + shift) % 4] for text in texts for shift in range(4)]
    rankings = [tuple(zip(ranked[first : first + 4], (0.7, 0.2, 0.1, 0.0))) for first in range(0, len(ranked), 4)]
    return [Prediction(*ranking[0], ranking, 1) for ranking in rankings]


def by_letter(text):
    words = (Word(text, 0, len(text), 1.0),)
    return Explanation(text, CLASSES[0], by_length([text])[0], range(0), (0.5,) * len(text), words)


@contextmanager
def service(predict=by_length, explain=by_letter, several=False, **limits):
    metrics = ServiceMetrics(FACTS.path.name, FACTS.kernels)
    batcher = DynamicBatcher(predict, explain, metrics.batch_texts.observe)
    app = create_app(
        batcher, replace(FACTS, thresholds=np.zeros(4) if several else None), metrics, ServiceOptions(**limits)
    )
    client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
    client.batcher = batcher
    try:
        yield client
    finally:
        batcher.close()


@pytest.fixture(scope="module")
def client():
    with service(max_chars=50, max_batch=3, max_body=1000) as client:
        yield client


@pytest.fixture(scope="module")
def run_dir(data, tmp_path_factory):
    """Folder of a trained run. Its page shows the name of the run and texts of its data."""
    folder = tmp_path_factory.mktemp("served") / "run"
    train("--data", data, "--run-dir", folder, *QUICK)
    return folder


def value(exposition, name, **labels):
    families = text_string_to_metric_families(exposition)
    found = [each for family in families for each in family.samples if each.name == name]
    return sum(each.value for each in found if labels.items() <= each.labels.items())


class TestAnswers:
    def test_texts_in_order_and_titles(self, client):
        answer = client.post("/predict", json={"title": "Good", "text": "album", "top": 2})
        assert answer.text == json_record(by_length(["Good | album"])[0], 2)
        answer = client.post("/predict", json={"texts": ["a", "", "abc"]}).json()
        assert [each["class"] for each in answer["predictions"]] == [CLASSES[1], CLASSES[0], CLASSES[3]]

    def test_as_the_predictor_says(self, tmp_path):
        predictor = load(make(tmp_path, "crepe", ENCODINGS["paper"]))
        texts = ["qua", "zig zag " * 30, ""]
        with service(predictor.predict, predictor.explain) as client:
            *classified, empty = client.post("/predict", json={"texts": texts}).json()["predictions"]
            assert "explanation" not in client.post("/predict", json={"text": " ", "explain": True}).json()
            text = "a quiet zig é qua"
            answer = client.post("/predict", json={"text": text, "explain": True, "top": 1}).json()
            assert value(client.get("/metrics").text, "crepe_dist_texts_total") == 5
        assert empty == {"class": None, "probability": None, "top": [], "problem": "empty text"}
        for each, expected in zip(classified, predictor.predict(texts)):
            assert each["class"] == expected.label
            assert each["characters_cut"] == expected.characters_truncated
            assert each["probability"] == pytest.approx(expected.probability, abs=1e-3)
        explanation = predictor.explain(text)
        assert (answer["class"], len(answer["top"])) == (explanation.label, 1)
        found, other = answer["explanation"], explanation_to_dict(explanation)
        assert {**found, "words": [], "characters": []} == {**other, "words": [], "characters": []}
        assert found["characters"] == pytest.approx(other["characters"], abs=0.02)
        assert [each["text"] for each in found["words"]] == text.split()

    def test_text_columns_are_joined_as_in_training(self):
        for given in ({"body": "b", "subject": "s"}, {"title": "s", "text": "b"}):
            assert PredictRequest.model_validate(given).all_texts(COLUMNS) == ["s | b"]
        for given in ({"head": "s"}, {"text": "b", "subject": "s"}):
            with pytest.raises(HttpError):
                PredictRequest.model_validate(given).all_texts(COLUMNS)

    def test_it_describes_itself_and_loads_nothing_from_elsewhere(self, client):
        described = client.get("/openapi.json").json()
        body = described["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert set(body["properties"]) == {"text", "title", "texts", "top", "explain"}
        page = client.get("/")
        assert "<i>plain" not in page.text
        assert not re.search(r"(src|href)=.?https?:|@import|url\(", page.text)
        assert "unsafe" not in page.headers["content-security-policy"]
        for answer in (page, client.get("/docs"), client.post("/predict")):
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]

    def test_metrics(self):
        with service(queue=1) as client:
            client.post("/predict", json={"texts": ["abcd", "abc"]})
            client.post("/predict", content=b"{}")
            client.get("/made-up-by-somebody")
            figures = client.get("/metrics").text
        assert value(figures, "crepe_dist_requests_total", path="/predict", status="200") == 1
        assert value(figures, "crepe_dist_requests_total", path="/predict", status="415") == 1
        assert value(figures, "crepe_dist_requests_total", path="other", status="404") == 1
        assert "made-up" not in figures
        assert value(figures, "crepe_dist_texts_total") == 2
        assert value(figures, "crepe_dist_predictions_total", **{"class": CLASSES[0]}) == 1
        assert (
            value(figures, "crepe_dist_probability_bucket", le="0.7")
            > value(figures, "crepe_dist_probability_bucket", le="0.65")
            == 0
        )
        assert value(figures, "crepe_dist_batch_texts_sum") == 2
        assert value(figures, "crepe_dist_requests_in_flight") == 1  # The request for the metrics itself.
        assert value(figures, "crepe_dist_build_info", checkpoint="some.params") == 1


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "status", "why"),
        [
            (b"", 400, "Invalid JSON"),
            (b'{"text": "\\ud800"}', 400, "Invalid JSON"),
            (b'{"text": "a", "texts": ["b"]}', 422, "either text or texts"),
            (b'{"texts": ["a", 1]}', 422, "texts.1"),
            (b'{"text": "a", "t\\u001bop": 1}', 422, "t\\x1bop"),
            (b'{"texts": ["a", "b", "c", "d"]}', 413, "the limit is 3 texts"),
            (b'{"title": "a", "text": "' + b"a" * 47 + b'"}', 413, "the limit is 50 characters, including the title"),
            (b'{"text": "' + b"a" * 1000 + b'"}', 413, "1,000 bytes"),
        ],
        ids=lambda given: str(given[:40]) if isinstance(given, bytes) else None,
    )
    def test_bodies(self, client, body, status, why):
        answer = client.post("/predict", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == status
        error = answer.json()["error"]
        assert why in error.get("why", "")

    def test_types_that_a_page_of_another_site_could_send(self, client):
        answer = client.post("/predict", content=b'{"text": "a"}', headers={"Content-Type": "text/plain"})
        assert answer.status_code == 415
        preflight = client.options("/predict", headers={"Origin": "http://evil.example"})
        assert not any(name.startswith("access-control") for name in preflight.headers)

    @pytest.mark.parametrize(
        ("host", "status"),
        [
            ("127.0.0.1:8080", 200), ("LOCALHOST", 200), ("[::1]:80", 200), ("My.Name:1", 200),
            ("127.0.0.1.evil.example:8080", 403), ("", 403), ("[::1%evil.com]", 403),
        ],
    )  # fmt: skip
    def test_names_that_somebody_pointed_here(self, host, status):
        with service(names=frozenset({"my.name"})) as client:
            assert client.get("/healthz", headers={"Host": host}).status_code == status

    def test_more_than_there_is_room_for(self):
        began, go_on = threading.Event(), threading.Event()

        def slow(texts):
            began.set()
            assert go_on.wait(SECONDS)
            return by_length(texts)

        with service(slow, queue=1) as client:
            first = threading.Thread(target=lambda: answers.append(client.post("/predict", json={"text": "a"})))
            answers: list = []
            first.start()
            assert began.wait(SECONDS)
            refused = client.post("/predict", json={"text": "b"})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert client.get("/healthz").status_code == 200
            go_on.set()
            first.join()
            assert answers[0].status_code == 200
            # The first request no longer occupies the queue.
            assert client.post("/predict", json={"text": "b"}).status_code == 200

    def test_many_wrong_values_cost_little(self):
        with service() as client:
            begun = time.process_time()
            content = b'{"texts": [' + b"[]," * 300_000 + b"[]]}"
            assert client.post("/predict", content=content, headers=JSON).json()["error"]["why"].startswith("texts.0")
            assert client.post("/predict", json={str(name): [] for name in range(10_000)}).status_code == 422
            assert time.process_time() - begun < 2

    def test_a_network_that_takes_too_long_or_fails(self, capfd):
        def predict(texts):
            if "secret" in texts[0]:
                raise ValueError(texts[0])
            time.sleep(0.5)
            return by_length(texts)

        with service(predict, lambda text: time.sleep(0.5), timeout=0.1) as client:
            for question in ({"text": "a"}, {"text": "a", "explain": True}):
                late = client.post("/predict", json=question)
                assert (late.status_code, late.headers["retry-after"]) == (503, "1")
        with service(predict) as client:
            failed = client.post("/predict", json={"text": "my secret"})
            assert (failed.status_code, failed.json()["error"]["what"]) == (500, "the service failed")
            assert failed.headers["x-content-type-options"] == "nosniff"
            client.batcher.close()
            assert client.get("/healthz").status_code == 503
        said = capfd.readouterr().err
        assert "ValueError" in said
        assert "secret" not in said.replace('if "secret" in', "")


class TestBatcher:
    def test_what_waits_goes_together_and_each_gets_its_own(self, monkeypatch):
        sizes: list[int] = []
        began, go_on = threading.Event(), threading.Event()

        def predict(texts):
            began.set()
            assert go_on.wait(SECONDS)
            return by_length(texts)

        monkeypatch.setattr(batching, "BATCH_TEXTS", 4)
        batcher = DynamicBatcher(predict, by_letter, sizes.append)
        first = batcher.submit(["x"])
        assert began.wait(SECONDS)
        waiting = [batcher.submit(["a" * n] * copies) for n, copies in ((1, 1), (2, 2), (3, 1), (4, 9), (5, 1), (6, 1))]
        assert waiting[4].cancel()
        go_on.set()
        batcher.close()  # Answers all waiting requests first.
        assert sizes == [1, 4, 9, 1]
        assert first.result() == by_length(["x"])
        assert waiting[3].result() == by_length(["aaaa"] * 9)
        assert waiting[5].result() == by_length(["a" * 6])

    def test_an_explanation_keeps_no_prediction_waiting(self):
        go_on = threading.Event()

        def explain(text):
            assert go_on.wait(SECONDS)
            return by_letter(text)

        batcher = DynamicBatcher(by_length, explain)
        first, cancelled = batcher.explain("first"), batcher.explain("cancelled")
        assert batcher.submit(["x"]).result() == by_length(["x"])
        assert cancelled.cancel()
        go_on.set()
        batcher.close()
        assert first.result() == by_letter("first")


@needs_kernels
def test_mistakes(run_dir, tmp_path, complaint, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)  # The handler of the test process must stay.
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for flags, message in (
            (["--port", taken.getsockname()[1]], "Address already in use"),
            (["--port", 0, "--host", "192.0.2.1"], "Cannot assign requested address"),
        ):
            assert message in complaint("serve", run_dir, *flags, cwd=tmp_path)
    monkeypatch.setattr("crepe_dist.distributed.launch.read_launcher_env", lambda: LauncherEnv("horovodrun", 0, 2))
    with pytest.raises(UserError, match="started in 2 processes"):
        Serve().run()


class Process:
    """Process of the command, on the given port or on a free port (0)."""

    def __init__(self, run_dir: Path, port: int = 0) -> None:
        flags = ("--port", port, "--timeout", 2, "--max-chars", 1000, "--log-requests")
        arguments = command("serve", run_dir, *flags)
        self.errors = run_dir / "stderr"
        with self.errors.open("a") as errors:
            self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert self.process.stdout is not None
        said = [self.process.stdout.readline(), self.process.stdout.readline()]
        assert said[1].startswith("listening on http://127.0.0.1:"), (said, self.errors.read_text())
        self.url = said[1].split()[-1]
        self.port = int(self.url.rpartition(":")[2])

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(SECONDS)
        finally:
            self.process.kill()
            self.process.communicate()


@pytest.fixture(scope="module")
def started(run_dir):
    """List of one element: the current process of the service. A test may replace it."""
    processes = [Process(run_dir)]
    yield processes
    processes[0].stop()


@needs_kernels
class TestProcess:
    def test_it_answers(self, started):
        url = started[0].url
        for path in ("/healthz", "/", "/metrics", "/openapi.json"):
            whole, head = (requests.request(name, url + path, timeout=SECONDS) for name in ("GET", "HEAD"))
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-type"] == whole.headers["content-type"]
        answer = requests.post(f"{url}/predict", json={"text": "zig"}, timeout=SECONDS)
        assert answer.json()["class"] in ("first", "second", "third")
        too_long = requests.post(f"{url}/predict", data=iter([b"x" * 65536] * 40), timeout=SECONDS)
        assert too_long.status_code == 413

    def test_clients_that_take_their_time_are_let_go(self, started):
        place = ("127.0.0.1", started[0].port)
        body = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
        begun = time.monotonic()
        with ExitStack() as stack:
            silent, head, slow = (stack.enter_context(socket.create_connection(place, SECONDS)) for _ in range(3))
            head.sendall(b"GET / HTTP/1.1\r\nHo")
            slow.sendall(body)
            assert slow.recv(100).startswith(b"HTTP/1.1 408 ")
            assert silent.recv(100) == head.recv(100) == b""
        assert time.monotonic() - begun < SECONDS / 2

    def test_a_client_that_does_not_read_is_let_go(self, started):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", started[0].port))
            client.settimeout(SECONDS)
            with contextlib.suppress(ConnectionError):
                while True:  # Until the service stops reading as well.
                    client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000)


@pytest.fixture(scope="module")
def browser(browser, started):
    browser.get(started[0].url)
    return browser


@needs_kernels
@needs_browser
class TestPage(Browsing):
    """Tests in order on one page that stays open."""

    def test_what_is_typed_is_classified(self, browser, started, run_dir):
        assert self.one(browser, "h1").text == "prepared"
        assert percent(load(run_dir).metadata["test_accuracy"]) in self.one(browser, ".lede").text
        assert self.bars(browser) == [0, 0, 0]
        text = "a quiet zig and a loud qua"
        self.write(browser, text)
        expected = requests.post(f"{started[0].url}/predict", json={"text": text}, timeout=SECONDS).json()
        chosen = [each["probability"] for each in sorted(expected["top"], key=lambda each: each["class"])]
        self.until(browser, lambda: self.bars(browser) == pytest.approx(chosen, abs=0.005))
        assert expected["class"] in self.one(browser, "#verdict").text
        assert self.one(browser, "#bars .first bdi").text == expected["class"]
        assert self.one(browser, "#count").text == "26 of at most 123 characters that the network reads"

    def test_the_characters_that_decided_are_marked(self, browser, run_dir):
        text = "zig and qua, for a week"
        self.write(browser, text)
        self.until(browser, lambda: self.one(browser, "#marked").text == text)
        explanation = load(run_dir).explain(text)
        assert self.one(browser, "#deciding bdi").text == explanation.label
        marked = browser.execute_script(
            "return [...document.querySelectorAll('#marked span')].map((each) => [each.textContent, each.className])"
        )
        expected = [
            (text, f"{'for' if level > 0 else 'against'}{abs(level)}" if level else "")
            for text, level in explanations.runs(explanation)
        ]
        levels = [[name for text, name in found for _ in text] for found in (marked, expected)]
        # Rounding changes the level of some characters.
        assert sum(one == other for one, other in zip(*levels)) > 0.9 * len(text)
        self.write(browser, "a quiet zig and a loud qua")
        self.until(browser, lambda: self.one(browser, "#marked").text == "a quiet zig and a loud qua")

    def test_what_the_network_does_not_read(self, browser):
        self.write(browser, "a" * 61 + "é" * 20 + "z" * 61)
        self.until(browser, lambda: self.one(browser, "#edge").is_displayed())
        expected = "142 characters: the network reads the first 61 and the last 61, but not the 20 between"
        assert self.one(browser, "#count").text == expected
        assert self.one(browser, "#edge .unread").text == "é" * 20
        assert self.one(browser, "#edge").text == f"…{'a' * 60}{'é' * 20}{'z' * 60}…"
        self.until(browser, lambda: self.one(browser, "#answer").get_attribute("aria-busy") == "false")
        assert self.one(browser, "#count").text == expected  # as the service counts them


@needs_kernels
def test_a_stop_waits_for_what_is_in_hand(started):
    process = started[0]
    with socket.create_connection(("127.0.0.1", process.port), timeout=SECONDS) as client:
        text = json.dumps({"text": "private words"}).encode()
        kind = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(text)
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
        client.sendall(head + kind + b"\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 100 ")
        process.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        client.sendall(text)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert process.process.wait(SECONDS) == 0
    said = process.errors.read_text()
    assert "POST /predict 200 " in said
    assert said.endswith("stopped: SIGTERM\n")
    assert "Traceback" not in said
    assert "private" not in said


@needs_kernels
@needs_browser
class TestPageLater(Browsing):
    """The same page. The previous test has stopped its service."""

    def test_the_service_stops_and_comes_back(self, browser, started, run_dir):
        if started[0].process.poll() is None:
            started[0].stop()
        self.write(browser, "is anybody there")
        problem = self.one(browser, "#problem")
        self.until(browser, lambda: "does not answer" in problem.text)
        started[0] = Process(run_dir, started[0].port)  # The port is free immediately.
        self.until(browser, lambda: not problem.is_displayed())
        self.until(browser, lambda: sum(self.bars(browser)) == pytest.approx(1, abs=0.01))

    def test_its_own_policy_lets_all_of_it_work(self, browser):
        said = [each["message"] for each in browser.get_log("browser")]
        assert not [each for each in said if "ERR_CONNECTION_REFUSED" not in each]
