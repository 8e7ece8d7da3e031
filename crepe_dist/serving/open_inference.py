"""Open Inference Protocol V2, the protocol of KServe, Triton, Seldon and MLServer.

A request contains one tensor of texts, or one tensor per column, which has the name of the column in the training data.
The values of a tensor are either part of the JSON, or follow the JSON in the format of Triton's binary tensor data
extension.
"""

import json
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Header, Request, Response
from pydantic import BaseModel, ConfigDict, FailFast, Field

from crepe_dist.data.text_preprocessing import TextPreprocessor
from crepe_dist.predicting.prediction import Prediction
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.serving import requests
from crepe_dist.serving.requests import PROTOCOL, HttpError, JsonResponse
from crepe_dist.version import __version__

INPUT, BYTES, FLOATS = "text", "BYTES", "FP32"
MAX_INPUTS = 256  # Maximum number of tensors in a request.
HEAD_LENGTH = "Inference-Header-Content-Length"  # Header with the length, in bytes, of the JSON before binary data.
EXAMPLE = 'send {"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["…", "…"]}]}'
Tensors = dict[str, tuple[str, list[int]]]  # Type and shape of each tensor. -1 stands for the number of texts.


class StrictModel(BaseModel):
    """Base class of schemas that do not convert types. Unknown names are ignored, as the protocol requires."""

    model_config = ConfigDict(strict=True)


class Parameters(StrictModel):
    """Parameters of Triton's extension for binary data."""

    binary_data_size: Annotated[int | None, Field(ge=0, description="size of an input after the JSON, bytes")] = None
    binary_data: Annotated[bool | None, Field(description="true to send this output after the JSON")] = None
    binary_data_output: Annotated[bool, Field(description="true to send all outputs after the JSON")] = False


class InputTensor(StrictModel):
    """Texts to classify, or the values of a column."""

    name: Annotated[str, Field(description=f"{INPUT}, or the name of a column of the training data")]
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=2)]
    datatype: str = Field(pattern=f"^{BYTES}$")
    parameters: Parameters = Parameters()
    data: Annotated[list[str | list[str]], FailFast(), Field(description="the texts, unless they follow the JSON")] = []


class OutputTensor(StrictModel):
    """Tensor that the client requests."""

    name: str
    parameters: Parameters = Parameters()


class InferRequest(StrictModel):
    """Request for an inference."""

    id: Annotated[str | None, Field(description="id of the request, which the response repeats")] = None
    parameters: Parameters = Parameters()
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=MAX_INPUTS)]
    outputs: Annotated[list[OutputTensor], Field(max_length=8, description="default: all")] = []


def paths(name: str) -> tuple[str, ...]:
    """Return the paths of the protocol for a model. The last path is the path of inference requests."""
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
    """Add the paths of the protocol to an application.

    Args:
        app: Application.
        model: Model.
        name: Name of the model.
        classify: Function that classifies the texts of a request.
        check_ready: Function that raises ``HttpError`` unless the service can predict.
    """
    server, with_slash, live, ready, metadata, model_ready, infer = paths(name)
    tensors = _tensors(model)

    @app.get(with_slash, include_in_schema=False)
    @app.get(server, summary="Describe the server (Open Inference Protocol)")
    async def describe_server() -> Response:
        return JsonResponse({"name": "crepe_dist", "version": __version__, "extensions": ["binary_tensor_data"]})

    @app.get(live, summary="Check that the service answers")
    async def check_live() -> Response:
        return JsonResponse({"live": True})

    @app.get(ready, summary="Check that the service can predict")
    async def check_server() -> Response:
        check_ready()
        return JsonResponse({"ready": True})

    @app.get(model_ready, summary="Check that the model can predict")
    async def check_model() -> Response:
        check_ready()
        return JsonResponse({"name": name, "ready": True})

    @app.get(metadata, summary="Describe the tensors of the model")
    async def describe_model() -> Response:
        outputs = [{"name": name, "datatype": kind, "shape": shape} for name, (kind, shape) in tensors.items()]
        inputs = [{"name": column, "datatype": BYTES, "shape": [-1]} for column in _input_names(model.composition)]
        return JsonResponse({"name": name, "platform": "crepe_dist", "inputs": inputs, "outputs": outputs})

    body_schema = requests.describe_body(InferRequest)

    @app.post(infer, summary="Classify texts (Open Inference Protocol)", openapi_extra=body_schema)
    async def infer_labels(
        request: Request, head_length: Annotated[int | None, Header(alias=HEAD_LENGTH, ge=0)] = None
    ) -> Response:
        # Clients of the protocol need not send a Content-Type. A request with the header "Origin" comes from a browser,
        # possibly from a page of another site, so its Content-Type is checked.
        if "origin" in request.headers:
            requests.check_type(request.headers)
        body = await request.body()
        end = len(body) if head_length is None else head_length
        parsed = requests.parse(InferRequest, body[:end], EXAMPLE)
        unknown = [output.name for output in parsed.outputs if output.name not in tensors]
        if unknown:
            raise HttpError(422, f"there is no output {unknown[0]!r:.80}", remedy=f"choose from {', '.join(tensors)}")
        texts = _rows(parsed.inputs, body[end:], model.composition)
        values = {**_values(await classify(texts), model.classes), "classes": model.classes}
        return _response(parsed, name, {name: (*tensors[name], values[name]) for name in tensors}, len(texts))


def _input_names(composition: TextPreprocessor) -> list[str]:
    """Return the names of the input tensors: the column names of the training data, or ``INPUT`` if it had none."""
    return list(composition.columns or [INPUT])


