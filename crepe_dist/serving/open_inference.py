"""Open Inference Protocol V2, which clients of KServe, Triton, Seldon and MLServer speak.

A request has one tensor, of texts. Tensors are JSON or, as Triton's extension for binary data says, behind the JSON.
"""

import math
from collections.abc import Awaitable, Sequence
from typing import Annotated, Any, Callable, Optional

import numpy as np
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crepe_dist.errors import visible
from crepe_dist.files import parse_json
from crepe_dist.predicting.model_summary import ModelSummary
from crepe_dist.predicting.prediction import Prediction
from crepe_dist.predicting.tensors import BYTES, FLOATS, INPUT, outputs, values
from crepe_dist.serving import schemas
from crepe_dist.serving.problems import PROTOCOL, Json, Problem
from crepe_dist.settings.serving_options import ServiceOptions
from crepe_dist.version import __version__

HEAD_LENGTH = "Inference-Header-Content-Length"  # header with the length of the JSON before binary data
MOST_OUTPUTS = 8
EXAMPLE = 'send {"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["…", "…"]}]}'
Tensors = dict[str, tuple[str, list[int]]]  # type and shape by name; -1 stands for the number of texts


class Strict(BaseModel):
    """Schema that converts no types, and ignores names that it does not know, as the protocol wants."""

    model_config = ConfigDict(strict=True)


class InputParameters(Strict):
    """Parameters of the input."""

    binary_data_size: Annotated[Optional[int], Field(ge=0, description="bytes of the texts behind the JSON")] = None


class Input(Strict):
    """Texts to classify."""

    name: str = Field(pattern=f"^{INPUT}$")
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=2)]
    datatype: str = Field(pattern=f"^{BYTES}$")
    parameters: InputParameters = InputParameters()
    data: Annotated[list[Any], Field(description="the texts, unless they are behind the JSON")] = []


class OutputParameters(Strict):
    """Parameters of an output."""

    binary_data: Annotated[Optional[bool], Field(description="whether this tensor shall be behind the JSON")] = None


class Output(Strict):
    """Tensor that the answer shall have."""

    name: str
    parameters: OutputParameters = OutputParameters()


class QuestionParameters(Strict):
    """Parameters of a request."""

    binary_data_output: Annotated[bool, Field(description="whether all tensors shall be behind the JSON")] = False


class Question(Strict):
    """Request for an inference."""

    id: Annotated[Optional[str], Field(description="name of the request, which the answer repeats")] = None
    parameters: QuestionParameters = QuestionParameters()
    inputs: Annotated[list[Input], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[Output], Field(max_length=MOST_OUTPUTS, description="default: all")] = []


def paths(name: str) -> tuple[str, ...]:
    """List the paths of a model, that of the inference last."""
    model = f"{PROTOCOL}/models/{name}"
    return (PROTOCOL, f"{PROTOCOL}/", f"{PROTOCOL}/health/live", f"{PROTOCOL}/health/ready", model, f"{model}/ready",
            f"{model}/infer")  # fmt: skip


def add_routes(
    app: FastAPI,
    model: ModelSummary,
    options: ServiceOptions,
    classify: Callable[[list[str]], Awaitable[list[Prediction]]],
    check_ready: Callable[[], None],
) -> None:
    """Add the protocol's paths to an application.

    Args:
        classify: classifies the texts of a request.
        check_ready: raises ``Problem`` unless the service can predict.
    """
    server, with_slash, live, ready, metadata, model_ready, infer = paths(options.model_name)
    tensors = _tensors(model)

    @app.get(with_slash, include_in_schema=False)
    @app.get(server, summary="Describe the server (Open Inference Protocol)")
    async def describe_server() -> Response:
        return Json({"name": "crepe_dist", "version": __version__, "extensions": ["binary_tensor_data"]})

    @app.get(live, summary="Check that the service answers")
    async def check_live() -> Response:
        return Json({"live": True})

    @app.get(ready, summary="Check that the service can predict")
    async def check_server() -> Response:
        check_ready()
        return Json({"ready": True})

    @app.get(model_ready, summary="Check that the model can predict")
    async def check_model() -> Response:
        check_ready()
        return Json({"name": options.model_name, "ready": True})

    @app.get(metadata, summary="Describe the tensors of the model")
    async def describe_model() -> Response:
        described = [{"name": name, "datatype": kind, "shape": shape} for name, (kind, shape) in tensors.items()]
        text = {"name": INPUT, "datatype": BYTES, "shape": [-1]}
        return Json({"name": options.model_name, "platform": "crepe_dist", "inputs": [text], "outputs": described})

    body = {"content": {Json.media_type: {"schema": Question.model_json_schema()}}, "required": True}

    @app.post(infer, summary="Classify texts (Open Inference Protocol)", openapi_extra={"requestBody": body})
    async def answer(request: Request) -> Response:
        # Clients of the protocol may send no type at all. A browser names the site that sends a request to another one.
        if "origin" in request.headers:
            schemas.check_type(request.headers)
        texts, question = _read(await request.body(), request.headers.get(HEAD_LENGTH), tensors, options)
        found = {**values(await classify(texts), model.classes), "classes": model.classes}
        return _answer(question, {name: (*tensors[name], found[name]) for name in tensors}, len(texts), options)


