"""Spans of calls and requests for OpenTelemetry. Imported once an application has set a tracer provider up, and not before.

A call of a client's method is an INTERNAL span, and each request that it makes a CLIENT span below it, whose context goes to the
server. Requests are named and described by OpenTelemetry's conventions for gRPC clients (the release candidate, with
``rpc.system.name``) and for HTTP clients; what these have no word for begins with ``convoy.``.
"""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from typing import Any, Final
from urllib.parse import quote

from opentelemetry import context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Setter
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, TracerProvider

from convoy.contract.errors import ClientError
from convoy.serving.client._call import (
    Call,
    DescribeModel,
    DescribeServer,
    Infer,
    ListModels,
    LoadModel,
    ModelReady,
    ReadConfig,
    ReadStatistics,
    ServerLive,
    ServerReady,
    UnloadModel,
)
from convoy.serving.client._endpoint import Endpoint
from convoy.serving.client._observer import AttemptObserver, MethodCall, SilentCall, outcome_of

_SERVICE: Final = "inference.GRPCInferenceService/"
_MODEL: Final = "/v2/models/{model_name}"

# call -> gRPC's method, HTTP's method, what follows the model's path in HTTP or, from "/v2" on, the path itself
_REQUESTS: Final[dict[type[Call[Any]], tuple[str, str, str]]] = {
    ServerLive: ("ServerLive", "GET", "/v2/health/live"),
    ServerReady: ("ServerReady", "GET", "/v2/health/ready"),
    DescribeServer: ("ServerMetadata", "GET", "/v2"),
    ModelReady: ("ModelReady", "GET", "/ready"),
    DescribeModel: ("ModelMetadata", "GET", ""),
    ReadConfig: ("ModelConfig", "GET", "/config"),
    ReadStatistics: ("ModelStatistics", "GET", "/stats"),
    ListModels: ("RepositoryIndex", "POST", "/v2/repository/index"),
    LoadModel: ("RepositoryModelLoad", "POST", "/v2/repository/models/{model_name}/load"),
    UnloadModel: ("RepositoryModelUnload", "POST", "/v2/repository/models/{model_name}/unload"),
    Infer: ("ModelInfer", "POST", "/infer"),
}


class Tracing:
    """An ``Observer`` that makes spans.

    Args:
        provider: The application's tracer provider.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self.provider = provider
        self._tracer = provider.get_tracer("convoy.client")

    def call(self, begun: MethodCall) -> SilentCall:
        """See ``Observer.call``."""
        return _TracedCall(self._tracer, begun)


class _TracedCall(SilentCall):
    """A call's span; the current one until the call ends, unless the caller does other things meanwhile."""

    def __init__(self, tracer: Tracer, begun: MethodCall) -> None:
        outer = context.get_current()
        self._tracer = tracer
        self._request_id = begun.request_id
        self._span = tracer.start_span(
            f"convoy.{begun.method}",
            outer,
            kind=SpanKind.INTERNAL,
            attributes={**_about(begun.model_name, begun.model_version), "convoy.request.id": begun.request_id},
        )
        self._context = trace.set_span_in_context(self._span, outer)
        self._token = None if begun.lasting else context.attach(self._context)

    def attempt(self, call: Call[Any], endpoint: Endpoint, number: int) -> AttemptObserver:
        return _TracedAttempt(self._tracer, self._context, call, endpoint, number, self._request_id)

    def retried(self, error: ClientError) -> None:
        if self._span.is_recording():  # not where the call has ended, and a hedge of it goes on
            self._span.add_event("convoy.retry", {"error.type": type(error).__name__})

    def hedged(self) -> None:
        if self._span.is_recording():
            self._span.add_event("convoy.hedge")

    def merged(self, request_id: str) -> None:
        self._span.add_event("convoy.merge", {"convoy.request.id": request_id})

    def end(self, error: BaseException | None) -> None:
        if self._token is not None:
            context.detach(self._token)
        if error is not None and outcome_of(error) != "cancelled":
            self._span.record_exception(error)
        _end(self._span, error, outcome_of(error))


class _TracedAttempt:
    """A request's span; the current one in the thread or the task that sends it, until it ends."""

    def __init__(self, tracer: Tracer, outer: Context, call: Call[Any], endpoint: Endpoint, number: int, request_id: str) -> None:
        self._call, self._endpoint = call, endpoint
        name, attributes = describe(call, endpoint, number)
        attributes["convoy.request.id"] = call.request_id if isinstance(call, Infer) else request_id
        self._span = tracer.start_span(name, outer, kind=SpanKind.CLIENT, attributes=attributes)
        own = trace.set_span_in_context(self._span, outer)
        carrier: dict[str, str] = {}
        propagate.inject(carrier, own, _IN_LOWER_CASE)
        self.headers = tuple(carrier.items())
        self._token = context.attach(own)

    def end(self, error: BaseException | None) -> None:
        context.detach(self._token)
        outcome = outcome_of(error)
        if self._endpoint.uses_grpc:
            status = "OK" if error is None else _grpc_status(error)
            if status:
                self._span.set_attribute("rpc.response.status_code", status)
                outcome = status if error is not None else outcome
        _end(self._span, error, outcome)


def describe(call: Call[Any], endpoint: Endpoint, number: int) -> tuple[str, dict[str, Any]]:
    """The name and the attributes of a request's span.

    Args:
        call: What is asked.
        endpoint: Who is asked.
        number: The how manieth try it is, from 1.
    """
    rpc, method, path = _REQUESTS[type(call)]
    attributes: dict[str, Any] = {
        **_about(call.model_name, call.model_version),
        "server.address": endpoint.host,
        "server.port": endpoint.port,
        "convoy.attempt": number,
    }
    if endpoint.ip:
        attributes["network.peer.address"] = endpoint.ip
        attributes["network.peer.port"] = endpoint.port
    if endpoint.uses_grpc:
        attributes["rpc.system.name"] = "grpc"
        attributes["rpc.method"] = _SERVICE + rpc
        return _SERVICE + rpc, attributes
    if not path.startswith("/v2"):
        path = _MODEL + ("/versions/{model_version}" if call.model_version else "") + path
    attributes["http.request.method"] = method
    attributes["url.template"] = path
    attributes["url.full"] = endpoint.name + path.format(
        model_name=quote(call.model_name, safe=""), model_version=quote(call.model_version, safe="")
    )
    if number > 1:
        attributes["http.request.resend_count"] = number - 1
    return f"{method} {path}", attributes


class _LowerCaseSetter(Setter[MutableMapping[str, str]]):
    """gRPC takes names in lower case only; to HTTP they are the same."""

    def set(self, carrier: MutableMapping[str, str], key: str, value: str) -> None:
        carrier[key.lower()] = value


_IN_LOWER_CASE: Final = _LowerCaseSetter()


def _about(model_name: str, model_version: str) -> dict[str, str]:
    """The attributes of a model; none where a call is about the server."""
    found = {"convoy.model.name": model_name, "convoy.model.version": model_version}
    return {key: str(value) for key, value in found.items() if value}


def _end(span: Span, error: BaseException | None, outcome: str) -> None:
    if outcome == "cancelled":
        span.set_attribute("convoy.cancelled", True)
    elif error is not None:
        span.set_attribute("error.type", outcome)
        span.set_status(StatusCode.ERROR, str(error))
    span.end()


def _grpc_status(error: BaseException) -> str:
    """The status that gRPC ended a request with; empty where it has told none."""
    grpc = sys.modules.get("grpc")
    return str(error.__cause__.code().name) if grpc is not None and isinstance(error.__cause__, grpc.RpcError) else ""
