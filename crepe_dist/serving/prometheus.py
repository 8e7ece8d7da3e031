"""What the service counts for Prometheus, and its line a request."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Collection, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crepe_dist.errors import visible
from crepe_dist.predicting.prediction import Prediction
from crepe_dist.serving.problems import Problem
from crepe_dist.version import __version__

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counts since the start, in a registry of their own."""

    def __init__(self, checkpoint: str, kernels: str) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        build = Info("crepe_dist_build", "What is served.", registry=registry)
        build.info({"version": __version__, "checkpoint": visible(checkpoint), "kernels": kernels})
        self.requests = Counter("crepe_dist_requests", "Requests answered.", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "crepe_dist_request_seconds", "From a request's head to its answer.", ["path"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.in_flight = Gauge("crepe_dist_requests_in_flight", "Requests in hand.", registry=registry)
        self.refusals = Counter("crepe_dist_queue_refusals", "Requests that found no room.", registry=registry)
        self.texts = Counter("crepe_dist_texts", "Texts classified.", registry=registry)
        self.characters = Counter("crepe_dist_characters", "Characters of these texts.", registry=registry)
        self.predictions = Counter("crepe_dist_predictions", "Texts by predicted class.", ["class"], registry=registry)
        self.together = Histogram(
            "crepe_dist_batch_texts", "Texts that the network was given together.", buckets=TEXTS, registry=registry
        )

    def answered(self, texts: Sequence[str], predictions: Sequence[Prediction]) -> None:
        self.texts.inc(len(texts))
        self.characters.inc(sum(map(len, texts)))
        for each in predictions:
            self.predictions.labels(visible(each.label)).inc()

    def exposition(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)


class Observed:
    """The outermost ASGI middleware: counts and times requests, and answers for what nobody expected.

    Args:
        paths: those that have a name of their own; a client could make up any number of others.
        log: whether to write a line a request to standard error. Neither line nor traceback holds anything of a text.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str], log: bool) -> None:
        self.app = app
        self.metrics = metrics
        self.paths = frozenset(paths)
        self.log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"] if scope["path"] in self.paths else "other"
        status = 0  # of an answer that did not begin: the client has left

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        begun = time.perf_counter()
        try:
            with self.metrics.in_flight.track_inprogress():
                await self.app(scope, receive, send_noted)
        except Exception as error:
            _tell(error)
            if not status:
                await Problem(500, "the service failed", remedy="ask again").response()(scope, receive, send_noted)
        finally:
            seconds = time.perf_counter() - begun
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(seconds)
            if self.log:
                method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "OPTIONS") else "other"
                print(f"{method} {path} {status} {seconds * 1000:.1f} ms", file=sys.stderr, flush=True)


def _tell(error: Any) -> None:
    """Where it happened. What the error says is left out, since it may quote a text."""
    places = "".join(traceback.format_tb(error.__traceback__))
    print(f"a request failed: {type(error).__name__}\n{places}", file=sys.stderr, end="", flush=True)