def _tensors(model: ModelSummary) -> Tensors:
    count = len(model.classes)
    shapes = {name: (kind, [-1, count] if kind == FLOATS else [-1]) for name, kind in outputs(model.several).items()}
    return {**shapes, "classes": (BYTES, [count])}


def _read(
    body: bytes, head_length: Optional[str], tensors: Tensors, options: ServiceOptions
) -> tuple[list[str], Question]:
    """Parse a request into its texts and the request itself.

    Raises:
        Problem: 400 if the body cannot be decoded, 422 if it does not match the protocol, 413 if it exceeds the limits.
    """
    try:
        end = len(body) if head_length is None else _length(head_length, len(body))
        question = Question.model_validate(parse_json(body[:end]))
        texts = _texts(question.inputs[0], body[end:])
    except ValidationError as error:
        raise Problem(422, "the request does not match the protocol", schemas.reason(error), EXAMPLE) from None
    except ValueError as error:
        raise Problem(400, "the request cannot be read", visible(str(error)[:300]), EXAMPLE) from None
    unknown = [output.name for output in question.outputs if output.name not in tensors]
    if unknown:
        raise Problem(422, f"there is no output {unknown[0]!r:.80}", remedy=f"choose from {', '.join(tensors)}")
    schemas.check_number(len(texts), options)
    schemas.check_lengths(texts, options)
    return texts, question


def _length(value: str, most: int) -> int:
    """Parse the length of the JSON in a body of ``most`` bytes."""
    length = int(value) if value.isdecimal() and len(value) < 19 else most + 1
    if length > most:
        raise ValueError(f"{HEAD_LENGTH} is {value!r:.40}, not a length in a body of {most} bytes")
    return length


def _texts(tensor: Input, binary: bytes) -> list[str]:
    if (size := tensor.parameters.binary_data_size) is not None:
        if size != len(binary):
            raise ValueError(f"binary_data_size is {size}, and {len(binary)} bytes follow the JSON")
        texts = _unpacked(binary)
    else:
        texts = [text for row in tensor.data for text in (row if isinstance(row, list) else [row])]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("its data are not texts")
    if not texts or math.prod(tensor.shape) != len(texts):
        raise ValueError(f"it has {len(texts)} texts, and their shape is {tensor.shape}")
    return texts


def _unpacked(binary: bytes) -> list[str]:
    """Decode texts, each behind its length in four bytes."""
    texts, end = [], 0
    while end < len(binary):
        start = end + 4
        end = start + int.from_bytes(binary[start - 4 : start], "little")
        if end > len(binary):
            raise ValueError("the last of its texts is cut off")
        try:
            texts.append(binary[start:end].decode("utf-8"))
        except UnicodeDecodeError:
            raise ValueError(f"text {len(texts)} is not UTF-8") from None
    return texts


def _packed(kind: str, values: Sequence[Any]) -> bytes:
    if kind == FLOATS:
        return np.asarray(values, "<f4").tobytes()
    encoded = [value.encode("utf-8") for value in values]
    return b"".join(piece for value in encoded for piece in (len(value).to_bytes(4, "little"), value))


def _answer(
    question: Question, tensors: dict[str, tuple[str, list[int], list[Any]]], texts: int, options: ServiceOptions
) -> Response:
    described: list[dict[str, Any]] = []
    behind: list[bytes] = []
    for output in question.outputs or [Output(name=name) for name in tensors]:
        kind, shape, values = tensors[output.name]
        tensor: dict[str, Any] = {"name": output.name, "datatype": kind}
        tensor["shape"] = [texts if size < 0 else size for size in shape]
        is_binary = output.parameters.binary_data
        if question.parameters.binary_data_output if is_binary is None else is_binary:
            behind.append(_packed(kind, values))
            tensor["parameters"] = {"binary_data_size": len(behind[-1])}
        else:
            tensor["data"] = values
        described.append(tensor)
    repeated = {} if question.id is None else {"id": question.id}
    answered = Json({"model_name": options.model_name, **repeated, "outputs": described})
    if not behind:
        return answered
    content, headers = b"".join([answered.body, *behind]), {HEAD_LENGTH: str(len(answered.body))}
    return Response(content, media_type="application/octet-stream", headers=headers)
