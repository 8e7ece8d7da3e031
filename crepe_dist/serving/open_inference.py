"""Open Inference Protocol V2, which clients of KServe, Triton, Seldon and MLServer speak.

A request has one tensor of texts, or one tensor for each column by its name in training. Tensors are JSON or, as
Triton's extension for binary data says, behind the JSON.
"""

import json
import math
from collections.abc import Awaitable, Sequence
from typing import Annotated, Any, Callable, Optional, Union

import numpy as np
from fastapi import FastAPI, Header, Request, Response
from pydantic import BaseModel, ConfigDict, FailFast, Field

from crepe_dist.data.text_preprocessing import TextPreprocessor, strip_field_separators
from crepe_dist.predicting.prediction import Prediction
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.serving import requests
from crepe_dist.serving.requests import PROTOCOL, Json, Problem
from crepe_dist.version import __version__

INPUT, BYTES, FLOATS = "text", "BYTES", "FP32"
MAX_INPUTS = 256  # tensors of a request
HEAD_LENGTH = "Inference-Header-Content-Length"  # header with the length of the JSON before binary data
EXAMPLE = 'send {"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["…", "…"]}]}'
Tensors = dict[str, tuple[str, list[int]]]  # type and shape by name; -1 stands for the number of texts


class Strict(BaseModel):
    """Schema that converts no types, and ignores names that it does not know, as the protocol wants."""

    model_config = ConfigDict(strict=True)


class Parameters(Strict):
    """Parameters of Triton's extension for binary data."""

    binary_data_size: Annotated[Optional[int], Field(ge=0, description="bytes of an input behind the JSON")] = None
    binary_data: Annotated[Optional[bool], Field(description="whether this output shall be behind the JSON")] = None
    binary_data_output: Annotated[bool, Field(description="whether all outputs shall be behind the JSON")] = False


class InputTensor(Strict):
    """Texts to classify, or the values of a column."""

    name: Annotated[str, Field(description=f"{INPUT}, or the name of a column in training")]
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=2)]
    datatype: str = Field(pattern=f"^{BYTES}$")
    parameters: Parameters = Parameters()
    data: Annotated[
        list[Union[str, list[str]]], FailFast(), Field(description="the texts, unless they are behind the JSON")
    ] = []


class OutputTensor(Strict):
    """Tensor that the answer shall have."""

    name: str
    parameters: Parameters = Parameters()


class Question(Strict):
    """Request for an inference."""

    id: Annotated[Optional[str], Field(description="name of the request, which the answer repeats")] = None
    parameters: Parameters = Parameters()
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=MAX_INPUTS)]
    outputs: Annotated[list[OutputTensor], Field(max_length=8, description="default: all")] = []


def paths(name: str) -> tuple[str, ...]:
    """List the paths of a model, that of the inference last."""
    model = f"{PROTOCOL}/models/{name}"
    return (PROTOCOL, f"{PROTOCOL}/", f"{PROTOCOL}/health/live", f"{PROTOCOL}/health/ready", model, f"{model}/ready",
            f"{model}/infer")  # fmt: skip


def add_routes(
    app: FastAPI,
    model: Predictor,
    name: str,
    classify: Callable[[list[str]], Awaitable[list[Prediction]]],
    check_ready: Callable[[], None],
) -> None:
    """Add the protocol's paths to an application.

    Args:
        name: name of the model.
        classify: classifies the texts of a request.
        check_ready: raises ``Problem`` unless the service can predict.
    """
    server, with_slash, live, ready, metadata, model_ready, infer = paths(name)
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
        return Json({"name": name, "ready": True})

    @app.get(metadata, summary="Describe the tensors of the model")
    async def describe_model() -> Response:
        described = [{"name": name, "datatype": kind, "shape": shape} for name, (kind, shape) in tensors.items()]
        inputs = [{"name": each, "datatype": BYTES, "shape": [-1]} for each in _inputs(model.composition)]
        return Json({"name": name, "platform": "crepe_dist", "inputs": inputs, "outputs": described})

    @app.post(infer, summary="Classify texts (Open Inference Protocol)", openapi_extra=requests.described(Question))
    async def answer(
        request: Request, head_length: Annotated[Optional[int], Header(alias=HEAD_LENGTH, ge=0)] = None
    ) -> Response:
        # Clients of the protocol may send no type at all. A browser names the site that sends a request to another one.
        if "origin" in request.headers:
            requests.check_type(request.headers)
        body = await request.body()
        end = len(body) if head_length is None else head_length
        question = requests.parse(Question, body[:end], EXAMPLE)
        unknown = [output.name for output in question.outputs if output.name not in tensors]
        if unknown:
            raise Problem(422, f"there is no output {unknown[0]!r:.80}", remedy=f"choose from {', '.join(tensors)}")
        texts = _rows(question.inputs, body[end:], model.composition)
        found = {**_values(await classify(texts), model.classes), "classes": model.classes}
        return _answer(question, name, {name: (*tensors[name], found[name]) for name in tensors}, len(texts))


