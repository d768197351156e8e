"""``Target``: whom a load is sent to, and the bytes that it sends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import InvalidResponseError, UsageError
from convoy.contract.manifest import INTERFACE_PARAMETER, ModelInterface
from convoy.serving.client import Client
from convoy.serving.client._call import Infer, Tensor
from convoy.serving.client._datatype import encode
from convoy.serving.client._endpoint import Endpoint
from convoy.serving.load.inputs import make_inputs

DEFAULT_STREAMS: Final = 6
"""gRPC calls that share a connection: as many as NVIDIA's C++ client lets share one, with which perf_analyzer is made."""


@dataclass(frozen=True)
class Target:
    """A model on a server, and the one request that a load repeats.

    Attributes:
        url: Where the server is, the port written out.
        model_name: The model.
        model_version: The version that is asked; empty for the server's choice.
        protocol: ``http`` or ``grpc``.
        batch_size: How many images a request holds; 1 where the model has no batch axis.
        max_batch_size: The largest batch that the server forms; 0 where the model has no batch axis.
        timeout_s: How long an answer may take.
        answered_version: The version that answered the first request; empty where the server does not say.
        shapes: By input, the shape without the batch axis, as the request has it.
        config: The configuration with which the model is served: ``ModelConfig`` in its JSON form.
        request: The request's bytes: a whole HTTP request, or a serialised ``ModelInferRequest``.
        task: Where and how they are sent, for the process that does it.
    """

    url: str
    model_name: str
    model_version: str
    protocol: str
    batch_size: int
    max_batch_size: int
    timeout_s: float
    answered_version: str
    shapes: Mapping[str, tuple[int, ...]]
    config: Mapping[str, Any] = field(repr=False)
    request: bytes = field(repr=False)
    task: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(
        cls,
        url: str,
        model_name: str,
        *,
        model_version: str = "",
        batch_size: int = 1,
        inputs: Mapping[str, npt.NDArray[Any]] | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
        seed: int = 0,
        timeout_s: float = 30.0,
        streams: int = DEFAULT_STREAMS,
    ) -> Target:
        """Prepare a request for a model and prove that the server answers it.

        Args:
            url: ``http://HOST[:PORT]`` or ``grpc://HOST[:PORT]``.
            model_name: The model.
            model_version: The version to ask; the server's choice where it is empty.
            batch_size: How many images a request holds. Given ``inputs`` bring their own batch axis instead.
            inputs: The input tensors with the batch axis; random values that the model can take where None.
            shapes: By input, the shape without the batch axis, where the model leaves an extent open.
            seed: For random values.
            timeout_s: How long an answer may take, this first one included.
            streams: gRPC calls in flight that share a connection, at most. 1 stands for callers that each have their own; the more
                share one, the less the server has to do for each. A REST connection carries one request at a time.

        Raises:
            UsageError: The URL has TLS, the batch is larger than the server's, or a shape is missing or wrong.
            ClientError: The server cannot be asked, or does not answer the request as it should.
        """
        endpoint = Endpoint.parse(url)
        if endpoint.secure:
            raise UsageError(f"{url}: loads are sent without TLS: measure behind the proxy, on an http:// or grpc:// URL.")
        for name, number in (("batch_size", batch_size), ("streams", streams)):
            if number < 1:
                raise UsageError(f"{name}: expected 1 or more, found {number}.")
        with Client(url, timeout_s=timeout_s) as client:
            metadata = client.metadata(model_name, model_version)
            config = client.config(model_name, model_version)
            max_batch_size = int(config.get("max_batch_size", 0))
            if inputs is None:
                if batch_size > max(1, max_batch_size):
                    has = f"takes batches of at most {max_batch_size}" if max_batch_size else "has no batch axis"
                    raise UsageError(f"batch_size: {model_name} {has}, found {batch_size}.")
                optional = {tensor["name"] for tensor in config.get("input", []) if tensor.get("optional")}
                needed = [tensor for tensor in metadata.inputs if tensor.name not in optional]
                inputs = make_inputs(
                    needed,
                    batch_size=batch_size if max_batch_size else None,
                    shapes=shapes or {},
                    ranges=value_ranges(config),
                    seed=seed,
                )
            elif shapes:
                raise UsageError("shapes: given inputs have their own.")
            elif max_batch_size:
                batch_size = _common_extent(inputs)
            answer = client.infer(model_name, inputs, model_version=model_version)
            for name, output in answer.outputs.items():
                if max_batch_size and (output.ndim == 0 or len(output) != batch_size):
                    raise InvalidResponseError(
                        f"{client.url}: model {model_name!r}: expected {batch_size} rows in output {name!r}, "
                        f"found shape {list(output.shape)}."
                    )
        datatypes = {tensor.name: tensor.datatype for tensor in metadata.inputs}
        tensors = tuple(
            Tensor(name, datatypes[name], np.asarray(array).shape, encode(np.asarray(array), datatypes[name]))
            for name, array in inputs.items()
        )
        call = Infer(model_name, model_version, inputs=tensors)
        request, task = (_grpc_request if endpoint.uses_grpc else _http_request)(endpoint, call, timeout_s)
        return cls(
            url=str(endpoint),
            model_name=model_name,
            model_version=model_version,
            protocol=endpoint.scheme,
            batch_size=batch_size if max_batch_size else 1,
            max_batch_size=max_batch_size,
            timeout_s=timeout_s,
            answered_version=answer.model_version,
            shapes={tensor.name: tensor.shape[bool(max_batch_size) :] for tensor in tensors},
            config=config,
            request=request,
            task={"protocol": endpoint.scheme, "host": endpoint.host, "port": endpoint.port, "streams": streams, **task},
        )


def value_ranges(config: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """By input, the values that make sense, where the model was deployed by Convoy.

    Args:
        config: ``ModelConfig`` in its JSON form.

    Raises:
        InvalidResponseError: What Convoy wrote there is damaged.
    """
    stated = config.get("parameters", {}).get(INTERFACE_PARAMETER)
    if not stated:
        return {}
    try:
        interface = ModelInterface.model_validate_json(stated["string_value"])
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidResponseError(f"the configuration's parameter {INTERFACE_PARAMETER} is damaged: {error}") from error
    return {tensor.name: tensor.value_range for tensor in interface.inputs if tensor.value_range is not None}


def _common_extent(inputs: Mapping[str, npt.NDArray[Any]]) -> int:
    extents = {len(array) if getattr(array, "ndim", 0) else 0 for array in inputs.values()}
    if len(extents) != 1 or 0 in extents:
        raise UsageError(f"inputs: expected arrays with one batch axis of the same extent, found extents {sorted(extents)}.")
    return extents.pop()


def _http_request(endpoint: Endpoint, call: Infer, timeout_s: float) -> tuple[bytes, dict[str, Any]]:
    from convoy.serving.client._http_wire import encode_request

    made = encode_request(call, timeout_s)
    headers = {"host": endpoint.address, "content-length": str(len(made.body)), **made.headers}
    lines = [f"{made.method} {made.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode("ascii") + made.body, {}


def _grpc_request(endpoint: Endpoint, call: Infer, timeout_s: float) -> tuple[bytes, dict[str, Any]]:
    from convoy.serving.client._grpc_wire import encode_request, method_of

    return encode_request(call, timeout_s), {"authority": endpoint.address, "method": method_of(call)}
