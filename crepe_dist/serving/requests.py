"""Schemas of HTTP requests, error responses in JSON, and limits on host names, request sizes, times and the queue."""

import asyncio
import ipaddress
import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, model_validator
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crepe_dist.data.text_preprocessing import (
    SEPARATOR,
    TextPreprocessor,
    join_columns,
)
from crepe_dist.errors import UserError, escape_controls
from crepe_dist.formatting import join_words
from crepe_dist.settings.options import ServiceOptions

DEFAULT_TOP = 5  # Default number of classes in a prediction.
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class PredictRequest(BaseModel):
    """Request to classify one or more texts."""

    # Extra keys must be names of text columns of the training data. ``all_texts`` rejects other keys.
    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, str | None]

    text: str | None = Field(None, description="text to classify")
    title: str | None = Field(None, description="title of the text, joined as in training: title | text")
    texts: Annotated[list[str], FailFast(), Field(description="texts to classify, instead of text")] = []
    explain: bool = Field(
        False, description="explain the prediction (with text only): scores of the characters and words"
    )
    top: int = Field(DEFAULT_TOP, ge=1, description="number of classes in each prediction, the most probable first")

    @model_validator(mode="after")
    def _check_source(self) -> "PredictRequest":
        text_keys = [name for name in ("text", "title") if getattr(self, name) is not None]
        names = [*text_keys, *(self.model_extra or ())]
        if "text" in text_keys and self.texts:
            raise ValueError("give either text or texts")
        if self.texts and (names or self.explain):
            raise ValueError("title, explain and names of columns need a single text")
        if not self.texts and not set(names) - {"title"}:
            raise ValueError("give either text or texts")
        return self

    def all_texts(self, composition: TextPreprocessor) -> list[str]:
        """Return the texts to classify, joined with the title.

        If the request contains the text columns by name, they are joined in the same order as in the training data.

        Raises:
            HttpError: The model has no such column, or the text is given in two ways.
        """
        if self.texts:
            return self.texts
        text_keys = {name: text for name, text in (("title", self.title), ("text", self.text)) if text is not None}
        values = {name: value or "" for name, value in (self.model_extra or {}).items()}
        known = list(composition.columns or ("text",))
        for name in values:
            if name not in known:
                why = f"the model reads no column {name!r:.60}"
                raise HttpError(422, "the request has an unknown column", why, f"the columns are {join_words(known)}")
        parts = {**text_keys, **values}
        if parts.keys() <= set(composition.columns):
            joined = join_columns([parts.get(name, "") for name in composition.columns])
        elif parts.keys() == text_keys.keys():
            joined = join_columns([self.title or "", self.text or ""])
        else:
            why = f"the model was trained on {SEPARATOR.join(composition.columns)}"
            raise HttpError(
                422, "the request names its text in two ways", why, "give text, or the columns by their names"
            )
        return [joined]


class JsonTextResponse(Response):
    """Response whose content is an already encoded JSON string."""

    media_type = "application/json"


class JsonResponse(JsonTextResponse):
    """JSON response in UTF-8. Lone surrogates, which UTF-8 cannot encode, are escaped."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")


class HttpError(UserError):
    """Error that is sent to the client.

    Args:
        retry_after: Number of seconds that the client should wait before it sends the request again; 0 if this number
            is unknown.
        closes: True to close the connection. This is necessary if the request was not read completely.
    """

    def __init__(
        self, status: int, what: str, why: str = "", remedy: str = "", *, retry_after: int = 0, closes: bool = False
    ) -> None:
        super().__init__(what, why, remedy)
        self.status = status
        self.headers = {"Retry-After": str(retry_after)} if retry_after else {}
        if closes:
            self.headers["Connection"] = "close"

    def response(self) -> Response:
        """Return the HTTP response."""
        parts = {"what": self.what, "why": self.why, "do": self.remedy}
        parts = {key: value for key, value in parts.items() if value}
        return JsonResponse({"error": parts}, self.status, self.headers)


def parse(body: bytes, remedy: str) -> PredictRequest:
    """Parse the JSON of a request.

    Raises:
        HttpError: 400 if the body is not JSON, 422 if the body does not match the schema.
    """
    try:
        return PredictRequest.model_validate_json(body)
    except ValidationError as error:
        is_json = error.errors(include_url=False)[0]["type"] != "json_invalid"
        what = "the request does not match the schema" if is_json else "the request is not JSON"
        raise HttpError(422 if is_json else 400, what, _describe_first_mismatch(error), remedy) from None


def _describe_first_mismatch(error: ValidationError) -> str:
    """Describe the first mismatch and its position. The value is omitted, because it may be long."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return escape_controls(": ".join(filter(None, [".".join(map(str, first["loc"]))[:80], first["msg"]])))


