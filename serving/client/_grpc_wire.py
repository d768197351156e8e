"""Calls as KServe v2 gRPC messages. The one module that imports tritonclient: its protobuf stubs, nothing else of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, cast

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from tritonclient.grpc import service_pb2

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
    Placed,
    R,
    ReadConfig,
    ReadStatistics,
    RegisterRegion,
    RegisterSegment,
    ServerLive,
    ServerReady,
    Shared,
    SharedOnGpu,
    UnloadModel,
    UnregisterRegion,
    UnregisterSegment,
    check_id,
)
from convoy.serving.client._datatype import PLAIN_DTYPES, Array, Buffer, decode, from_values
from convoy.serving.client._grpc_likeness import Likeness, varint

_MOST_ALIKE: Final = 256
_SERVICE: Final = "/inference.GRPCInferenceService/"

# call -> method, request's type, response's type, whether the request names a model and a version, or a model of the repository
_METHODS: Final[dict[type[Call[Any]], str]] = {
    ServerLive: "ServerLive",
    ServerReady: "ServerReady",
    DescribeServer: "ServerMetadata",
    ModelReady: "ModelReady",
    DescribeModel: "ModelMetadata",
    ReadConfig: "ModelConfig",
    ReadStatistics: "ModelStatistics",
    ListModels: "RepositoryIndex",
    LoadModel: "RepositoryModelLoad",
    UnloadModel: "RepositoryModelUnload",
    Infer: "ModelInfer",
    RegisterSegment: "SystemSharedMemoryRegister",
    UnregisterSegment: "SystemSharedMemoryUnregister",
    RegisterRegion: "CudaSharedMemoryRegister",
    UnregisterRegion: "CudaSharedMemoryUnregister",
}
_FULL_NAMES: Final = {kind: _SERVICE + method for kind, method in _METHODS.items()}
_RESPONSES: Final = {kind: getattr(service_pb2, f"{method}Response") for kind, method in _METHODS.items()}
METHODS: Final = tuple(_FULL_NAMES.values())
"""The full names of the methods that calls use."""

_CONTENTS: Final = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where other servers than Triton put elements of small tensors."""


def method_of(call: Call[Any]) -> str:
    """The full name of the gRPC method that answers ``call``."""
    return _FULL_NAMES[type(call)]


def encode_request(call: Call[Any], timeout_s: float) -> bytes:
    """``call`` as its method's request, serialised."""
    if type(call) is Infer:
        return _infer_request(call, timeout_s) if call.placed is None else _placed_request(call, call.placed, timeout_s)
    request = getattr(service_pb2, _METHODS[type(call)] + "Request")()
    if isinstance(call, (ModelReady, DescribeModel, ReadConfig, ReadStatistics)):
        request.name, request.version = call.model_name, call.model_version
    elif isinstance(call, (LoadModel, UnloadModel)):
        request.model_name = call.model_name
    elif isinstance(call, RegisterSegment):
        request.name, request.key, request.byte_size = call.segment, f"/{call.segment}", call.size
    elif isinstance(call, UnregisterSegment):
        request.name = call.segment
    elif isinstance(call, RegisterRegion):
        request.name, request.raw_handle, request.device_id, request.byte_size = call.region, call.handle, call.device, call.size
    elif isinstance(call, UnregisterRegion):
        request.name = call.region
    return cast(bytes, request.SerializeToString())


def decode_response(call: Call[R], data: bytes, alike: dict[Any, Likeness] | None = None) -> R:
    """The answer behind a serialised response.

    Args:
        call: What was asked.
        data: The response.
        alike: What earlier answers were like, by the kind of call; this one is added.

    Raises:
        InvalidResponseError: It is no such response, or its tensors are not what it says.
    """
    if type(call) is Infer and alike is not None:
        likeness = alike.get((call.model_name, call.model_version, call.outputs, call.inputs[0].shape if call.inputs else ()))
        result = None if likeness is None else likeness.read(call, data)
        if result is not None:
            return cast(R, result)
    response = _RESPONSES[type(call)]()
    try:
        response.ParseFromString(data)
    except DecodeError as error:
        raise InvalidResponseError(f"expected a {type(response).__name__} message, found {len(data)} other bytes") from error
    answer: Any = None
    if type(call) is Infer:
        if response.id != call.request_id:
            check_id(call, response.id)
        places = {} if call.placed is None else call.placed.outputs
        answer = InferResult(response.model_name, response.model_version, _outputs(response, places))
        if alike is not None and not places and len(response.raw_output_contents) == len(response.outputs):
            _remember(alike, call, data, response)
    elif isinstance(call, ServerLive):
        answer = bool(response.live)
    elif isinstance(call, (ServerReady, ModelReady)):
        answer = bool(response.ready)
    elif isinstance(call, DescribeServer):
        answer = ServerMetadata(response.name, response.version, tuple(response.extensions))
    elif isinstance(call, DescribeModel):
        answer = ModelMetadata(
            response.name, tuple(response.versions), response.platform, _tensors(response.inputs), _tensors(response.outputs)
        )
    elif isinstance(call, ReadConfig):
        answer = _plain(response.config)
    elif isinstance(call, ReadStatistics):
        answer = [_plain(version) for version in response.model_stats]
    elif isinstance(call, ListModels):
        # MLServer 1.7 writes its enumeration's own name before the state: "State.READY".
        answer = [ModelStatus(m.name, m.version, m.state.rpartition(".")[2], m.reason) for m in response.models]
    return cast(R, answer)