def _rows(tensors: Sequence[InputTensor], binary: bytes, composition: TextPreprocessor) -> list[str]:
    """Return the texts of a request, joined from the tensors of multiple columns.

    Raises:
        HttpError: A tensor does not match its description, or the model has no such column.
    """
    if [tensor.name for tensor in tensors] == [INPUT]:
        return _texts(tensors[0], binary)
    columns: dict[str, list[str]] = {}
    known = {INPUT, *_input_names(composition)}
    for number, tensor in enumerate(tensors):
        if tensor.name not in known:
            what = f"inputs.{number}.name: the model reads no column {tensor.name!r:.60}"
            raise HttpError(422, what, remedy=f"the columns are {', '.join(_input_names(composition))}, or {INPUT}")
        size = tensor.parameters.binary_data_size or 0
        columns[tensor.name], binary = _texts(tensor, binary[:size]), binary[size:]
    if binary or len(columns) < len(tensors) or len(set(map(len, columns.values()))) > 1:
        what = "the inputs are inconsistent"
        why = "two inputs have the same name, two inputs have different numbers of rows, or bytes follow the last input"
        raise HttpError(400, what, why, "send one tensor for each column, with one value for each row")
    texts: list[str] = []
    for row in zip(*columns.values()):
        values: dict[str, Any] = dict(zip(columns, row))
        text = values.pop(INPUT, None)
        texts += requests.PredictRequest.model_validate({"text": text, "columns": values}).all_texts(composition)
    return texts


def _tensors(model: Predictor) -> Tensors:
    labels = {"labels": (BYTES, [-1])} if model.is_multilabel else {}
    count = len(model.classes)
    rest = {"probabilities": (FLOATS, [-1, count]), "problem": (BYTES, [-1]), "classes": (BYTES, [count])}
    return {"label": (BYTES, [-1]), **labels, **rest}


def _values(predictions: Sequence[Prediction], classes: Sequence[str]) -> dict[str, list[Any]]:
    """Return the values of each output. There is one value per text, and in ``probabilities``, one per text and class.

    Each value of ``labels`` is a JSON list. If a text cannot be classified, its label is empty, and its probabilities
    are 0.
    """
    zeros = dict.fromkeys(classes, 0.0)
    probabilities = [zeros if prediction.error else dict(prediction.ranking) for prediction in predictions]
    labels = [() if prediction.error else prediction.labels for prediction in predictions]
    return {
        "label": ["" if prediction.error or prediction.rejected else prediction.label for prediction in predictions],
        "labels": [json.dumps(names, ensure_ascii=False) for names in labels],
        "probabilities": [by_class[name] for by_class in probabilities for name in classes],
        "problem": [prediction.error for prediction in predictions],
    }


def _texts(tensor: InputTensor, binary: bytes) -> list[str]:
    """Return the texts of a tensor.

    Args:
        binary: Binary data of the tensor, which follow the JSON.

    Raises:
        HttpError: 400 if the number of texts or bytes does not match the tensor's description.
    """
    texts = [text for row in tensor.data for text in (row if isinstance(row, list) else [row])]
    if (size := tensor.parameters.binary_data_size) is not None:
        if size != len(binary):
            raise HttpError(400, f"binary_data_size is {size}, and {len(binary)} bytes follow the JSON", remedy=EXAMPLE)
        texts = _unpack(binary)
    if not texts or math.prod(tensor.shape) != len(texts):
        raise HttpError(400, f"the input has {len(texts)} texts, and their shape is {tensor.shape}", remedy=EXAMPLE)
    return texts


def _unpack(binary: bytes) -> list[str]:
    """Decode texts. Each text is preceded by its length in bytes, a little-endian integer of four bytes."""
    texts, end = [], 0
    while end < len(binary):
        start = end + 4
        end = start + int.from_bytes(binary[start - 4 : start], "little")
        if end > len(binary):
            raise HttpError(400, "the last text is incomplete")
        try:
            texts.append(binary[start:end].decode("utf-8"))
        except UnicodeDecodeError:
            raise HttpError(400, f"text {len(texts)} is not UTF-8") from None
    return texts


def _pack(kind: str, values: Sequence[Any]) -> bytes:
    """Encode the values of a tensor as binary data; see ``_unpack`` for the format of texts."""
    if kind == FLOATS:
        return np.asarray(values, "<f4").tobytes()
    encoded = [value.encode("utf-8") for value in values]
    return b"".join(piece for value in encoded for piece in (len(value).to_bytes(4, "little"), value))


def _response(
    request: InferRequest, model: str, tensors: dict[str, tuple[str, list[int], list[Any]]], num_texts: int
) -> Response:
    """Return the response to a request.

    Args:
        tensors: Type, shape and values of each output.
    """
    outputs: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for output in request.outputs or [OutputTensor(name=name) for name in tensors]:
        kind, shape, values = tensors[output.name]
        tensor: dict[str, Any] = {"name": output.name, "datatype": kind}
        tensor["shape"] = [num_texts if size < 0 else size for size in shape]
        is_binary = output.parameters.binary_data
        if request.parameters.binary_data_output if is_binary is None else is_binary:
            binary.append(_pack(kind, values))
            tensor["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            tensor["data"] = values
        outputs.append(tensor)
    request_id = {} if request.id is None else {"id": request.id}
    head = JsonResponse({"model_name": model, **request_id, "outputs": outputs})
    if not binary:
        return head
    content, headers = b"".join([head.body, *binary]), {HEAD_LENGTH: str(len(head.body))}
    return Response(content, media_type="application/octet-stream", headers=headers)
