"""What `POST /predict` is asked and answers."""

from typing import Any, Optional

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crepe_dist.errors import visible
from crepe_dist.files import parse_json
from crepe_dist.preparing.formats.rows import join_title
from crepe_dist.serving.problems import Problem
from crepe_dist.settings.serving_options import ServiceOptions

TOP = 5
EXAMPLE = 'send {"text": "…"} or {"texts": ["…", "…"]}, and if you like "title" (with "text") and "top"'


class Question(BaseModel):
    """One text or several."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: Optional[str] = Field(None, description="one text")
    title: Optional[str] = Field(None, description="its title, joined as in training: title | text")
    texts: Optional[list[str]] = Field(None, min_length=1, description="several texts, in place of one")
    top: int = Field(TOP, ge=1, description="classes in the answer, the most probable first")


class Ranked(BaseModel):
    """A class and its probability, 0 to 1."""

    label: str = Field(alias="class")
    probability: float


class Answer(Ranked):
    """The most probable class of a text, and the first ``top``."""

    top: list[Ranked]


class Answers(BaseModel):
    """One answer a text, in order."""

    predictions: list[Answer]


class Failure(BaseModel):
    """What went wrong, why, and what to do about it."""

    what: str
    why: str = ""
    do: str = ""


class Refusal(BaseModel):
    error: Failure


def read(body: bytes, options: ServiceOptions) -> tuple[list[str], Question]:
    """The texts to classify, titles joined, and the question they come from.

    Raises:
        Problem: 400 no JSON, 422 another form, 413 more or longer than the limits.
    """
    try:
        question = Question.model_validate(parse_json(body))
    except ValidationError as error:
        raise Problem(422, "the request has another form", _reason(error), EXAMPLE) from None
    except ValueError as error:
        raise Problem(400, "the request cannot be read", visible(str(error)), EXAMPLE) from None
    if (question.text is None) == (question.texts is None):
        given = "neither is there" if question.text is None else "both are there"
        raise Problem(422, "one of text and texts is needed", given, EXAMPLE)
    if question.title is not None and question.text is None:
        raise Problem(422, "title needs text", "it is joined with one text", EXAMPLE)
    texts = question.texts or [join_title(question.title or "", question.text or "")]
    if len(texts) > options.max_batch:
        raise Problem(
            413,
            f"{len(texts):,} texts are too many",
            f"a request has at most {options.max_batch:,}",
            "send them in several requests, or start the service with a larger --max-batch",
        )
    longest = max(map(len, texts))
    if longest > options.max_chars:
        raise Problem(
            413,
            f"a text of {longest:,} characters is too long",
            f"a text has at most {options.max_chars:,}, its title included",
            "shorten it, or start the service with a larger --max-chars",
        )
    return texts, question


def _reason(error: ValidationError) -> str:
    """Of the first mistake: where, and what; without the value, which may be long."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])[:80]
    return visible(f"{place}: {first['msg']}" if place else first["msg"])


def request_schema() -> dict[str, Any]:
    """For OpenAPI: the body is read by ``read``, which FastAPI does not see."""
    content = {"application/json": {"schema": Question.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}
