"""ASGI application of the HTTP service."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from http import HTTPStatus
from typing import Callable, Union

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from crepe_dist.errors import UserError
from crepe_dist.predicting.answers import explained
from crepe_dist.predicting.model_summary import ModelSummary
from crepe_dist.predicting.prediction import Prediction
from crepe_dist.reports import classify_page
from crepe_dist.serving import open_inference, schemas
from crepe_dist.serving.batching import Batcher
from crepe_dist.serving.guard import Guard
from crepe_dist.serving.problems import Json, Problem
from crepe_dist.serving.prometheus import Metrics, Observed
from crepe_dist.settings.serving_options import ServiceOptions
from crepe_dist.version import __version__

PAGE, PREDICT, HEALTH, METRICS, DESCRIPTION = "/", "/predict", "/healthz", "/metrics", "/openapi.json"
MOST_EXPLAINED = 4  # explanations at a time
REFUSALS = (400, 403, 408, 413, 415, 422, 431, 500, 503)


def create_app(
    batcher: Batcher,
    model: ModelSummary,
    metrics: Metrics,
    options: ServiceOptions,
    examples: Sequence[str] = (),
    *,
    log: bool = False,
) -> tuple[ASGIApp, Callable[[], None]]:
    """Create the application with its middleware, and a function that makes it refuse requests from then on."""
    # FastAPI's documentation pages load scripts from other sites.
    app = FastAPI(
        title="crepe_dist", version=__version__, docs_url=None, redoc_url=None, openapi_url=DESCRIPTION,
        redirect_slashes=False,
    )  # fmt: skip
    html, policy = classify_page.render(model, options, examples)

    explaining = 0

    async def classify(texts: list[str]) -> list[Prediction]:
        try:
            predictions = await asyncio.wait_for(asyncio.wrap_future(batcher.submit(texts)), options.timeout)
        except asyncio.TimeoutError:
            remedy = "try again later, with fewer texts at a time"
            raise Problem(503, "the prediction timed out", "the service is overloaded", remedy, retry_after=1) from None
        metrics.answered(texts, predictions)
        return predictions

    def check_ready() -> None:
        if not batcher.is_working:
            raise Problem(503, "the service is stopping")

    async def explain(text: str, top: int) -> Response:
        nonlocal explaining
        if explaining >= MOST_EXPLAINED:
            why = f"{MOST_EXPLAINED} are being computed"
            raise Problem(503, "too many explanations at a time", why, "try again in a second", retry_after=1)
        explaining += 1
        try:
            explanation = await asyncio.wait_for(asyncio.wrap_future(batcher.explain(text)), options.timeout)
        except asyncio.TimeoutError:
            why = "it takes one prediction per character and per word"
            raise Problem(503, "the explanation timed out", why, "shorten the text", retry_after=1) from None
        finally:
            explaining -= 1
        metrics.answered([text], [explanation.prediction])
        record = explanation.prediction.record(top)
        return Json(record if explanation.prediction.problem else {**record, "explanation": explained(explanation)})

    @app.post(
        PREDICT,
        summary="Classify one or several texts",
        response_model=Union[schemas.Answer, schemas.Answers],
        responses={status: {"model": schemas.Refusal} for status in REFUSALS},
        openapi_extra=schemas.request_schema(),
    )
    async def predict(request: Request) -> Response:
        schemas.check_type(request.headers)
        texts, question = schemas.read(await request.body(), options)
        if question.explain:
            return await explain(texts[0], question.top)
        answers = [prediction.record(question.top) for prediction in await classify(texts)]
        return Json(answers[0] if question.texts is None else {"predictions": answers})

    @app.get(HEALTH, summary="Check that the service can predict", responses={503: {"model": schemas.Refusal}})
    async def health() -> Response:
        check_ready()
        return Json({"status": "ready", "checkpoint": model.checkpoint})

    @app.get(METRICS, summary="Metrics for Prometheus", response_class=Response)
    async def figures() -> Response:
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    @app.get(PAGE, include_in_schema=False)
    async def show_page() -> Response:
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    of_models = f"{open_inference.PROTOCOL}/models"
    open_inference.add_routes(app, model, options, classify, check_ready)

    @app.exception_handler(Problem)
    async def refuse(request: Request, problem: Problem) -> Response:
        return problem.response(request.url.path)

    @app.exception_handler(UserError)
    async def fail_for_a_reason(request: Request, error: UserError) -> Response:
        return Problem(500, error.what, error.why, error.remedy).response(request.url.path)

    @app.exception_handler(HTTPException)
    async def refuse_path(request: Request, error: HTTPException) -> Response:
        remedy = f"{DESCRIPTION} lists the paths"
        if request.url.path.startswith(of_models):
            remedy = f"the only model is {options.model_name!r}, without versions; {remedy}"
        phrase = HTTPStatus(error.status_code).phrase.lower()
        response = Problem(error.status_code, phrase, remedy=remedy).response(request.url.path)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        # Starlette raises the error again afterwards, for ``Observed`` to report.
        return Problem(500, "the service failed", remedy="try again").response(request.url.path)

    of_protocol = open_inference.paths(options.model_name)
    guard = Guard(app, options, (PREDICT, of_protocol[-1]), metrics.refusals.inc)
    paths = (PAGE, PREDICT, HEALTH, METRICS, DESCRIPTION, *of_protocol)
    return Observed(guard, metrics, paths, log), guard.stop
