"""How calls reach a server: the two protocols that the client asks for, and who fulfils them for which URL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from convoy.contract.errors import UsageError
from convoy.serving.client._call import Call, R
from convoy.serving.client._endpoint import Endpoint


class Transport(Protocol):
    """Sends calls and waits for their answers. Safe under threads."""

    def send(self, call: Call[R], timeout_s: float) -> R:
        """Ask the server.

        Args:
            call: The question.
            timeout_s: How long the answer may take, at most; told to the server too.

        Raises:
            ClientError: No answer, or one that is none.
        """
        ...

    def close(self) -> None:
        """Let go of every connection; calls under way may fail."""
        ...


class AsyncTransport(Protocol):
    """``Transport`` for coroutines."""

    async def send(self, call: Call[R], timeout_s: float) -> R:
        """Ask the server; see ``Transport.send``."""
        ...

    async def close(self) -> None:
        """Let go of every connection; calls under way may fail."""
        ...


def open_transport(endpoint: Endpoint, headers: Mapping[str, str]) -> Transport:
    """The transport for an endpoint. Nothing is connected yet; grpc or httpx is imported here, whichever is needed."""
    if endpoint.uses_grpc:
        from convoy.serving.client._grpc_channel import GrpcTransport

        return GrpcTransport(endpoint, headers)
    from convoy.serving.client._http_connection import HttpTransport

    return HttpTransport(endpoint, headers)


def open_async_transport(endpoint: Endpoint, headers: Mapping[str, str]) -> AsyncTransport:
    """``open_transport`` for coroutines."""
    if endpoint.uses_grpc:
        from convoy.serving.client._grpc_channel import AsyncGrpcTransport

        return AsyncGrpcTransport(endpoint, headers)
    from convoy.serving.client._http_connection import AsyncHttpTransport

    return AsyncHttpTransport(endpoint, headers)


def check_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Headers for every call, names in lower case.

    Raises:
        UsageError: A name or a value is no header's: not text, not ASCII, or with a control character in it.
    """
    checked: dict[str, str] = {}
    for name, value in (headers or {}).items():
        if not (isinstance(name, str) and isinstance(value, str)):
            raise UsageError(f"headers: expected text for names and values, found {name!r}: {type(value).__name__}.")
        if not name or not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or not name.isascii():
            raise UsageError(f"headers: {name!r} is no header name: expected letters, digits, '-', '_' and '.'.")
        if not value.isascii() or not value.isprintable():
            raise UsageError(f"headers: the value of {name!r} may hold printable ASCII characters only.")
        checked[name.lower()] = value
    return checked