def describe_body() -> dict[str, Any]:
    """Return the OpenAPI description of a request's body. FastAPI cannot infer it, because ``parse`` reads the body."""
    content = {JsonResponse.media_type: {"schema": PredictRequest.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


def check_type(headers: Headers) -> None:
    """Reject a request that a web page of another site may have sent.

    Before a browser sends JSON to another site, it asks for permission in a preflight request, which this service never
    grants. A request with the Content-Type JSON therefore cannot come from a page of another site.

    Raises:
        HttpError: 415 if the Content-Type is not JSON.
    """
    if headers.get("content-type", "").partition(";")[0].strip().lower() != JsonResponse.media_type:
        raise HttpError(
            415,
            "the request's Content-Type is not JSON",
            remedy=f"send the header Content-Type: {JsonResponse.media_type}",
        )


def check_size(texts: list[str], options: ServiceOptions) -> None:
    """Raise ``HttpError`` 413 if the number of texts or the length of a text exceeds its limit."""
    if len(texts) > options.max_batch:
        why = f"the limit is {options.max_batch:,} texts per request"
        raise HttpError(413, f"{len(texts):,} texts are too many", why, "send several requests, or raise --max-batch")
    if (longest := max(map(len, texts))) > options.max_chars:
        why = f"the limit is {options.max_chars:,} characters, including the title"
        raise HttpError(413, f"a text of {longest:,} characters is too long", why, "shorten it, or raise --max-chars")


class RequestLimitMiddleware:
    """ASGI middleware that forwards a request to the application only if its complete body is within the limits.

    A request counts towards the queue limit only after its body has arrived completely, so that slow clients cannot
    fill the queue.

    Args:
        app: Application.
        options: Limits.
        predicting: Path that returns predictions. Only requests to this path have a body and count towards the queue
            limit.
    """

    def __init__(self, app: ASGIApp, options: ServiceOptions, predicting: str) -> None:
        self.app = app
        self.options = options
        self.predicting = predicting
        self._in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check_host(Headers(scope=scope).get("host", ""))
            if scope["method"] == "HEAD":
                scope = {**scope, "method": "GET"}  # The server omits the body of the response.
            if scope["path"] == self.predicting:
                await self._predict(scope, receive, send_with_headers)
            else:
                await self.app(scope, receive, send_with_headers)
        except HttpError as error:
            await error.response()(scope, receive, send_with_headers)

    def _check_host(self, host: str) -> None:
        """Reject unknown host names, as a protection against DNS rebinding.

        An attacker can make the DNS name of a site resolve to the address of this service. A browser that visits the
        site then sends requests to this service, with the name of the site in the header "Host".
        """
        name, _, port = host.rpartition(":")
        name = (name if port.isdigit() else host).lower()
        if not (name == "localhost" or name in self.options.names or _is_address(name)):
            remedy = "use an IP address or localhost, or start the service with --allow-host NAME"
            raise HttpError(403, f"the host name {host[:100]!r} is not allowed", remedy=remedy, closes=True)

    async def _predict(self, scope: Scope, receive: Receive, send: Send) -> None:
        timeout, limit = self.options.timeout, self.options.max_body
        try:
            body = await asyncio.wait_for(_body(receive, limit), timeout)
        except TimeoutError:
            what = f"the request was not complete after {timeout:g} seconds"
            raise HttpError(408, what, remedy="send the request faster, or raise --timeout", closes=True) from None
        if body is None:
            why = f"the limit is {limit:,} bytes"
            raise HttpError(413, "the request is too long", why, "send fewer texts at a time, or raise --max-body")
        if self._in_progress >= self.options.queue:
            why = f"{self.options.queue} requests are in progress"
            remedy = "try again in a second, or put several texts into one request"
            raise HttpError(503, "too many requests at a time", why, remedy, retry_after=1)
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        self._in_progress += 1
        try:
            await self.app(scope, replay, send)
        finally:
            self._in_progress -= 1


async def _body(receive: Receive, limit: int) -> bytes | None:
    """Receive a complete body. Return ``None`` if the body is too long.

    A body that is too long is also received to its end, but it is not stored. Many clients read the response only after
    they have sent the whole body.
    """
    body, size, more = bytearray(), 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HttpError(400, "the client disconnected during the request", closes=True)
        piece = message.get("body", b"")
        size += len(piece)
        if size <= limit:
            body += piece
        more = message.get("more_body", False)
    return bytes(body) if size <= limit else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
    except ValueError:
        return False
    return "%" not in name  # The zone of an IPv6 address could be any string, so addresses with a zone are refused.
