"""Schemas of the requests and answers of ``POST /predict``."""

from typing import Any, Optional

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers

from crepe_dist.data.composition import join
from crepe_dist.errors import visible
from crepe_dist.files import parse_json
from crepe_dist.serving.problems import Json, Problem
from crepe_dist.settings.serving_options import ServiceOptions

TOP = 5
EXAMPLE = 'send {"text": "…"} or {"texts": ["…", "…"]}; "title" (with "text") and "top" are optional'


class Question(BaseModel):
    """Request to classify one or several texts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: Optional[str] = Field(None, description="text to classify")
    title: Optional[str] = Field(None, description="title of the text, joined as in training: title | text")
    texts: Optional[list[str]] = Field(None, min_length=1, description="texts to classify, instead of text")
    explain: bool = Field(False, description="explain the answer (with text only): scores of its characters and words")
    top: int = Field(TOP, ge=1, description="number of classes in each answer, the most probable first")


class Ranked(BaseModel):
    """A class and its probability, 0 to 1."""

    label: str = Field(alias="class")
    probability: float


class Word(BaseModel):
    """Word of a text, and the drop in the log-odds of the class when it is blank."""

    text: str
    start: int
    stop: int
    score: float


class Explanation(BaseModel):
    """Evidence in a text for and against a class; positions count code points."""

    label: str = Field(alias="class")
    cut: list[int] = Field(description="start and stop of the part that is not read; equal if all is read")
    words: list[Word]
    characters: list[float] = Field(description="score of each character of the text")


class Answer(BaseModel):
    """Most probable class of a text, its ranking of ``top`` classes, and its explanation if it was asked for.

    A model that gives several labels also answers with ``labels``: those whose probability reaches their threshold. A
    text that cannot be classified, such as an empty one, has a ``problem`` and no class.
    """

    labels: Optional[list[str]] = None
    label: Optional[str] = Field(
        alias="class", description="null if the probability is below --min-probability, or there is a problem"
    )
    probability: Optional[float]
    entropy: Optional[float] = Field(None, description="entropy of the probabilities of all classes, in nats")
    margin: Optional[float] = Field(None, description="difference of the probabilities of the first two classes")
    top: list[Ranked]
    read: Optional[int] = Field(None, description="number of known characters that the network read, without spaces")
    characters_cut: Optional[int] = Field(None, description="number of characters that were not read: too long a text")
    problem: Optional[str] = Field(None, description="reason why the text cannot be classified")
    explanation: Optional[Explanation] = None


class Answers(BaseModel):
    """One answer per text, in order."""

    predictions: list[Answer]


class Failure(BaseModel):
    """Error message: the failure, its cause and the remedy."""

    what: str
    why: str = ""
    do: str = ""


class Refusal(BaseModel):
    """Answer to a request that failed."""

    error: Failure


def read(body: bytes, options: ServiceOptions) -> tuple[list[str], Question]:
    """Parse a request into the texts to classify, joined with their titles, and the request itself.

    Raises:
        Problem: 400 if the body is not JSON, 422 if it does not match the schema, 413 if it exceeds the limits.
    """
    try:
        value = parse_json(body)
        _check_size(value, options)
        question = Question.model_validate(value)
    except ValidationError as error:
        raise Problem(422, "the request does not match the schema", reason(error), EXAMPLE) from None
    except ValueError as error:
        raise Problem(400, "the request cannot be read", visible(str(error)), EXAMPLE) from None
    if (question.text is None) == (question.texts is None):
        why = "the request has neither" if question.text is None else "the request has both"
        raise Problem(422, "exactly one of text and texts is required", why, EXAMPLE)
    if question.title is not None and question.text is None:
        raise Problem(422, "title requires text", "a title belongs to a single text", EXAMPLE)
    if question.explain and question.text is None:
        raise Problem(422, "explain requires text", "one text at a time is explained", EXAMPLE)
    texts = question.texts or [join([question.title or "", question.text or ""])]
    check_lengths(texts, options)
    return texts, question


def check_type(headers: Headers) -> None:
    """Refuse a request that a page of another site may have sent.

    Raises:
        Problem: 415 if its type is not JSON, which a browser would not send without asking the service first.
    """
    if headers.get("content-type", "").partition(";")[0].strip().lower() != Json.media_type:
        raise Problem(
            415,
            "the request's Content-Type is not JSON",
            "this keeps pages of other sites from sending requests",
            f"send the header Content-Type: {Json.media_type}",
        )


def check_number(texts: int, options: ServiceOptions) -> None:
    """Raise ``Problem`` 413 if there are more texts than a request may have."""
    if texts > options.max_batch:
        raise Problem(
            413,
            f"{texts:,} texts are too many",
            f"the limit is {options.max_batch:,} texts per request",
            "send them in several requests, or start the service with a larger --max-batch",
        )


def check_lengths(texts: list[str], options: ServiceOptions) -> None:
    """Raise ``Problem`` 413 if a text is too long."""
    longest = max(map(len, texts))
    if longest > options.max_chars:
        raise Problem(
            413,
            f"a text of {longest:,} characters is too long",
            f"the limit is {options.max_chars:,} characters, including the title",
            "shorten it, or start the service with a larger --max-chars",
        )


def _check_size(value: Any, options: ServiceOptions) -> None:
    """Bound the number of values that the schema is compared with: each of its errors takes time."""
    if not isinstance(value, dict):
        return
    if len(value) > len(Question.model_fields):
        raise Problem(422, "the request does not match the schema", f"it has {len(value):,} names", EXAMPLE)
    texts = value.get("texts")
    if isinstance(texts, list):
        check_number(len(texts), options)


def reason(error: ValidationError) -> str:
    """Describe the first validation error by its place, without the value, which may be long."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(name) for name in first["loc"])[:80]
    return visible(f"{field}: {first['msg']}" if field else first["msg"])


def request_schema() -> dict[str, Any]:
    """Return the OpenAPI description of the body, which FastAPI cannot infer because ``read`` parses it."""
    content = {"application/json": {"schema": Question.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}
