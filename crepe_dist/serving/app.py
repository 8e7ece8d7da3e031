"""ASGI application of the HTTP service, with its metrics for Prometheus and its access log."""

import asyncio
import sys
import time
import traceback
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from http import HTTPStatus
from typing import TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crepe_dist.errors import UserError, escape_controls
from crepe_dist.predicting.output_formats import json_record
from crepe_dist.predicting.prediction import REJECTED, Prediction
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.reports.explanation import serve_page
from crepe_dist.serving import requests
from crepe_dist.serving.batching import DynamicBatcher
from crepe_dist.serving.requests import HttpError, JsonResponse, JsonTextResponse, RequestLimitMiddleware
from crepe_dist.settings.options import ServiceOptions
from crepe_dist.version import __version__

PAGE, PREDICT, HEALTH, METRICS, DESCRIPTION = "/", "/predict", "/healthz", "/metrics", "/openapi.json"
EXAMPLE = 'send {"text": "…"} or {"texts": ["…", "…"]}; "title", "explain" (with "text") and "top" are optional'
# Upper bounds of the buckets of the histograms in the metrics.
LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)  # Seconds.
PROBABILITY_BUCKETS = tuple(number / 20 for number in range(1, 21))
BATCH_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # Texts.
Result = TypeVar("Result")


class ServiceMetrics:
    """Prometheus metrics of the service, in their own registry. The metrics count from the start of the service."""

    def __init__(self, checkpoint: str, kernels: str) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        build = Info("crepe_dist_build", "Version, checkpoint and kernels.", registry=registry)
        build.info({"version": __version__, "checkpoint": escape_controls(checkpoint), "kernels": kernels})
        self.requests = Counter("crepe_dist_requests", "Requests answered.", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "crepe_dist_request_seconds", "Latency of requests.", ["path"],
            buckets=LATENCY_BUCKETS, registry=registry,
        )  # fmt: skip
        self.in_flight = Gauge("crepe_dist_requests_in_flight", "Requests in progress.", registry=registry)
        self.texts = Counter("crepe_dist_texts", "Texts classified.", registry=registry)
        self.predictions = Counter("crepe_dist_predictions", "Texts by predicted class.", ["class"], registry=registry)
        self.probability = Histogram(
            "crepe_dist_probability",
            "Probability of the most probable class.",
            buckets=PROBABILITY_BUCKETS,
            registry=registry,
        )
        self.batch_texts = Histogram(
            "crepe_dist_batch_texts", "Texts in a batch.", buckets=BATCH_SIZE_BUCKETS, registry=registry
        )

    def count_predictions(self, predictions: Sequence[Prediction]) -> None:
        """Count the predictions of a request by label. Errors and rejections are counted under their own names."""
        self.texts.inc(len(predictions))
        for prediction in predictions:
            labels = prediction.labels
            if not prediction.error:
                self.probability.observe(prediction.ranking[0][1])
            if prediction.error:
                labels = (prediction.error,)
            elif labels is None:
                labels = (REJECTED if prediction.rejected else prediction.label,)
            for label in labels:
                self.predictions.labels(escape_controls(label)).inc()


class MetricsMiddleware:
    """Outermost ASGI middleware. It counts and times requests, and prints unexpected errors.

    Args:
        paths: Paths with their own counters. All other paths are counted as "other", because each counter uses memory,
            and clients can request any number of different paths.
        log: True to write one line per request to standard error. Neither these lines nor tracebacks contain texts of
            requests.
    """

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics, paths: Collection[str], log: bool) -> None:
        self.app = app
        self.metrics = metrics
        self.paths = frozenset(paths)
        self.log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"] if scope["path"] in self.paths else "other"
        status = 0  # The status stays 0 if the client disconnects before the response starts.

        async def send_and_record_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        start = time.perf_counter()
        try:
            with self.metrics.in_flight.track_inprogress():
                await self.app(scope, receive, send_and_record_status)
        except Exception as error:
            # The error message is not printed, because it may contain a text of the request.
            trace = "".join(traceback.format_tb(error.__traceback__))
            print(f"a request failed: {type(error).__name__}\n{trace}", file=sys.stderr, end="", flush=True)
        finally:
            seconds = time.perf_counter() - start
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(seconds)
            if self.log:
                print(f"{scope['method'][:9]} {path} {status} {seconds * 1000:.1f} ms", file=sys.stderr, flush=True)


def create_app(
    batcher: DynamicBatcher, model: Predictor, metrics: ServiceMetrics, options: ServiceOptions, *, log: bool = False
) -> ASGIApp:
    """Create the application with its middleware."""
    # FastAPI's documentation pages are disabled, because they load scripts from other sites.
    app = FastAPI(
        title="crepe_dist", version=__version__, docs_url=None, redoc_url=None, openapi_url=DESCRIPTION,
        redirect_slashes=False,
    )  # fmt: skip
    html, policy = serve_page(model, options)

    async def wait(future: Future[Result]) -> Result:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), options.timeout)
        except TimeoutError:
            remedy = "try again later, with fewer or shorter texts"
            raise HttpError(503, "the response timed out", "the service is overloaded", remedy, retry_after=1) from None

    async def classify(texts: list[str]) -> list[Prediction]:
        requests.check_size(texts, options)
        predictions = await wait(batcher.submit(texts))
        metrics.count_predictions(predictions)
        return predictions

    async def explain(text: str, top: int) -> Response:
        requests.check_size([text], options)
        explanation = await wait(batcher.explain(text))
        metrics.count_predictions([explanation.prediction])
        return JsonTextResponse(json_record(explanation.prediction, top, explanation))

    @app.post(PREDICT, summary="Classify one or several texts", openapi_extra=requests.describe_body())
    async def predict(request: Request) -> Response:
        requests.check_type(request.headers)
        parsed = requests.parse(await request.body(), EXAMPLE)
        texts = parsed.all_texts(model.composition)
        if parsed.explain:
            return await explain(texts[0], parsed.top)
        records = [json_record(prediction, parsed.top) for prediction in await classify(texts)]
        return JsonTextResponse(f'{{"predictions": [{", ".join(records)}]}}' if parsed.texts else records[0])

    @app.get(HEALTH, summary="Check that the service can predict")
    async def health() -> Response:
        if not batcher.is_working:
            raise HttpError(503, "the service is stopping")
        return JsonResponse({"status": "ready", "checkpoint": model.path.name})

    @app.get(METRICS, summary="Metrics for Prometheus", response_class=Response)
    async def show_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get(PAGE, include_in_schema=False)
    async def show_page() -> Response:
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    @app.exception_handler(UserError)
    async def refuse(request: Request, error: UserError) -> Response:
        http_error = error if isinstance(error, HttpError) else HttpError(500, error.what, error.why, error.remedy)
        return http_error.response()

    @app.exception_handler(HTTPException)
    async def refuse_path(request: Request, error: HTTPException) -> Response:
        phrase = HTTPStatus(error.status_code).phrase.lower()
        response = HttpError(error.status_code, phrase, remedy=f"{DESCRIPTION} lists the paths").response()
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        # After it has sent this response, Starlette raises the error again, and ``MetricsMiddleware`` prints it.
        return HttpError(500, "the service failed", remedy="try again").response()

    limited_app = RequestLimitMiddleware(app, options, PREDICT)
    return MetricsMiddleware(limited_app, metrics, (PAGE, PREDICT, HEALTH, METRICS, DESCRIPTION), log)
