"""Requests of ``POST /predict``, and errors as JSON."""

import json
from typing import Annotated, Any, Optional, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, model_validator
from starlette.datastructures import Headers
from starlette.responses import Response

from crepe_dist.data.composition import join
from crepe_dist.errors import UserError, visible
from crepe_dist.settings.options import ServiceOptions

TOP = 5
PROTOCOL = "/v2"  # root of the paths of the Open Inference Protocol
Schema = TypeVar("Schema", bound=BaseModel)


class Question(BaseModel):
    """Request to classify one or several texts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: Optional[str] = Field(None, description="text to classify")
    title: Optional[str] = Field(None, description="title of the text, joined as in training: title | text")
    texts: Annotated[list[str], FailFast(), Field(description="texts to classify, instead of text")] = []
    explain: bool = Field(False, description="explain the answer (with text only): scores of its characters and words")
    top: int = Field(TOP, ge=1, description="number of classes in each answer, the most probable first")

    @model_validator(mode="after")
    def _has_one_source(self) -> "Question":
        if (self.text is None) == (not self.texts):
            raise ValueError("give either text or texts")
        if self.text is None and (self.title is not None or self.explain):
            raise ValueError("title and explain need a single text")
        return self

    def all_texts(self) -> list[str]:
        """Return the texts to classify, joined with their title."""
        return self.texts or [join([self.title or "", self.text or ""])]


class Json(Response):
    """JSON response in UTF-8; lone surrogates, which UTF-8 cannot encode, are escaped."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")


class Problem(UserError):
    """Error that is sent to the client.

    Args:
        retry_after: seconds after which the same request may succeed.
        closes: whether to close the connection, because the rest of the request was not read.
    """

    def __init__(
        self, status: int, what: str, why: str = "", remedy: str = "", *, retry_after: int = 0, closes: bool = False
    ) -> None:
        super().__init__(what, why, remedy)
        self.status = status
        self.headers = {"Retry-After": str(retry_after)} if retry_after else {}
        if closes:
            self.headers["Connection"] = "close"

    def response(self, path: str) -> Response:
        """Return the answer to a request: an error of the Open Inference Protocol is one text."""
        error = {"what": self.what, "why": self.why, "do": self.remedy}
        given = {key: value for key, value in error.items() if value}
        one_text = path == PROTOCOL or path.startswith(f"{PROTOCOL}/")
        return Json({"error": "; ".join(given.values()) if one_text else given}, self.status, self.headers)


def parse(schema: type[Schema], body: bytes, remedy: str) -> Schema:
    """Parse the JSON of a request.

    Raises:
        Problem: 400 if it is not JSON, 422 if it does not match the schema.
    """
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        is_json = error.errors(include_url=False)[0]["type"] != "json_invalid"
        what = "the request does not match the schema" if is_json else "the request is not JSON"
        raise Problem(422 if is_json else 400, what, _first(error), remedy) from None


def _first(error: ValidationError) -> str:
    """Describe the first mismatch by its place, without the value, which may be long."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return visible(": ".join(filter(None, [".".join(map(str, first["loc"]))[:80], first["msg"]])))


def described(schema: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI description of a body, which FastAPI cannot infer because ``parse`` reads it."""
    return {"requestBody": {"required": True, "content": {Json.media_type: {"schema": schema.model_json_schema()}}}}


def check_type(headers: Headers) -> None:
    """Refuse a request that a page of another site may have sent.

    Raises:
        Problem: 415 if its type is not JSON, which a browser would not send without asking the service first.
    """
    if headers.get("content-type", "").partition(";")[0].strip().lower() != Json.media_type:
        raise Problem(
            415, "the request's Content-Type is not JSON", remedy=f"send the header Content-Type: {Json.media_type}"
        )


def check_size(texts: list[str], options: ServiceOptions) -> None:
    """Raise ``Problem`` 413 if there are more texts, or longer ones, than a request may have."""
    if len(texts) > options.max_batch:
        why = f"the limit is {options.max_batch:,} texts per request"
        raise Problem(413, f"{len(texts):,} texts are too many", why, "send several requests, or raise --max-batch")
    if (longest := max(map(len, texts))) > options.max_chars:
        why = f"the limit is {options.max_chars:,} characters, including the title"
        raise Problem(413, f"a text of {longest:,} characters is too long", why, "shorten it, or raise --max-chars")