def _inputs(composition: TextPreprocessor) -> list[str]:
    """Return the names of the tensors of a request: the columns of the training, if they have names."""
    return [*(composition.columns or [INPUT]), *(column.name for column in composition.beside)]


def _rows(tensors: Sequence[InputTensor], binary: bytes, composition: TextPreprocessor) -> list[str]:
    """Return the texts of a request, joined from the tensors of several columns.

    Raises:
        Problem: A tensor does not match its description, or the model has no such column.
    """
    if [tensor.name for tensor in tensors] == [INPUT]:
        return list(map(strip_field_separators, _texts(tensors[0], binary)))
    columns: dict[str, list[str]] = {}
    known = {INPUT, *_inputs(composition)}
    for number, tensor in enumerate(tensors):
        if tensor.name not in known:
            what = f"inputs.{number}.name: the model reads no column {tensor.name!r:.60}"
            raise Problem(422, what, remedy=f"the columns are {', '.join(_inputs(composition))}, or {INPUT}")
        size = tensor.parameters.binary_data_size or 0
        columns[tensor.name], binary = _texts(tensor, binary[:size]), binary[size:]
    if binary or len(columns) < len(tensors) or len(set(map(len, columns.values()))) > 1:
        what = "the inputs do not fit together"
        why = "two have the same name, or different numbers of rows, or bytes follow the last one"
        raise Problem(400, what, why, "send one tensor for each column, with one value for each row")
    texts: list[str] = []
    for row in zip(*columns.values()):
        values: dict[str, Any] = dict(zip(columns, row))
        text = values.pop(INPUT, None)
        texts += requests.Question.model_validate({"text": text, "columns": values}).all_texts(composition)
    return texts


def _tensors(model: Predictor) -> Tensors:
    labels = {"labels": (BYTES, [-1])} if model.is_multilabel else {}
    count = len(model.classes)
    rest = {"probabilities": (FLOATS, [-1, count]), "problem": (BYTES, [-1]), "classes": (BYTES, [count])}
    return {"label": (BYTES, [-1]), **labels, **rest}


def _values(predictions: Sequence[Prediction], classes: Sequence[str]) -> dict[str, list[Any]]:
    """Collect the values of the outputs, text by text; ``labels`` are JSON lists.

    A text with a problem has no label, and zeros for probabilities.
    """
    nothing = dict.fromkeys(classes, 0.0)
    shares = [nothing if each.error else dict(each.ranking) for each in predictions]
    return {
        "label": ["" if each.error or each.rejected else each.label for each in predictions],
        "labels": [json.dumps([] if each.error else each.labels, ensure_ascii=False) for each in predictions],
        "probabilities": [share[name] for share in shares for name in classes],
        "problem": [each.error for each in predictions],
    }


def _texts(tensor: InputTensor, binary: bytes) -> list[str]:
    """Return the texts of a request; raise ``Problem`` 400 if they do not match their description."""
    texts = [text for row in tensor.data for text in (row if isinstance(row, list) else [row])]
    if (size := tensor.parameters.binary_data_size) is not None:
        if size != len(binary):
            raise Problem(400, f"binary_data_size is {size}, and {len(binary)} bytes follow the JSON", remedy=EXAMPLE)
        texts = _unpacked(binary)
    if not texts or math.prod(tensor.shape) != len(texts):
        raise Problem(400, f"the input has {len(texts)} texts, and their shape is {tensor.shape}", remedy=EXAMPLE)
    return texts


def _unpacked(binary: bytes) -> list[str]:
    """Decode texts, each behind its length in four bytes."""
    texts, end = [], 0
    while end < len(binary):
        start = end + 4
        end = start + int.from_bytes(binary[start - 4 : start], "little")
        if end > len(binary):
            raise Problem(400, "the last of the texts is cut off")
        try:
            texts.append(binary[start:end].decode("utf-8"))
        except UnicodeDecodeError:
            raise Problem(400, f"text {len(texts)} is not UTF-8") from None
    return texts


def _packed(kind: str, values: Sequence[Any]) -> bytes:
    if kind == FLOATS:
        return np.asarray(values, "<f4").tobytes()
    encoded = [value.encode("utf-8") for value in values]
    return b"".join(piece for value in encoded for piece in (len(value).to_bytes(4, "little"), value))


def _answer(
    question: Question, model: str, tensors: dict[str, tuple[str, list[int], list[Any]]], texts: int
) -> Response:
    described: list[dict[str, Any]] = []
    behind: list[bytes] = []
    for output in question.outputs or [OutputTensor(name=name) for name in tensors]:
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
    answered = Json({"model_name": model, **repeated, "outputs": described})
    if not behind:
        return answered
    content, headers = b"".join([answered.body, *behind]), {HEAD_LENGTH: str(len(answered.body))}
    return Response(content, media_type="application/octet-stream", headers=headers)
