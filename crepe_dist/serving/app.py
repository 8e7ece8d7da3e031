"""ASGI application of the HTTP service."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from http import HTTPStatus
from typing import TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from crepe_dist.errors import UserError
from crepe_dist.predicting.answers import explained
from crepe_dist.predicting.prediction import ModelSummary, Prediction
from crepe_dist.reports.explanation import serve_page
from crepe_dist.serving import open_inference, schemas
from crepe_dist.serving.batching import Batcher
from crepe_dist.serving.guard import Guard
from crepe_dist.serving.metrics import Metrics, Observed
from crepe_dist.serving.schemas import Json, Problem
from crepe_dist.settings.options import ServiceOptions
from crepe_dist.version import __version__

PAGE, PREDICT, HEALTH, METRICS, DESCRIPTION = "/", "/predict", "/healthz", "/metrics", "/openapi.json"
EXAMPLE = 'send {"text": "…"} or {"texts": ["…", "…"]}; "title" (with "text") and "top" are optional'
Result = TypeVar("Result")


def create_app(
    batcher: Batcher,
    model: ModelSummary,
    metrics: Metrics,
    options: ServiceOptions,
    examples: Sequence[str] = (),
    *,
    log: bool = False,
) -> ASGIApp:
    """Create the application with its middleware."""
    # FastAPI's documentation pages load scripts from other sites.
    app = FastAPI(
        title="crepe_dist", version=__version__, docs_url=None, redoc_url=None, openapi_url=DESCRIPTION,
        redirect_slashes=False,
    )  # fmt: skip
    html, policy = serve_page(model, options, examples)

    async def wait(answer: Future[Result]) -> Result:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(answer), options.timeout)
        except asyncio.TimeoutError:
            remedy = "try again later, with fewer or shorter texts"
            raise Problem(503, "the answer timed out", "the service is overloaded", remedy, retry_after=1) from None

    async def classify(texts: list[str]) -> list[Prediction]:
        schemas.check_size(texts, options)
        predictions = await wait(batcher.submit(texts))
        metrics.answered(texts, predictions)
        return predictions

    def check_ready() -> None:
        if not batcher.is_working:
            raise Problem(503, "the service is stopping")

    async def explain(text: str, top: int) -> Response:
        schemas.check_size([text], options)
        explanation = await wait(batcher.explain(text))
        metrics.answered([text], [explanation.prediction])
        record = explanation.prediction.record(top)
        return Json(record if explanation.prediction.problem else {**record, "explanation": explained(explanation)})

    @app.post(PREDICT, summary="Classify one or several texts", openapi_extra=schemas.described(schemas.Question))
    async def predict(request: Request) -> Response:
        schemas.check_type(request.headers)
        question = schemas.parse(schemas.Question, await request.body(), EXAMPLE)
        texts = question.all_texts()
        if question.explain:
            return await explain(texts[0], question.top)
        answers = [prediction.record(question.top) for prediction in await classify(texts)]
        return Json({"predictions": answers} if question.texts else answers[0])

    @app.get(HEALTH, summary="Check that the service can predict")
    async def health() -> Response:
        check_ready()
        return Json({"status": "ready", "checkpoint": model.checkpoint})

    @app.get(METRICS, summary="Metrics for Prometheus", response_class=Response)
    async def figures() -> Response:
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    @app.get(PAGE, include_in_schema=False)
    async def show_page() -> Response:
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    open_inference.add_routes(app, model, options.model_name, classify, check_ready)

    @app.exception_handler(UserError)
    async def refuse(request: Request, error: UserError) -> Response:
        problem = error if isinstance(error, Problem) else Problem(500, error.what, error.why, error.remedy)
        return problem.response(request.url.path)

    @app.exception_handler(RequestValidationError)
    async def refuse_header(request: Request, error: RequestValidationError) -> Response:
        return Problem(422, "a header is not as it should be", error.errors()[0]["msg"]).response(request.url.path)

    @app.exception_handler(HTTPException)
    async def refuse_path(request: Request, error: HTTPException) -> Response:
        phrase = HTTPStatus(error.status_code).phrase.lower()
        response = Problem(error.status_code, phrase, remedy=f"{DESCRIPTION} lists the paths").response(
            request.url.path
        )
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        # Starlette raises the error again afterwards, for ``Observed`` to report.
        return Problem(500, "the service failed", remedy="try again").response(request.url.path)

    of_protocol = open_inference.paths(options.model_name)
    guard = Guard(app, options, (PREDICT, of_protocol[-1]), metrics.refusals.inc)
    return Observed(guard, metrics, (PAGE, PREDICT, HEALTH, METRICS, DESCRIPTION, *of_protocol), log)
