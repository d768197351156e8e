"""Calls as KServe v2 REST requests. Tensors go in binary (a JSON header, then the raw bytes) or as JSON alone; both are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast
from urllib.parse import quote

from convoy.contract.errors import InvalidResponseError
from convoy.serving.client._answer import InferResult, ModelMetadata, ModelStatus, ServerMetadata, TensorMetadata
from convoy.serving.client._call import (
    Call,
    DescribeModel,
    DescribeServer,
    Infer,
    ListModels,
    LoadModel,
    ModelReady,
    R,
    ReadConfig,
    ReadStatistics,
    ServerLive,
    ServerReady,
    UnloadModel,
    check_id,
)
from convoy.serving.client._datatype import Array, decode
from convoy.serving.client._http_values import from_json, to_json

HEADER_LENGTH: Final = "inference-header-content-length"
"""The header that says how many of a body's bytes are JSON; tensors follow."""


@dataclass(frozen=True)
class HttpRequest:
    """What goes out.

    Attributes:
        method: ``GET`` or ``POST``.
        path: Everything after the address, quoted.
        body: The body; empty for none.
        headers: Headers beside the client's own.
    """

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def encode_request(call: Call[Any], timeout_s: float, *, binary: bool = True) -> HttpRequest:
    """``call`` as a REST request.

    Args:
        call: What is asked.
        timeout_s: How long the answer may take; told to servers that take tensors in binary, which are Triton or like it.
        binary: Whether tensors go in binary, or as JSON alone.

    Raises:
        InvalidRequestError: JSON cannot carry an input.
    """
    name = quote(call.model_name, safe="")
    model = f"/v2/models/{name}" + (f"/versions/{quote(call.model_version, safe='')}" if call.model_version else "")
    if isinstance(call, Infer):
        path = f"{model}/infer"
        return _binary_request(call, path, timeout_s) if binary else _post(path, _plain_document(call))
    if isinstance(call, LoadModel):
        return _post(f"/v2/repository/models/{name}/load", {})
    if isinstance(call, UnloadModel):
        return _post(f"/v2/repository/models/{name}/unload", {})
    if isinstance(call, ListModels):
        return _post("/v2/repository/index", {})
    paths: dict[type[Call[Any]], str] = {
        ServerLive: "/v2/health/live",
        ServerReady: "/v2/health/ready",
        DescribeServer: "/v2",
        ModelReady: f"{model}/ready",
        DescribeModel: model,
        ReadConfig: f"{model}/config",
        ReadStatistics: f"{model}/stats",
    }
    return HttpRequest("GET", paths[type(call)])


def decode_response(call: Call[R], body: bytes, headers: Mapping[str, str]) -> R:
    """The answer behind a response of status 200.

    Args:
        call: What was asked.
        body: The response's body.
        headers: The response's headers; names in lower case, or a mapping that ignores case.

    Raises:
        InvalidResponseError: It is no such response, or its tensors are not what it says.
    """
    answer: Any = None
    if isinstance(call, (ServerLive, ServerReady, ModelReady)):
        answer = True
    elif isinstance(call, Infer):
        answer = _infer_result(call, body, headers)
    elif isinstance(call, (DescribeServer, DescribeModel, ReadConfig, ReadStatistics, ListModels)):
        document = _json(body)
        try:
            if isinstance(call, DescribeServer):
                extensions = tuple(str(extension) for extension in document.get("extensions") or ())
                answer = ServerMetadata(_text(document, "name"), _text(document, "version"), extensions)
            elif isinstance(call, DescribeModel):
                answer = _metadata(document)
            elif isinstance(call, ReadConfig):
                answer = dict(document)
            elif isinstance(call, ReadStatistics):
                answer = [dict(version) for version in document["model_stats"]]
            else:
                keys = ("name", "version", "state", "reason")
                answer = [ModelStatus(*(_text(model, key) for key in keys)) for model in document]
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise InvalidResponseError(f"the JSON document has another form than the protocol's: {error!r}") from error
    return cast(R, answer)


def error_text(body: bytes) -> str:
    """The server's own words in the body of a failed request."""
    try:
        document = json.loads(body)
        words = document.get("error", document.get("detail", document.get("message"))) if isinstance(document, dict) else None
        return str(document if words is None else words)
    except (ValueError, RecursionError):  # no JSON, or nested too deep
        return body[:2000].decode("utf-8", "replace").strip() or "no details"


