"""Metrics of the HTTP service for Prometheus, and its access log."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Collection, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crepe_dist.errors import visible
from crepe_dist.predicting.prediction import NONE, Prediction
from crepe_dist.version import __version__

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters since the start of the service, in a registry of their own."""

    def __init__(self, checkpoint: str, kernels: str) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        build = Info("crepe_dist_build", "Version, checkpoint and kernels.", registry=registry)
        build.info({"version": __version__, "checkpoint": visible(checkpoint), "kernels": kernels})
        self.requests = Counter("crepe_dist_requests", "Requests answered.", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "crepe_dist_request_seconds", "Latency of requests.", ["path"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.in_flight = Gauge("crepe_dist_requests_in_flight", "Requests in progress.", registry=registry)
        self.refusals = Counter("crepe_dist_queue_refusals", "Requests refused: queue full.", registry=registry)
        self.texts = Counter("crepe_dist_texts", "Texts classified.", registry=registry)
        self.characters = Counter("crepe_dist_characters", "Characters of the classified texts.", registry=registry)
        self.predictions = Counter("crepe_dist_predictions", "Texts by predicted class.", ["class"], registry=registry)
        self.batch_texts = Histogram("crepe_dist_batch_texts", "Texts in a batch.", buckets=TEXTS, registry=registry)

    def answered(self, texts: Sequence[str], predictions: Sequence[Prediction]) -> None:
        """Count the texts of an answered request."""
        self.texts.inc(len(texts))
        self.characters.inc(sum(map(len, texts)))
        for prediction in predictions:
            labels = prediction.labels
            if prediction.problem:
                labels = (prediction.problem,)
            elif labels is None:
                labels = (NONE if prediction.rejected else prediction.label,)
            for label in labels:
                self.predictions.labels(visible(label)).inc()

    def exposition(self) -> bytes:
        """Render the metrics in Prometheus's text format."""
        return generate_latest(self._registry)


class Observed:
    """Outermost ASGI middleware: counts and times requests, and reports unexpected errors.

    Args:
        paths: paths that are counted by name. All others count as one, because clients can invent any number of them.
        log: whether to write one line per request to standard error. Lines and tracebacks contain no text of a request.
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
        status = 0  # stays 0 if the client disconnects before the answer

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        start = time.perf_counter()
        try:
            with self.metrics.in_flight.track_inprogress():
                await self.app(scope, receive, send_noted)
        except Exception as error:  # its message may quote a text
            trace = "".join(traceback.format_tb(error.__traceback__))
            print(f"a request failed: {type(error).__name__}\n{trace}", file=sys.stderr, end="", flush=True)
        finally:
            seconds = time.perf_counter() - start
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(seconds)
            if self.log:
                print(f"{scope['method'][:9]} {path} {status} {seconds * 1000:.1f} ms", file=sys.stderr, flush=True)