def _remember(alike: dict[Any, Likeness], call: Infer, data: bytes, response: Any) -> None:
    likeness = Likeness.of(call, data, response)
    if likeness is not None:
        if len(alike) >= _MOST_ALIKE:
            alike.clear()
        alike[call.model_name, call.model_version, call.outputs, call.inputs[0].shape if call.inputs else ()] = likeness


def _infer_request(call: Infer, timeout_s: float) -> bytes:
    """A ``ModelInferRequest``, serialised: fields may stand in any order, and what says the same in every call is made once."""
    parts: list[Buffer] = [
        _header(
            call.model_name,
            call.model_version,
            call.outputs,
            tuple([(tensor.name, tensor.datatype, tensor.shape) for tensor in call.inputs]),
        )
    ]
    parts.append(_timeout(max(1, int(timeout_s * 1e6)) if timeout_s < 1 else int(timeout_s * 1e3) * 1000))
    if request_id := call.request_id.encode():
        parts += (b"\x1a", varint(len(request_id)), request_id)
    for tensor in call.inputs:
        parts += (b"\x3a", varint(len(tensor.data)), tensor.data)
    return b"".join(parts)


def _placed_request(call: Infer, placed: Placed, timeout_s: float) -> bytes:
    """A ``ModelInferRequest`` of tensors that lie in shared memory; raw contents are of the others alone, in their order."""
    request = service_pb2.ModelInferRequest(model_name=call.model_name, model_version=call.model_version, id=call.request_id)
    request.parameters["timeout"].int64_param = max(1, int(timeout_s * 1e6))
    for tensor in call.inputs:
        entry = request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if (place := placed.inputs.get(tensor.name)) is not None:
            _put(entry.parameters, place)
        else:
            request.raw_input_contents.append(bytes(tensor.data))
    for name in call.outputs or tuple(placed.outputs):
        entry = request.outputs.add(name=name)
        if name in placed.outputs:
            _put(entry.parameters, placed.outputs[name])
    return cast(bytes, request.SerializeToString())


def _put(parameters: Any, shared: Shared | SharedOnGpu) -> None:
    parameters["shared_memory_region"].string_param = shared.region
    parameters["shared_memory_byte_size"].int64_param = shared.size
    if shared.offset:
        parameters["shared_memory_offset"].int64_param = shared.offset


@lru_cache(maxsize=1024)
def _header(
    model_name: str, model_version: str, outputs: tuple[str, ...], inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=model_name, model_version=model_version)
    for name, datatype, shape in inputs:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
    for name in outputs:
        request.outputs.add(name=name)
    return cast(bytes, request.SerializeToString())


# Field 3 of the request, ``\x1a``, is ``id``, and field 7, ``\x3a``, is ``raw_input_contents``.

_TIMEOUT_KEY: Final = b"\x0a\x07timeout"
"""The key of an entry of ``parameters`` (field 4, ``\x22``), whose value is an ``InferParameter`` (``int64_param`` is field 2)."""


@lru_cache(maxsize=1024)
def _timeout(microseconds: int) -> bytes:
    """How long the request may wait in Triton's queue; counts where the model's queue policy allows it."""
    timeout = varint(microseconds)
    value = b"\x12" + varint(len(timeout) + 1) + b"\x10" + timeout
    return b"\x22" + varint(len(_TIMEOUT_KEY) + len(value)) + _TIMEOUT_KEY + value


def _tensors(tensors: Any) -> tuple[TensorMetadata, ...]:
    return tuple(TensorMetadata(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in tensors)


def _outputs(response: Any, places: Mapping[str, Shared]) -> dict[str, Array]:
    raw = response.raw_output_contents
    if raw and len(raw) != len(response.outputs):
        raise InvalidResponseError(f"expected raw contents for {len(response.outputs)} outputs, found {len(raw)}")
    outputs: dict[str, Array] = {}
    for index, tensor in enumerate(response.outputs):
        name, datatype, shape = tensor.name, tensor.datatype, tuple(tensor.shape)
        if raw and not places and (plain := PLAIN_DTYPES.get(datatype)) is not None and min(shape, default=0) >= 0:
            try:  # what most answers are, without further calls; where it fails, it is said below why
                outputs[name] = np.frombuffer(bytearray(raw[index]), plain).reshape(shape)
                continue
            except ValueError:
                pass
        try:
            if name in places and not (raw and raw[index]):  # it lies where it was asked to: raw contents are empty
                outputs[name] = decode(places[name].written(), datatype, shape)
            elif raw:
                outputs[name] = decode(raw[index], datatype, shape)
            else:
                values = getattr(tensor.contents, _CONTENTS[datatype]) if datatype in _CONTENTS else ()
                outputs[name] = from_values(list(values), datatype, shape)
        except InvalidResponseError as error:
            raise InvalidResponseError(f"output {name!r}: {error}") from error
    return outputs


def _plain(message: Message) -> dict[str, Any]:
    """A message as JSON's values, with the defaults written out and 64-bit numbers as numbers: the form of Triton's REST."""
    plain: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        # A field of a oneof, and a message, says something by being there; anything else has its default.
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            plain[field.name] = {str(key): _value(entry.fields_by_name["value"], value[key]) for key in sorted(value)}
        elif field.is_repeated:
            plain[field.name] = [_value(field, element) for element in value]
        else:
            plain[field.name] = _value(field, value)
    return plain


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return _plain(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