def _binary_request(call: Infer, path: str, timeout_s: float) -> HttpRequest:
    document: dict[str, Any] = {
        # How long the request may wait in Triton's queue, in microseconds; counts where the model's queue policy allows it.
        "parameters": {"timeout": max(1, int(timeout_s * 1e6))},
        "inputs": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "datatype": tensor.datatype,
                "parameters": {"binary_data_size": len(tensor.data)},
            }
            for tensor in call.inputs
        ],
    }
    if call.request_id:
        document["id"] = call.request_id
    if call.outputs:
        document["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in call.outputs]
    else:
        document["parameters"]["binary_data_output"] = True
    header = _json_bytes(document)
    body = b"".join([header, *(tensor.data for tensor in call.inputs)])
    return HttpRequest("POST", path, body, {HEADER_LENGTH: str(len(header)), "content-type": "application/octet-stream"})


def _plain_document(call: Infer) -> dict[str, Any]:
    # No parameters: the protocol names none, and a server makes of those it does not know what it likes.
    document: dict[str, Any] = {
        "inputs": [
            {"name": tensor.name, "shape": list(tensor.shape), "datatype": tensor.datatype, "data": to_json(tensor)}
            for tensor in call.inputs
        ]
    }
    if call.request_id:
        document["id"] = call.request_id
    if call.outputs:
        document["outputs"] = [{"name": name} for name in call.outputs]
    return document


def _post(path: str, document: dict[str, Any]) -> HttpRequest:
    return HttpRequest("POST", path, _json_bytes(document), {"content-type": "application/json"})


def _infer_result(call: Infer, body: bytes, headers: Mapping[str, str]) -> InferResult:
    stated = headers.get(HEADER_LENGTH)
    if stated is not None and not (stated.isascii() and stated.isdigit() and len(stated) < 20 and int(stated) <= len(body)):
        raise InvalidResponseError(f"{HEADER_LENGTH} is {stated!r} in a body of {len(body)} bytes")
    length = len(body) if stated is None else int(stated)
    document = _json(body[:length])
    binary = memoryview(body)[length:]
    outputs: dict[str, Array] = {}
    offset = 0
    try:
        check_id(call, _text(document, "id"))
        for tensor in document["outputs"]:
            name, datatype, shape = str(tensor["name"]), str(tensor["datatype"]), tuple(tensor["shape"])
            size = (tensor.get("parameters") or {}).get("binary_data_size")
            try:
                if size is None:
                    outputs[name] = from_json(tensor["data"], datatype, shape)
                    continue
                if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(binary) - offset:
                    raise InvalidResponseError(f"binary_data_size is {size!r} where {len(binary) - offset} bytes are left")
                outputs[name] = decode(binary[offset : offset + size], datatype, shape)
                offset += size
            except InvalidResponseError as error:
                raise InvalidResponseError(f"output {name!r}: {error}") from error
        model_name, model_version = _text(document, "model_name"), _text(document, "model_version")
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidResponseError(f"the JSON document has another form than the protocol's: {error!r}") from error
    if offset != len(binary):
        raise InvalidResponseError(f"{len(binary) - offset} bytes follow the last output")
    return InferResult(model_name, model_version, outputs)


def _metadata(document: Any) -> ModelMetadata:
    def tensors(key: str) -> tuple[TensorMetadata, ...]:
        return tuple(
            TensorMetadata(str(tensor["name"]), str(tensor["datatype"]), tuple(int(extent) for extent in tensor["shape"]))
            for tensor in document[key]
        )

    versions = tuple(str(version) for version in document.get("versions") or ())
    return ModelMetadata(str(document["name"]), versions, _text(document, "platform"), tensors("inputs"), tensors("outputs"))


def _text(document: Any, key: str) -> str:
    """What a document says under ``key``; empty where it says nothing, or null."""
    value = document.get(key)
    return "" if value is None else str(value)


def _json_bytes(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:  # the latter: nested too deep
        raise InvalidResponseError(f"expected JSON, found {bytes(body[:60])!r}") from error
